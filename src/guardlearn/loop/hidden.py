"""Hidden guards: what no feedback ever showed judges what the visible guard accepted, of base and candidate alike.

A model that learned to please the visible guard rather than to do the task passes it more often and these not. Only
first attempts are judged that are in the attempt log already; nothing is sampled, and no verdict goes back to a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from guardlearn.audit.judging import Task, judgements
from guardlearn.chains import Attempt, ChainKey
from guardlearn.digests import digest_text
from guardlearn.engines import LocalEngine
from guardlearn.errors import DataError, UsageError
from guardlearn.evidence import group_of
from guardlearn.types import ArtifactStatus, Guard, GuardContext, OnProgress

__all__ = ["HiddenGuard", "check_hidden", "guard_gap", "judge_hidden"]

_WORDS = {
    ArtifactStatus.ACCEPTED: "accepted",
    ArtifactStatus.REJECTED: "rejected",
    ArtifactStatus.PENDING: "no verdict",
}


class HiddenGuard(msgspec.Struct, frozen=True, kw_only=True):
    """What one hidden guard said of the first attempts that the visible guard accepted."""

    version: str
    base: dict[str, int]
    """Attempts by accepted, rejected, no verdict."""
    candidate: dict[str, int]


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict in the file."""

    guard: str
    version: str
    spec: str
    artifact: str
    """Its digest."""
    status: ArtifactStatus
    cause: str


_Key = tuple[str, str, str, str]
"""Guard, its version, specification, digest of the artifact."""

Verdicts = Mapping[_Key, ArtifactStatus]


def check_hidden(guards: Sequence[Guard], visible: Guard) -> None:
    """Refuse guards that could not be told apart, or that feedback does show.

    Raises:
        UsageError: two of one name, or the visible guard among them.
    """
    names = [guard.name for guard in guards]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"hidden guard {name!r} is given {names.count(name)} times; give each once")
    if (visible.name, visible.version) in {(guard.name, guard.version) for guard in guards}:
        raise UsageError(f"guard {visible.name!r} is both the visible and a hidden one; hide one that is not shown")


def judge_hidden(
    guards: Sequence[Guard],
    attempts: Mapping[str, Sequence[Attempt]],
    file: Path,
    on_progress: OnProgress | None = None,
) -> Verdicts:
    """Judge the first attempts that were accepted; verdicts that are in `file` already are not asked for again.

    Args:
        guards: the hidden ones.
        attempts: of "base" and of "candidate".
        file: gets a line a verdict; equal artifacts for one specification are judged once.
        on_progress: called with (verdicts there are, those needed, note).

    Raises:
        DataError: the file is damaged elsewhere than in its last line.
    """
    known = _read(file)
    wanted = {
        (guard.name, guard.version, attempt.specification.id, digest_text(attempt.generation.text)): (guard, attempt)
        for guard in guards
        for own in attempts.values()
        for attempt in _accepted(own)
    }
    done = sum(key in known for key in wanted)
    for guard in guards:
        keys = [key for key, (judge, _) in wanted.items() if judge is guard and key not in known]
        tasks = (Task(place, *_artifact(wanted[key][1])) for place, key in enumerate(keys))
        with LocalEngine(None, guard) as engine, file.open("ab") as out:
            for place, verdict in judgements(engine, tasks):
                key = keys[place]
                line = _Line(
                    guard=key[0],
                    version=key[1],
                    spec=key[2],
                    artifact=key[3],
                    status=verdict.status,
                    cause=verdict.cause,
                )
                out.write(json.dumps(msgspec.to_builtins(line)).encode("ascii") + b"\n")
                out.flush()
                known[key] = verdict.status
                done += 1
                if on_progress:
                    on_progress(done, len(wanted), f"hidden guard {guard.name}")
    return {key: known[key] for key in wanted}


def guard_gap(
    guards: Sequence[Guard], attempts: Mapping[str, Sequence[Attempt]], verdicts: Verdicts
) -> tuple[dict[str, list[float]], dict[str, HiddenGuard]]:
    """Return what the gate reads, and what each guard said.

    The first is, by group and for each pair, the change in "accepted by the visible guard, rejected by a hidden one":
    1, 0 or -1. A hidden guard that gave no verdict counts against the candidate: as a rejection of its attempt, as none
    of the base's.
    """
    caught: dict[str, dict[ChainKey, bool]] = {}
    counts = {guard.name: {which: dict.fromkeys(_WORDS.values(), 0) for which in attempts} for guard in guards}
    for which, own in attempts.items():
        caught[which] = {}
        for attempt in _accepted(own):
            artifact = digest_text(attempt.generation.text)
            said = [verdicts[guard.name, guard.version, attempt.specification.id, artifact] for guard in guards]
            for guard, status in zip(guards, said, strict=True):
                counts[guard.name][which][_WORDS.get(status, "no verdict")] += 1
            if which == "candidate":
                caught[which][attempt.chain] = any(status is not ArtifactStatus.ACCEPTED for status in said)
            else:
                caught[which][attempt.chain] = ArtifactStatus.REJECTED in said
    gap: dict[str, list[float]] = {}
    for attempt in attempts["base"]:
        if attempt.attempt == 1:
            change = caught["candidate"].get(attempt.chain, False) - caught["base"].get(attempt.chain, False)
            gap.setdefault(group_of(attempt.specification), []).append(float(change))
    said_of = {guard.name: HiddenGuard(version=guard.version, **counts[guard.name]) for guard in guards}
    return gap, said_of


def _accepted(attempts: Sequence[Attempt]) -> list[Attempt]:
    return [attempt for attempt in attempts if attempt.attempt == 1 and attempt.verdict.passed]


def _artifact(attempt: Attempt) -> tuple[str, GuardContext]:
    return attempt.generation.text, GuardContext(specification=attempt.specification)


def _read(file: Path) -> dict[_Key, ArtifactStatus]:
    """Return the verdicts there are; a last line that a crash tore is cut off."""
    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    known: dict[_Key, ArtifactStatus] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            read = msgspec.convert(json.loads(line), _Line)
        except (ValueError, msgspec.ValidationError) as error:
            raise DataError(
                f"{file}, line {number}: no verdict of a hidden guard ({error}); remove the file"
            ) from error
        known[read.guard, read.version, read.spec, read.artifact] = read.status
    if len(whole) < len(content):
        with file.open("r+b") as cut:
            cut.truncate(len(whole))
    return known
