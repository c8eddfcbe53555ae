"""One object of an AtomicGuard store (2.3.0 or 2.39.1): its JSON, and the item it becomes.

Nothing is guessed: what the object does not say stays unknown and is named, what is odd is a fault. Definition 10;
errata 6b, 8, 10-12 and 15.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from guardlearn.dag.importers.fields import as_text
from guardlearn.dag.rows import storable
from guardlearn.digests import digest_json
from guardlearn.types import ArtifactStatus, RepositoryItem, Source, utc

__all__ = [
    "Converted",
    "amendment_key",
    "convert",
    "decode",
    "dependencies",
    "history",
    "parse",
    "read_bytes",
    "time_of",
]

_MAPPED = frozenset(
    "artifact_id workflow_id content previous_attempt_id action_pair_id created_at status guard_result feedback "
    "context metadata source workflow_ref".split()
)
_MAPPED_CONTEXT = frozenset("workflow_id specification constraints feedback_history".split())
_MAPPED_VERDICT = frozenset("passed feedback fatal guard_name".split())
_EMPTY = (str, list, dict)
_PENDING, _ACCEPTED, _REJECTED = ArtifactStatus.PENDING, ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED
_UNKNOWN = Source.UNKNOWN
_STATUSES: dict[Any, ArtifactStatus] = {member.value: member for member in ArtifactStatus}
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
_EFFECTOR = ("exit_code", "command", "workflow_status")


@dataclass(slots=True)
class Converted:
    """An item with what its object could not say."""

    item: RepositoryItem
    faults: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    cited: dict[str, list[str]] = field(default_factory=dict)
    """Ids of other attempts by what they are to this one: history, dependencies."""
    history: list[tuple[str, str]] = field(default_factory=list)
    """H: id and feedback."""
    exclude: str = ""
    """Why it is not a generator's work to learn from; "" where it is."""


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        file = os.open(path, _READ)
        try:
            size = os.fstat(file).st_size
            found = os.read(file, size + 1)
            while len(found) < size and (more := os.read(file, size)):
                found += more
        finally:
            os.close(file)
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    return found


def decode(raw: bytes) -> tuple[dict[str, Any], bool]:
    """Return a file's JSON object, lone surrogates kept, and whether databases take every text in it.

    Raises:
        ValueError: it is none (one being written is cut short).
    """
    try:
        value, plain = msgspec.json.decode(raw), b"\\u0000" not in raw
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # it refuses lone surrogates and NaN
        try:
            value, plain = json.loads(raw), False
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"it is not whole JSON ({error}); if it is being written, import again") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value, plain


def parse(raw: bytes) -> tuple[dict[str, Any], bool]:
    """Return an artifact's object, and whether databases take every text in it; see `decode`.

    Raises:
        ValueError: see `decode`; or it lacks id or content.
    """
    value, plain = decode(raw)
    for name in ("artifact_id", "content"):
        if not isinstance(value.get(name), str):
            raise ValueError(f"it has no text {name}")
    if not value["artifact_id"] or not storable(value["artifact_id"]):
        raise ValueError("its artifact_id is empty, or holds NUL or a lone surrogate")
    return value, plain


def history(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return H as the object holds it: (artifact_id, feedback) pairs (erratum 9)."""
    entries = _context(value).get("feedback_history")
    if not entries or not isinstance(entries, list):
        return []
    return [
        (as_text(entry.get("artifact_id")), as_text(entry.get("feedback")))
        for entry in entries
        if isinstance(entry, dict)
    ]


def dependencies(value: Mapping[str, Any]) -> list[str]:
    """Return the ids of the artifacts that the attempt built on."""
    context = _context(value)
    found = context.get("dependency_artifacts") or context.get("dependency_ids")
    if not found:
        return []
    if isinstance(found, dict):
        found = list(found.values())
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def time_of(value: object) -> datetime | None:
    """Return a stored time in UTC, a naive one taken as UTC (erratum 12); None where it is none."""
    try:
        return utc(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def amendment_key(parent_id: Any, content: Any) -> str:
    """Return what an amendment and the item made of it have in common."""
    return digest_json([parent_id or "", content])


def convert(
    value: Mapping[str, Any],
    *,
    parent_id: str | None,
    created_at: datetime,
    store: str,
    human: bool = False,
    plain: bool = False,
) -> Converted:
    """Return the item that an object becomes.

    Args:
        value: the object, as `parse` returns it.
        parent_id: the attempt it retries, by the provenance that the reader chose.
        created_at: its time, or the best that is known of it.
        store: folder of its DAG, kept in the metadata.
        human: an amendment holds this very content.
        plain: databases take every text in `value`, so none needs to be looked through.

    Raises:
        ValueError: a name in it holds what databases refuse.
    """
    made = Converted(None)  # type: ignore[arg-type]  # filled below
    verdict, context, told = _verdict(value), _context(value), history(value)
    names = (
        as_text(value.get("action_pair_id")) or "default",
        as_text(value.get("workflow_id") or context.get("workflow_id")),
        as_text(value.get("workflow_ref")),
        as_text(verdict.get("guard_name")),
        parent_id or "",
    )
    if not plain:
        _check_names(names)
    status = _status(value, verdict, made)
    made.item = RepositoryItem(
        id=value["artifact_id"],
        action_pair_id=names[0],
        workflow_id=names[1],
        workflow_ref=names[2],
        guard=names[3],
        artifact=value["content"],
        specification=as_text(context.get("specification")),
        constraints=as_text(context.get("constraints")),
        status=status,
        parent_id=parent_id,
        source=_source(value, human, made),
        feedback=as_text(verdict.get("feedback")),
        cause=_cause(verdict) if status is _REJECTED else "",
        fatal=verdict.get("fatal") is True,
        created_at=created_at,
        metadata=_metadata(value, verdict, context, told, store),
    )
    _note_unknown(verdict, made, plain)
    made.history = told
    made.cited = {"history": [name for name, _ in told], "dependencies": dependencies(value)}
    made.exclude = _exclusion(value)
    return made


def _check_names(names: tuple[str, ...]) -> None:
    kinds = ("action_pair_id", "workflow_id", "workflow_ref", "guard", "previous_attempt_id")
    for kind, name in zip(kinds, names, strict=True):
        if not storable(name):
            raise ValueError(f"its {kind} holds NUL or a lone surrogate, which databases refuse in names")


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
    judged = (_ACCEPTED if passed else _REJECTED) if passed in (0, 1) else None
    if word is None:
        made.faults.append(f"it has no status; taken as its guard said: {judged or _PENDING}")
        return judged or _PENDING
    try:
        status = _STATUSES.get(word) if isinstance(word, str) else None  # a call of the enum costs much more
        status = status or ArtifactStatus(word)
    except ValueError:
        made.faults.append(f"status {word!a} is unknown; taken as pending")
        return _PENDING
    if status is not judged and judged is not None and (status is _ACCEPTED or status is _REJECTED):
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
            return _UNKNOWN
    return Source.HUMAN if human or value["artifact_id"].startswith("human-") else _UNKNOWN


def _cause(verdict: Mapping[str, Any]) -> str:
    """Return the name of the first guard within a composite one that failed."""
    parts = verdict.get("sub_results")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and part.get("passed") is False:
            name = as_text(part.get("guard_name"))
            return name if storable(name) else ""
    return ""


def _metadata(
    value: Mapping[str, Any],
    verdict: Mapping[str, Any],
    context: Mapping[str, Any],
    told: list[tuple[str, str]],
    store: str,
) -> dict[str, Any]:
    """Return the object's metadata (tokens …), and under "atomicguard" every field that has no column."""
    rest = {name: each for name, each in value.items() if name not in _MAPPED}
    for name, each in context.items():
        if name not in _MAPPED_CONTEXT:
            rest[name] = each
    built_on = context.get("dependency_artifacts")
    if isinstance(built_on, dict) and list(built_on) != sorted(built_on):
        rest["dependency_order"] = list(built_on)  # in which its prompt held them; ℛ sorts the names of metadata
    rest["sub_results"] = rest["guard_metadata"] = None
    for name, each in verdict.items():
        if name not in _MAPPED_VERDICT:
            rest["guard_metadata" if name == "metadata" else name] = each
    unseen = bool(told) and not value.get("previous_attempt_id")
    if unseen:
        rest["feedback_history"] = [{"artifact_id": name, "feedback": said} for name, said in told]
    inner = {name: each for name, each in rest.items() if each or not (each is None or isinstance(each, _EMPTY))}
    inner["store"] = store
    own = _own_metadata(value)
    return {**own, "h_unseen": True, "atomicguard": inner} if unseen else {**own, "atomicguard": inner}


def _note_unknown(verdict: Mapping[str, Any], made: Converted, plain: bool) -> None:
    item, unknown = made.item, made.unknown
    if item.source is _UNKNOWN:
        unknown.append("source")
    if not item.workflow_id:
        unknown.append("workflow")
        made.faults.append("it has no workflow_id (an old format)")
    if not item.workflow_ref:
        unknown.append("workflow_ref")
    unknown.append("model")  # no version of AtomicGuard stores which model answered
    if not item.specification or item.specification.isspace():
        unknown.append("specification")
    if not item.guard:
        unknown.append("guard")
    if item.status is _PENDING:
        unknown.append("verdict")
    elif item.status is _REJECTED and not item.feedback:
        unknown.append("feedback")
    if "h_unseen" in item.metadata:
        unknown.append("history shown to the generator")
    if not (plain or storable(item.artifact + item.feedback + item.specification + item.constraints)):
        names = ("artifact", "feedback", "specification", "constraints")
        odd = ", ".join(name for name in names if not storable(getattr(item, name)))
        made.faults.append(f"its {odd} holds NUL or lone surrogates: kept as it is, but no trace is made of it")
    if verdict.get("fatal") not in (None, True, False):
        made.faults.append(f"fatal is {verdict['fatal']!a}; taken as false")


def _exclusion(value: Mapping[str, Any]) -> str:
    own = _own_metadata(value)
    if not own.keys().isdisjoint(_EFFECTOR):
        named = ", ".join(name for name in _EFFECTOR if name in own)
        return f"effector output, not a generator's work: metadata has {named}"
    if own.get("generator_error"):
        return "the generator failed: metadata has generator_error"
    content = value["content"]
    return "empty content" if not content or content.isspace() else ""
