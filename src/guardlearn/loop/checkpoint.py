"""The training checkpoint: a row of ℛ, written together with the finished adapter (Definitions 14 and 15).

The adapter folder is in place first; then one transaction stores the checkpoint and every item it trained. Errata
41-44.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from guardlearn.adapters import adapter_digest, manifest_in
from guardlearn.dag import ArtifactDAG, checkpoints, rounds
from guardlearn.dag.checkpoints import TrainingCheckpoint
from guardlearn.dag.tables import items
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.traces import content_digest

__all__ = [
    "adapter_of",
    "check_item",
    "check_restored",
    "last_checkpoint",
    "load_training_checkpoint",
    "save_training_checkpoint",
    "store",
]


def load_training_checkpoint(dag: ArtifactDAG, learner: str | None = None) -> dict[str, Any]:
    """Return the last training checkpoint, checked for integrity (Definition 15).

    Args:
        dag: ℛ; it is only read.
        learner: whose; None: the only learner of this ℛ.

    Returns:
        The guide's keys `last_item_id`, `timestamp` (ISO 8601, for people) and `traces_processed`, and `number`,
        `learner`, `seq`, `adapter`, `adapter_digest`. Before the first checkpoint: None, None, 0, and the like.

    Raises:
        UsageError: several learners, and none was named.
        RepositoryError: the item it points at, or its adapter, is not what it was (⊥_integrity).
    """
    last = last_checkpoint(dag, learner)
    if last is None:
        empty: dict[str, Any] = {"last_item_id": None, "timestamp": None, "traces_processed": 0}
        return empty | {"number": 0, "learner": learner, "seq": 0, "adapter": None, "adapter_digest": None}
    check_item(dag, last)
    adapter_of(last, None)
    return {
        "last_item_id": last.item_id,
        "timestamp": last.created_at.isoformat(),
        "traces_processed": last.traces_processed,
        "number": last.number,
        "learner": last.learner,
        "seq": last.seq,
        "adapter": last.adapter,
        "adapter_digest": last.adapter_digest,
    }


def save_training_checkpoint(
    dag: ArtifactDAG,
    last_item_id: str,
    traces_processed: int,
    *,
    adapter: str | Path,
    item_ids: Sequence[str] | None = None,
    learner: str = "default",
) -> TrainingCheckpoint:
    """Store a training checkpoint in ℛ, together with the finished adapter it stands for (Definition 14).

    Args:
        dag: ℛ, open for writing.
        last_item_id: the last item trained.
        traces_processed: traces trained by this learner so far, these included.
        adapter: folder of the finished adapter; without one there is no checkpoint (erratum 44).
        item_ids: items trained since the checkpoint before, `last_item_id` last; None: that one alone.
        learner: who learns; each learner trains an item at most once (erratum 43).

    Raises:
        RepositoryError: an item is unknown or was trained before, or the count does not add up.
        ModelError: no finished adapter there.
    """
    ids = list(item_ids) if item_ids is not None else [last_item_id]
    if not ids or ids[-1] != last_item_id:
        raise UsageError(f"last_item_id {last_item_id!r} must be the last of item_ids, which ends in {ids[-1:]}")
    contents = {item_id: content_digest(dag.get_item(item_id)) for item_id in ids}
    before = last_checkpoint(dag, learner)
    return store(dag, learner, contents, dag.last_seq, traces_processed, Path(adapter), before)


def last_checkpoint(dag: ArtifactDAG, learner: str | None) -> TrainingCheckpoint | None:
    """Return the newest checkpoint of a learner, or of the only one where None is named."""
    with dag.reading() as connection:
        if learner is not None:
            return next(iter(checkpoints.read(connection, learner, last=True)), None)
        found = checkpoints.read(connection)
    learners = sorted({each.learner for each in found})
    if len(learners) > 1:
        raise UsageError(f"{dag.target} has {len(learners)} learners ({', '.join(learners)}); name one of them")
    return found[-1] if found else None


def check_item(dag: ArtifactDAG, last: TrainingCheckpoint) -> None:
    """Refuse a checkpoint whose item is not in ℛ as it was: ℛ[id] must be what was trained (Definition 15)."""
    with dag.reading() as connection:
        found = connection.execute(sa.select(items.c.digest).where(items.c.id == last.item_id)).scalar_one_or_none()
    if found is None or bytes(found).hex() != last.item_digest:
        raise RepositoryError(
            f"training checkpoint {last.number} points at item {last.item_id!r}, which "
            f"{'is not in' if found is None else 'is another in'} {dag.target}; `guardlearn verify` says what changed"
        )


def check_restored(dag: ArtifactDAG, folder: Path, learner: str) -> None:
    """Refuse an ℛ that is behind what its loop left on disk: a backup from before, or another ℛ (Definition 15).

    A round is planned in ℛ before anything is written, and a job holds items of ℛ alone. So neither a job of a round
    that ℛ does not know, nor one that was selected from a later state, can come from this ℛ.

    Args:
        dag: ℛ; it is only read.
        folder: the loop's, with a folder by number for each round.
        learner: whose rounds these are.

    Raises:
        RepositoryError: naming the round's folder, and how far ℛ is.
    """
    with dag.reading() as connection:
        last = next(iter(rounds.read(connection, learner, last=True)), None)
    known, now = last.round if last else 0, dag.last_seq
    for number, place, manifest in _jobs(folder):
        seq = (manifest.get("checkpoint") or {}).get("seq") or 0
        if number > known:
            said = f"which knows no round {number} of {learner!r} (its last is {known or 'none'})"
        elif seq > now:
            said = f"which ends at seq {now}, before the {seq} that its items were selected at"
        else:
            continue
        raise RepositoryError(
            f"{place} comes from a later state than {dag.target}, {said}: ℛ was restored from a backup, or is another "
            "one; restore the newer ℛ, or move this folder and those of later rounds away and go on from here"
        )


def _jobs(folder: Path) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Yield number, folder and job's manifest of each round that has left one, in order."""
    found = [each for each in folder.iterdir() if each.name.isdecimal()] if folder.is_dir() else []
    for number, place in sorted((int(each.name), each) for each in found):
        manifest = manifest_in(place / "adapter")
        job = place / "job" / "manifest.json"
        if manifest is None and job.is_file():
            manifest = json.loads(job.read_text(encoding="utf-8"))
        if manifest is not None:
            yield number, place, manifest


def adapter_of(last: TrainingCheckpoint, output: Path | None) -> Path:
    """Return the folder of a checkpoint's adapter, found where it was or in `output`, and unaltered."""
    places = [Path(last.adapter)] + ([output / Path(last.adapter).name] if output else [])
    folder = next((place for place in places if place.is_dir()), None)
    digest = adapter_digest(folder) if folder else None
    if digest != last.adapter_digest:
        raise RepositoryError(
            f"training checkpoint {last.number} stands for the adapter in {last.adapter} with weights "
            f"{last.adapter_digest[:12]}; {'there is none' if digest is None else f'those there are {digest[:12]}'}: "
            "put it back"
        )
    assert folder is not None
    return folder


def store(
    dag: ArtifactDAG,
    learner: str,
    contents: Mapping[str, bytes],
    seq: int,
    traces_processed: int,
    adapter: Path,
    before: TrainingCheckpoint | None,
) -> TrainingCheckpoint:
    """Store a checkpoint after `before`; `contents` as in `dag.checkpoints.append`."""
    about = {
        "seq": seq,
        "traces_processed": traces_processed,
        "adapter": str(adapter.absolute()),
        "adapter_digest": adapter_digest(adapter),
        "parent_adapter": before.adapter_digest if before else "",
    }
    with dag.writing() as connection:
        return checkpoints.append(connection, learner, contents, about)
