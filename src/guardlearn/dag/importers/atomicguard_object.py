"""One object of an AtomicGuard store (2.3.0 or 2.39.1): its JSON, and the item it becomes.

Nothing is guessed: what the object does not say stays unknown and is named, what is odd is a fault. Definition 10;
errata 6b, 8, 10-12 and 15.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from guardlearn.dag.importers.fields import as_text
from guardlearn.dag.rows import storable
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Source, utc

__all__ = ["Converted", "convert", "decode", "dependencies", "history", "parse", "time_of"]

_MAPPED = frozenset(
    "artifact_id workflow_id content previous_attempt_id action_pair_id created_at status guard_result feedback "
    "context metadata source workflow_ref".split()
)
_MAPPED_CONTEXT = frozenset("workflow_id specification constraints feedback_history".split())
_MAPPED_VERDICT = frozenset("passed feedback fatal guard_name".split())
_EFFECTOR = ("exit_code", "command", "workflow_status")


@dataclass(slots=True)
class Converted:
    """An item with what its object could not say."""

    item: RepositoryItem
    faults: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    cited: dict[str, list[str]] = field(default_factory=dict)
    """Ids of other attempts by what they are to this one: history, dependencies."""
    exclude: str = ""
    """Why it is not a generator's work to learn from; "" where it is."""


def decode(raw: bytes) -> dict[str, Any]:
    """Return a file's JSON object; lone surrogates are kept.

    Raises:
        ValueError: it is none (one being written is cut short).
    """
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # it refuses lone surrogates and NaN
        try:
            value = json.loads(raw)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"it is not whole JSON ({error}); if it is being written, import again") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def parse(raw: bytes) -> dict[str, Any]:
    """Return an artifact's object.

    Raises:
        ValueError: see `decode`; or it lacks id or content.
    """
    value = decode(raw)
    for name in ("artifact_id", "content"):
        if not isinstance(value.get(name), str):
            raise ValueError(f"it has no text {name}")
    if not value["artifact_id"] or not storable(value["artifact_id"]):
        raise ValueError("its artifact_id is empty, or holds NUL or a lone surrogate")
    return value


def history(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return H as the object holds it: (artifact_id, feedback) pairs (erratum 9)."""
    entries = _context(value).get("feedback_history")
    return [
        (as_text(entry.get("artifact_id")), as_text(entry.get("feedback")))
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    ]


def dependencies(value: Mapping[str, Any]) -> list[str]:
    """Return the ids of the artifacts that the attempt built on."""
    context = _context(value)
    found = context.get("dependency_artifacts") or context.get("dependency_ids") or []
    if isinstance(found, Mapping):
        found = list(found.values())
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def time_of(value: object) -> datetime | None:
    """Return a stored time in UTC, a naive one taken as UTC (erratum 12); None where it is none."""
    try:
        return utc(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def convert(
    value: Mapping[str, Any],
    *,
    parent_id: str | None,
    created_at: datetime,
    store: str,
    seen_history: tuple[FeedbackEntry, ...] | None = None,
    human: bool = False,
) -> Converted:
    """Return the item that an object becomes.

    Args:
        value: the object, as `parse` returns it.
        parent_id: the attempt it retries, by the provenance that the reader chose.
        created_at: its time, or the best that is known of it.
        store: folder of its DAG, kept in the metadata.
        seen_history: H joined by id, where the chain cannot give it.
        human: an amendment holds this very content.

    Raises:
        ValueError: a name in it holds what databases refuse.
    """
    made = Converted(None)  # type: ignore[arg-type]  # filled below
    verdict = _verdict(value)
    names: dict[str, Any] = {
        "action_pair_id": as_text(value.get("action_pair_id")) or "default",
        "workflow_id": as_text(value.get("workflow_id") or _context(value).get("workflow_id")),
        "workflow_ref": as_text(value.get("workflow_ref")),
        "guard": as_text(verdict.get("guard_name")),
    }
    for name, text in (*names.items(), ("previous_attempt_id", parent_id or "")):
        if not storable(text):
            raise ValueError(f"its {name} holds NUL or a lone surrogate, which databases refuse in names")
    status = _status(value, verdict, made)
    made.item = RepositoryItem(
        **names,
        id=value["artifact_id"],
        artifact=value["content"],
        specification=as_text(_context(value).get("specification")),
        constraints=as_text(_context(value).get("constraints")),
        status=status,
        parent_id=parent_id,
        source=_source(value, human, made),
        feedback=as_text(verdict.get("feedback")),
        cause=_cause(verdict) if status is ArtifactStatus.REJECTED else "",
        fatal=verdict.get("fatal") is True,
        created_at=created_at,
        seen_history=seen_history,
        metadata=_metadata(value, verdict, store),
    )
    _note_unknown(value, made)
    made.cited = {"history": [name for name, _ in history(value)], "dependencies": dependencies(value)}
    made.exclude = _exclusion(value)
    return made


def _context(value: Mapping[str, Any]) -> Mapping[str, Any]:
    context = value.get("context")
    return context if isinstance(context, dict) else {}


def _own_metadata(value: Mapping[str, Any]) -> Mapping[str, Any]:
    own = value.get("metadata")
    return own if isinstance(own, dict) else {}


def _verdict(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return guard_result; the legacy form is a bare truth value beside a top-level `feedback`."""
    result = value.get("guard_result")
    if isinstance(result, dict):
        return result
    return {"passed": result, "feedback": value.get("feedback")} if isinstance(result, bool) else {}


def _status(value: Mapping[str, Any], verdict: Mapping[str, Any], made: Converted) -> ArtifactStatus:
    if isinstance(value.get("guard_result"), bool):
        made.faults.append("guard_result is a bare truth value (an old format): which guard judged is not known")
    passed, word = verdict.get("passed"), value.get("status")
    judged = {True: ArtifactStatus.ACCEPTED, False: ArtifactStatus.REJECTED}.get(passed) if passed in (0, 1) else None
    if word is None:
        made.faults.append(f"it has no status; taken as its guard said: {judged or ArtifactStatus.PENDING}")
        return judged or ArtifactStatus.PENDING
    try:
        status = ArtifactStatus(word)
    except ValueError:
        made.faults.append(f"status {word!a} is unknown; taken as pending")
        return ArtifactStatus.PENDING
    if judged not in (None, status) and status in (ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED):
        made.faults.append(f"status is {status} but its guard said {judged}; the status is taken")
    return status


def _source(value: Mapping[str, Any], human: bool, made: Converted) -> Source:
    """Return who wrote it: the `source` key, the id of a human amendment, an amendment's content; else UNKNOWN."""
    word = value.get("source")
    if word is not None:
        try:
            return Source(word)
        except ValueError:
            made.faults.append(f"source {word!a} is unknown; taken as unknown")
            return Source.UNKNOWN
    return Source.HUMAN if human or value["artifact_id"].startswith("human-") else Source.UNKNOWN


def _cause(verdict: Mapping[str, Any]) -> str:
    """Return the name of the first guard within a composite one that failed."""
    parts = verdict.get("sub_results")
    failed = [part for part in (parts if isinstance(parts, list) else []) if isinstance(part, dict)]
    name = next((as_text(part.get("guard_name")) for part in failed if part.get("passed") is False), "")
    return name if storable(name) else ""


def _metadata(value: Mapping[str, Any], verdict: Mapping[str, Any], store: str) -> dict[str, Any]:
    """Return the object's metadata (tokens …), and under "atomicguard" every field that has no column."""
    rest = {name: each for name, each in value.items() if name not in _MAPPED}
    rest |= {name: each for name, each in _context(value).items() if name not in _MAPPED_CONTEXT}
    kept = {name: each for name, each in verdict.items() if name not in _MAPPED_VERDICT}
    rest |= {"sub_results": kept.pop("sub_results", None), "guard_metadata": kept.pop("metadata", None), **kept}
    pairs = [{"artifact_id": name, "feedback": said} for name, said in history(value)]
    unseen = bool(pairs) and not value.get("previous_attempt_id")
    if unseen:
        rest["feedback_history"] = pairs
    inner = {name: each for name, each in rest.items() if each not in (None, "", [], {})}
    flags = {"h_unseen": True} if unseen else {}
    return {**_own_metadata(value), **flags, "atomicguard": {**inner, "store": store}}


def _note_unknown(value: Mapping[str, Any], made: Converted) -> None:
    item, verdict = made.item, _verdict(value)
    lacks = {
        "source": item.source is Source.UNKNOWN,
        "workflow": not item.workflow_id,
        "workflow_ref": not item.workflow_ref,
        "model": True,  # no version of AtomicGuard stores which model answered
        "specification": not item.specification.strip(),
        "guard": not item.guard,
        "verdict": item.status is ArtifactStatus.PENDING,
        "feedback": item.status is ArtifactStatus.REJECTED and not item.feedback,
        "history shown to the generator": "h_unseen" in item.metadata,
    }
    made.unknown += [name for name, missing in lacks.items() if missing]
    odd = [
        name for name in ("artifact", "feedback", "specification", "constraints") if not storable(getattr(item, name))
    ]
    if odd:
        made.faults.append(
            f"its {', '.join(odd)} holds NUL or lone surrogates: kept as it is, but no trace is made of it"
        )
    if not item.workflow_id:
        made.faults.append("it has no workflow_id (an old format)")
    if verdict.get("fatal") not in (None, True, False):
        made.faults.append(f"fatal is {verdict['fatal']!a}; taken as false")


def _exclusion(value: Mapping[str, Any]) -> str:
    own = _own_metadata(value)
    effector = [name for name in _EFFECTOR if name in own]
    if effector:
        return f"effector output, not a generator's work: metadata has {', '.join(effector)}"
    if own.get("generator_error"):
        return "the generator failed: metadata has generator_error"
    return "" if value["content"].strip() else "empty content"
