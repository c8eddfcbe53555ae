"""One line of a chat log: its conversation, the verdict on it, and what else it says of the attempt.

Where a mapping names no field, well-known names are looked for. A verdict is taken only from a field that can mean
nothing else; a score needs a threshold, which only its owner knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from guardlearn.dag.importers.conversation import (
    ANSWER_FIELDS,
    MESSAGES_FIELDS,
    Conversation,
    Turn,
    read_conversation,
)
from guardlearn.dag.importers.fields import MISSING, as_status, as_text, as_time, lookup
from guardlearn.dag.importers.mapping import as_name, as_source, find, verdict_rule
from guardlearn.types import ArtifactStatus, Source

__all__ = ["CHAT_KEYS", "ChatLine", "Stated", "read_line"]

CHAT_KEYS = (
    *("messages", "answer", "accepted", "feedback", "chain", "time", "group", "action_pair", "source", "guard"),
    *("model", "workflow", "workflow_ref", "cause"),
)
"""What a mapping may name; every one has a default."""

_DEFAULTS = {
    "feedback": ("feedback", "verdict.feedback", "guard_result.feedback", "error", "reason"),
    "chain": ("session_id", "conversation_id", "thread_id", "chat_id"),
    "time": ("time", "timestamp", "created_at", "created", "response.created"),
    "model": ("model", "request.model", "response.model"),
    "group": ("group",),
    "action_pair": ("action_pair_id",),
    "workflow": ("workflow_id",),
    "workflow_ref": ("workflow_ref",),
}
_VERDICTS = (
    *("accepted", "passed", "verdict", "verdict.passed", "verdict.accepted", "verdict.status", "guard_result.passed"),
    *("correct", "resolved", "solved", "label"),
)
_STATUS = "status"  # of the whole call in many logs: only a verdict's own words are one
_SCORES = ("reward", "score", "rating", "grade")
_NAMES = {
    "group": "group",
    "action_pair": "action_pair_id",
    "guard": "guard",
    "model": "model",
    "workflow": "workflow_id",
    "workflow_ref": "workflow_ref",
    "cause": "cause",
}


@dataclass(frozen=True, slots=True)
class Stated:
    """What the log says of one attempt."""

    status: ArtifactStatus | None
    """None: it states no verdict."""
    fatal: bool = False
    feedback: str = ""
    fault: str = ""
    """Why what looks like a verdict is none."""


@dataclass(frozen=True, slots=True)
class ChatLine:
    """What a line says."""

    conversation: Conversation
    chain: str
    time: datetime | None
    stated: list[Stated]
    """On each of the conversation's turns, the last one under the line's own verdict."""
    alternatives: list[Stated]
    """On each of its alternatives."""
    item: dict[str, Any]
    """Fields of the last attempt's `RepositoryItem`."""
    metadata: dict[str, Any]
    faults: tuple[str, ...]
    score: str
    """A field that holds a score; "" where there is none."""


def read_line(record: Mapping[str, Any], mapping: Mapping[str, str]) -> ChatLine:
    """Return what a line says.

    Args:
        record: its JSON object.
        mapping: any of CHAT_KEYS → field, as in `log.read_log`.

    Raises:
        ValueError: it is no conversation with an answer, or a name in it cannot be stored.
    """
    messages = (mapping["messages"],) if "messages" in mapping else MESSAGES_FIELDS
    answer = (mapping["answer"],) if "answer" in mapping else ANSWER_FIELDS
    talk = read_conversation(record, messages, answer)
    several = len(talk.alternatives) > 1
    own = [_stated(mapping, [turn.message, turn.choice], turn) for turn in talk.turns[:-1]]
    last = _stated(mapping, _nodes(talk.turns[-1], {} if several else record), talk.turns[-1], whole=not several)
    alternatives = [_stated(mapping, _nodes(turn, {}), turn, whole=False) for turn in talk.alternatives]
    faults: list[str] = []
    if several and _stated(mapping, [record], talk.turns[-1], whole=True).status is not None:
        faults.append(f"which of its {len(talk.alternatives)} answers the verdict is about is not known")
    item: dict[str, Any] = {"source": Source.UNKNOWN}
    for key, name in _NAMES.items():
        value = _value(record, mapping, key)
        if value not in (MISSING, None, ""):
            item[name] = _named(key, value)
    for key, reader in (("time", as_time), ("source", as_source)):
        value = _value(record, mapping, key)
        if value in (MISSING, None, ""):
            continue
        try:
            item[key] = reader(value)
        except ValueError as error:
            faults.append(f"its {key} {_shown(value)} {error}")
    given = record.get("metadata")
    return ChatLine(
        conversation=talk,
        chain=_text_of(_value(record, mapping, "chain")),
        time=item.pop("time", None),
        stated=[*own, last],
        alternatives=alternatives,
        item=item,
        metadata=given if isinstance(given, dict) else {},
        faults=tuple(faults),
        score=next((name for name in _SCORES if lookup(record, name) is not MISSING), ""),
    )


def _nodes(turn: Turn, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [turn.message, turn.choice, record]


def _value(record: Mapping[str, Any], mapping: Mapping[str, str], key: str) -> Any:
    if key in mapping:
        return find(record, key, mapping[key])
    found = (lookup(record, name) for name in _DEFAULTS.get(key, ()))
    return next((value for value in found if value is not MISSING and value is not None), MISSING)


def _stated(
    mapping: Mapping[str, str], nodes: Sequence[Mapping[str, Any]], turn: Turn, *, whole: bool = False
) -> Stated:
    """Return what is said of a turn; `whole`: the last node is the line, whose `status` may be a verdict."""
    status, fatal, fault = None, False, ""
    try:
        verdict = _mapped(mapping["accepted"], nodes) if "accepted" in mapping else _found(nodes, whole)
        if verdict is not None and verdict[0] is not ArtifactStatus.PENDING:
            status, fatal = verdict
    except ValueError as error:
        fault = f"{error}; taken as no verdict"
    found = (_value(node, mapping, "feedback") for node in nodes if node)
    return Stated(status, fatal, _text_of(next((each for each in found if each not in (MISSING, None)), "")), fault)


def _mapped(field: str, nodes: Sequence[Mapping[str, Any]]) -> tuple[ArtifactStatus, bool] | None:
    for node in nodes:
        value = find(node, "accepted", field)
        if value is not MISSING and value is not None:
            try:
                return verdict_rule(field)(value)
            except ValueError as error:
                raise ValueError(f"{field!r} (for accepted) {_shown(value)} {error}") from None
    return None


def _found(nodes: Sequence[Mapping[str, Any]], whole: bool) -> tuple[ArtifactStatus, bool] | None:
    """Return the verdict in fields that are always one; several must agree."""
    found: dict[str, tuple[ArtifactStatus, bool]] = {}
    for node in nodes:
        for name in _VERDICTS:
            value = lookup(node, name)
            if value is MISSING or value is None or isinstance(value, dict | list):
                continue
            try:
                found.setdefault(name, as_status(value))
            except ValueError:
                raise ValueError(
                    f"{name} {_shown(value)} is no verdict; name another field, or the value that accepts, with "
                    f"accepted=FIELD or accepted={name}:VALUE"
                ) from None
    word = nodes[-1].get(_STATUS) if whole else None
    if isinstance(word, str) and not found:
        try:
            return ArtifactStatus(word), False
        except ValueError:
            raise ValueError(
                f"status {word!a} is unknown; known are {', '.join(ArtifactStatus)}, for others write "
                "accepted=status:VALUE"
            ) from None
    verdicts = {name: verdict for name, verdict in found.items() if verdict[0] is not ArtifactStatus.PENDING}
    if len({verdict[0] for verdict in verdicts.values()}) > 1:
        said = ", ".join(f"{name} says {verdict[0]}" for name, verdict in verdicts.items())
        raise ValueError(f"its verdicts differ ({said}); name one of them with accepted=FIELD")
    return next(iter(verdicts.values()), None)


def _named(key: str, value: Any) -> str:
    try:
        return as_name(value)
    except ValueError as error:
        raise ValueError(f"its {key} {_shown(value)} {error}") from None


def _text_of(value: Any) -> str:
    return "" if value is MISSING else as_text(value)


def _shown(value: Any) -> str:
    text = as_text(value)
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")
