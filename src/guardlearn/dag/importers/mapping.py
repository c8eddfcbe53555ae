"""From a line of a user's log to the values of an attempt: the mapping, and errors that say what to pass.

A mapping names the log's field for each key: {"spec": "request.prompt", "artifact": "output", …}. A field that begins
with "=" is no field but the value itself: {"source": "=generator"}.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from guardlearn.dag.importers.fields import MISSING, as_status, as_text, as_time, by_threshold, lookup
from guardlearn.errors import LogError, UsageError
from guardlearn.types import ArtifactStatus, Source

__all__ = [
    "OPTIONAL_KEYS",
    "REQUIRED_KEYS",
    "Line",
    "as_name",
    "as_source",
    "check_mapping",
    "field_of",
    "find",
    "parse_mapping",
    "parse_pairs",
    "read_values",
    "verdict_rule",
]

REQUIRED_KEYS = ("spec", "artifact", "accepted", "chain")
"""What every mapping names: Ψ, a, the verdict, and what the attempts of one chain share (a session id)."""

OPTIONAL_KEYS = (
    *("feedback", "time", "constraints", "group", "action_pair", "source", "guard", "model", "workflow", "id"),
    *("cause", "workflow_ref"),
)

_CHAINING = ("chain", "time", "id")
_LONG = ("spec", "artifact", "feedback", "constraints")
_ITEM_FIELDS = {"spec": "specification", "action_pair": "action_pair_id", "workflow": "workflow_id"}
_SHOWN_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Line:
    """What one line says."""

    chain: str
    time: datetime | None
    """None where the mapping names no field for it."""
    id: str
    """The log's own id; "" without one."""
    item: dict[str, Any]
    """The other fields of `RepositoryItem`."""


def parse_mapping(text: str) -> dict[str, str]:
    """Return the mapping written as "spec=task,artifact=output,accepted=ok,feedback=error,chain=session_id".

    Raises:
        UsageError: a part is not KEY=FIELD, or a key is unknown, missing or given twice.
    """
    mapping = parse_pairs(text)
    check_mapping(mapping)
    return mapping


def parse_pairs(text: str) -> dict[str, str]:
    """Return KEY=FIELD,KEY=FIELD … as a mapping, its keys unchecked.

    Raises:
        UsageError: a part is not KEY=FIELD, or a key is given twice.
    """
    mapping: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, field = (piece.strip() for piece in part.partition("="))
        if not (key and equals and field):
            raise UsageError(f"the mapping's part {part!r} is not KEY=FIELD; write for example spec=task")
        if key in mapping:
            raise UsageError(f"the mapping names {key!r} twice: {mapping[key]!r} and {field!r}; keep one")
        mapping[key] = field
    return mapping


def check_mapping(
    mapping: Mapping[str, str], required: tuple[str, ...] = REQUIRED_KEYS, optional: tuple[str, ...] = OPTIONAL_KEYS
) -> None:
    """Raise `UsageError` unless every required key is there, no unknown one, and the verdict's rule can be read."""
    allowed = (*required, *optional)
    for key in mapping:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"the mapping's key {key!r} is unknown; allowed are {', '.join(allowed)}{hint}")
    missing = [key for key in required if not mapping.get(key)]
    if missing:
        example = ",".join(f"{key}=FIELD" for key in missing)
        raise UsageError(f"the mapping does not say which field is {', '.join(missing)}; add {example}")
    if mapping.get("accepted"):
        verdict_rule(mapping["accepted"])


def read_values(record: dict[str, Any], name: str, mapping: Mapping[str, str], number: int) -> Line:
    """Return what a line says.

    A rejected line must have the `feedback` the mapping names; other optional fields may be absent or null.

    Raises:
        LogError: a field is missing, or its value is not what it must be.
    """
    found = {key: find(record, key, field) for key, field in mapping.items()}
    for key in (*REQUIRED_KEYS, "time"):
        if found.get(key) is MISSING:
            raise _missing(record, name, mapping, number, key)
        if key in {"spec", "chain", "time"} and found.get(key, "") is None:
            raise LogError(f"{name} line {number}: {mapping[key]!r} (for {key}) is null; give it a value", number)
    convert = _Converter(name, number, mapping)
    status, fatal = convert("accepted", found["accepted"], verdict_rule(mapping["accepted"]))
    if status is ArtifactStatus.REJECTED and found.get("feedback") is MISSING:
        raise _missing(record, name, mapping, number, "feedback")
    given = {key: value for key, value in found.items() if value is not MISSING and value is not None}
    said = {key: value for key, value in given.items() if key not in {"accepted", "time", "source"}}
    texts = {key: convert(key, value, as_text if key in _LONG else as_name) for key, value in said.items()}
    item = {_ITEM_FIELDS.get(key, key): text for key, text in texts.items() if key not in _CHAINING and text}
    return Line(
        chain=texts["chain"],
        time=convert("time", given["time"], as_time) if "time" in given else None,
        id=texts.get("id", ""),
        item={
            "specification": "",
            "artifact": "",
            "feedback": "",
            **item,
            "status": status,
            "fatal": fatal,
            "source": convert("source", given["source"], as_source) if "source" in given else Source.UNKNOWN,
        },
    )


@dataclass(slots=True)
class _Converter:
    """Turns a value's `ValueError` into a `LogError` that names the place."""

    name: str
    line: int
    mapping: Mapping[str, str]

    def __call__(self, key: str, value: Any, reader: Callable[[Any], Any]) -> Any:
        try:
            return reader(value)
        except ValueError as error:
            shown = as_text(value)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            field = field_of(key, self.mapping[key])
            message = f"{self.name} line {self.line}: {field!r} (for {key}) {shown!r} {error}"
            raise LogError(message, self.line) from None


_RULE = re.compile(r"(?P<field>.*?)(?P<how>>=|<=|>|<|:)(?P<value>.*)", re.DOTALL)


def verdict_rule(field: str) -> Callable[[Any], tuple[ArtifactStatus, bool]]:
    """Return how a verdict is read: as it is, or by what follows the field's name, "exit_code:0", "reward>=0.5".

    Raises:
        UsageError: a score is to be compared with something that is no number.
    """
    parts = None if field.startswith("=") else _RULE.fullmatch(field)
    if parts is None or parts["how"] == ":":
        wanted = parts["value"] if parts else None
        return lambda value: as_status(value, wanted)
    try:
        limit = float(parts["value"])
    except ValueError:
        raise UsageError(
            f"accepted={field}: {parts['value']!r} is no number; write for example {parts['field']}{parts['how']}0.5"
        ) from None
    return lambda value: by_threshold(value, parts["how"], limit)


def as_name(value: Any) -> str:
    """Return a value as a text that databases take as a name.

    Raises:
        ValueError: it holds NUL or a lone surrogate.
    """
    text = as_text(value)
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValueError("holds NUL or a lone surrogate, which databases refuse in names; remove it")
    return text


def as_source(value: Any) -> Source:
    """Return who wrote an artifact.

    Raises:
        ValueError: it is no `Source`.
    """
    try:
        return Source(as_text(value))
    except ValueError:
        allowed = ", ".join(member.value for member in Source)
        raise ValueError(f"is no source; allowed are {allowed}") from None


def field_of(key: str, field: str) -> str:
    """Return the field to look up for a key: that of `accepted` may carry a rule, "exit_code:0", "reward>=0.5"."""
    parts = _RULE.fullmatch(field) if key == "accepted" and not field.startswith("=") else None
    return parts["field"] if parts else field


def find(record: Mapping[str, Any], key: str, field: str) -> Any:
    """Return what a line has for a key, MISSING where it has nothing."""
    return field[1:] if field.startswith("=") else lookup(record, field_of(key, field))


def _missing(record: dict[str, Any], name: str, mapping: Mapping[str, str], number: int, key: str) -> LogError:
    present = list(_paths(record))
    field = field_of(key, mapping[key])
    near = difflib.get_close_matches(field, present, n=1) or difflib.get_close_matches(key, present, n=1)
    shown = ", ".join(present[:_SHOWN_FIELDS]) + (", ..." if len(present) > _SHOWN_FIELDS else "")
    advice = f"pass {key}={near[0]}" if near else f"pass {key}=FIELD with one of them"
    return LogError(
        f"{name} line {number}: no field {field!r} (for {key}); the line has {shown or 'no field'}; "
        f"{advice}, or complete the line",
        number,
    )


def _paths(record: Mapping[str, Any], prefix: str = "", depth: int = 3) -> Iterator[str]:
    for field, value in record.items():
        path = f"{prefix}{field}"
        if isinstance(value, Mapping) and value and depth > 1:
            yield from _paths(value, f"{path}.", depth - 1)
        else:
            yield path
