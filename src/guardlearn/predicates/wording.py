"""What a comparison says, in words: how an item that passes it is described, and how one that fails it.

Where `rejected_ancestors >= 1` holds, the item has "a rejected attempt before it"; where not, "no rejected
attempt before it".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["NAMED", "failing", "holding"]

NAMED = ("status", "source", "side")
"""Fields of few values: how an item fails them is said with the value that it has."""

_STATUSES = {
    "accepted": "accepted",
    "rejected": "rejected",
    "pending": "no verdict yet",
    "superseded": "superseded by a later artifact",
}
_NOUNS = {
    "id": "item",
    "action_pair_id": "action pair",
    "workflow_id": "workflow",
    "workflow_ref": "workflow reference",
    "guard": "guard",
    "guard_version": "guard version",
    "model": "model",
    "adapter": "adapter",
    "group": "group",
}
_FLAGS = {
    "excluded": ("not excluded from training", "excluded from training"),
    "reviewed": ("not reviewed", "reviewed"),
    "stale": ("its guard has not changed since", "its guard has changed since"),
    "redacted": ("not redacted", "redacted"),
    "broken": ("in a whole chain", "in a broken chain"),
}
"""Each flag when it is not set, and when it is."""

_LISTED = 3


def holding(field: str, test: str, value: Any) -> str:
    """Describe an item that passes the comparison.

    Args:
        field: a key of `expression.FIELDS`.
        test: "in", ">=", "<=", ">" or "<".
        value: what the field is compared with; a tuple for "in".
    """
    if field == "rejected_ancestors":
        if test == ">=":
            return "a rejected attempt before it" if value == 1 else f"at least {value} rejected attempts before it"
        return "no rejected attempt before it" if value == 0 else f"at most {value} rejected attempts before it"
    if field == "seq":
        return f"committed after seq {value}" if test == ">" else f"committed up to seq {value}"
    if field == "created_at":
        return f"created {'after' if test == '>' else 'before'} {value.isoformat()}"
    if field in _FLAGS:
        return _FLAGS[field][bool(value[0])]
    if field in NAMED:
        return " or ".join(_state(field, str(each)) for each in value)
    return f"{_NOUNS[field]} {_either(value)}"


def failing(field: str, test: str, value: Any, actual: str | None) -> str:
    """Describe an item that fails the comparison.

    Args:
        field: a key of `expression.FIELDS`.
        test: "in", ">=", "<=", ">" or "<".
        value: what the field is compared with; a tuple for "in".
        actual: what the item has there, for the fields in NAMED; else not looked at.
    """
    if field == "rejected_ancestors":
        if test == ">=":
            return "no rejected attempt before it" if value == 1 else f"fewer than {value} rejected attempts before it"
        return "a rejected attempt before it" if value == 0 else f"more than {value} rejected attempts before it"
    if field == "seq":
        return f"committed up to seq {value}" if test == ">" else f"committed after seq {value}"
    if field == "created_at":
        return f"created {'at or before' if test == '>' else 'at or after'} {value.isoformat()}"
    if field in _FLAGS:
        return _FLAGS[field][not value[0]]
    if field in NAMED:
        return _state(field, str(actual))
    return f"another {_NOUNS[field]} than {_either(value)}"


def _state(field: str, value: str) -> str:
    if field == "status":
        return _STATUSES.get(value, value)
    return f"written by source {value}" if field == "source" else f"on the side {value}"


def _either(values: Sequence[Any]) -> str:
    shown = [repr(str(value)) for value in values[:_LISTED]]
    if len(values) > _LISTED:
        shown.append(f"{len(values) - _LISTED} more")
    return " or ".join(shown)
