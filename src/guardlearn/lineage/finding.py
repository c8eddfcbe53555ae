"""Names of adapters: what people and generators call one, and the record it means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from guardlearn import adapters
from guardlearn.dag import ArtifactDAG, rounds
from guardlearn.dag.rounds import Promotion
from guardlearn.errors import ModelError, UsageError
from guardlearn.lineage import folders
from guardlearn.lineage.increments import increments
from guardlearn.lineage.records import AdapterRecord, learners, record_of_folder, records

__all__ = ["PROMOTED", "LiveAdapter", "find", "live_adapter", "one_learner"]

PROMOTED = "promoted"
"""Name of what is live; `promoted:LEARNER` where there are several learners."""

_SHORTEST_PREFIX = 6
_LISTED = 8
_ROUND = re.compile(r"(?:round[ -]?)?(\d+)")
_OF_LEARNER = re.compile(r"(.+)/(?:round[ -]?)?(\d+)", re.DOTALL)
_PREFIX = re.compile(rf"[0-9a-f]{{{_SHORTEST_PREFIX},64}}")


class LiveAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """What is live for a learner, found where it should be and unaltered."""

    learner: str
    folder: Path
    digest: str
    base_model: str
    """As its round was given it, or as its manifest names it; "" where nothing says so."""
    round: int
    """The round that made it; 0 where none of ℛ did."""
    promotion: int
    """Number of the row of ℛ that made it live."""


def find(dag: ArtifactDAG, name: str, learner: str | None = None) -> AdapterRecord:
    """Return the record that a name means.

    Args:
        dag: ℛ; it is only read.
        name: "promoted", "promoted:LEARNER", "round 3" or "3" (where one learner has it), "LEARNER/3", the first hex
            digits of a digest, at least 6, or an adapter's folder; one that no round made is known by its training
            checkpoint or its manifest.
        learner: look at this learner's alone; None: at all.

    Raises:
        UsageError: nothing or more than one has that name; says what there is.
        ModelError: a folder that no round made and that says nothing of itself.
    """
    if name == PROMOTED or name.startswith(f"{PROMOTED}:"):
        return _promoted(dag, name.partition(":")[2] or learner)
    known = records(dag, learner)
    found = _by_round(known, name) or _by_digest(known, name) or _by_folder(known, name)
    if not found and learner is None:
        others = increments(dag, known)
        found = [_told(each) for each in _by_digest(others, name) or _by_folder(others, name)]
        known += others
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} names {len(found)} adapters: {_listed(found)}; name one of them, as LEARNER/ROUND")
    if (Path(name) / adapters.WEIGHTS).is_file():
        return record_of_folder(Path(name))
    raise UsageError(f"no adapter {name!r} in {dag.target}; there are: {_listed(known)}")


def live_adapter(dag: ArtifactDAG, learner: str | None = None) -> LiveAdapter | None:
    """Return what is live: its folder and digest, checked; None where that is the bare base.

    Args:
        dag: ℛ; it is only read.
        learner: whose, though it may have none yet; None: the only learner of this ℛ.

    Raises:
        UsageError: several learners, and none was named.
        ModelError: the folder is gone, or was edited by hand: both digests are named.
    """
    chosen = learner if learner is not None else one_learner(dag, None)
    if chosen is None:
        return None
    with dag.reading() as connection:
        promotion = rounds.live(connection, chosen)
    if promotion is None:
        return None
    record = next((each for each in records(dag, chosen) if each.live), None) or _outside(promotion)
    return LiveAdapter(
        learner=chosen,
        folder=folders.check(record),
        digest=promotion.adapter_digest,
        base_model=record.base_model,
        round=record.round,
        promotion=promotion.number,
    )


def one_learner(dag: ArtifactDAG, learner: str | None) -> str | None:
    """Return the learner that is meant; None where ℛ has none at all.

    Raises:
        UsageError: no such learner, but others, or several, and none was named.
    """
    known = learners(dag)
    if not known:
        return None
    if learner is not None and learner not in known:
        raise UsageError(f"no learner {learner!r} in {dag.target}; there are: {', '.join(known)}")
    if learner is None and len(known) > 1:
        raise UsageError(
            f"{dag.target} has {len(known)} learners ({', '.join(known)}); name one: promoted:LEARNER, LEARNER/ROUND, "
            "or --learner"
        )
    return learner or next(iter(known), None)


def _promoted(dag: ArtifactDAG, learner: str | None) -> AdapterRecord:
    chosen = one_learner(dag, learner)
    known = records(dag, chosen) if chosen else []
    for each in known:
        if each.live:
            return each
    with dag.reading() as connection:
        promotion = rounds.live(connection, chosen) if chosen else None
    if promotion is not None:
        return _outside(promotion)
    whose = f" for {chosen!r}" if chosen else ""
    raise UsageError(f"the bare base is live{whose}, no adapter; there are: {_listed(known)}")


def _outside(promotion: Promotion) -> AdapterRecord:
    """Return the record of something live that no round of ℛ made.

    Raises:
        ModelError: its folder is gone, or holds other weights.
    """
    folder = Path(promotion.adapter)
    found = adapters.adapter_digest(folder)
    if found != promotion.adapter_digest:
        raise ModelError(
            f"{folder} was edited by hand: its weights are {found[:12]}, promoted were "
            f"{promotion.adapter_digest[:12]}; put it back as it was, or roll back"
        )
    if adapters.read_manifest(folder) is not None:
        return msgspec.structs.replace(record_of_folder(folder), live=True)
    return AdapterRecord(learner="", round=0, state="", folder=str(folder), digest=found, live=True)


def _by_round(known: Sequence[AdapterRecord], name: str) -> list[AdapterRecord]:
    if match := _ROUND.fullmatch(name):
        return [each for each in known if each.round == int(match[1])]
    if match := _OF_LEARNER.fullmatch(name):
        return [each for each in known if (each.learner, each.round) == (match[1], int(match[2]))]
    return []


def _told(record: AdapterRecord) -> AdapterRecord:
    """Return what an increment's folder says, where it is still there: that is more than its checkpoint."""
    folder = Path(record.folder)
    if not (folder / adapters.WEIGHTS).is_file() or adapters.adapter_digest(folder) != record.digest:
        return record
    return record_of_folder(folder) if adapters.read_manifest(folder) is not None else record


def _by_digest(known: Sequence[AdapterRecord], name: str) -> list[AdapterRecord]:
    prefix = name.lower()
    return [each for each in known if each.digest.startswith(prefix)] if _PREFIX.fullmatch(prefix) else []


def _by_folder(known: Sequence[AdapterRecord], name: str) -> list[AdapterRecord]:
    folder = Path(name)
    if not folder.is_dir():
        return [each for each in known if each.folder and each.folder == name]  # gone or pruned, still known
    place = folder.resolve()
    here = [each for each in known if each.folder and Path(each.folder).resolve() == place]
    if here or not (folder / adapters.WEIGHTS).is_file():
        return here
    digest = adapters.adapter_digest(folder)
    return [each for each in known if each.digest == digest]


def _listed(known: Sequence[AdapterRecord]) -> str:
    shown = [
        f"{each.name} ({each.state or 'of no round'}{f', {each.digest[:8]}' if each.digest else ''})" for each in known
    ]
    more = [f"{len(shown) - _LISTED} more"] if len(shown) > _LISTED else []
    return ", ".join([*shown[-_LISTED:], *more]) or "none"
