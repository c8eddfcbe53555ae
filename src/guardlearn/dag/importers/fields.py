"""Values of a foreign log line: where a field is, and what its value means.

Users' logs spell verdicts and times in many ways; what is unmistakable is taken, anything else is a `ValueError`
whose text says what is allowed. Who calls adds file, line and field.
"""

from __future__ import annotations

import email.utils
import json
import math
import operator
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from guardlearn.types import ArtifactStatus, utc

__all__ = ["MISSING", "as_status", "as_text", "as_time", "by_threshold", "lookup"]

MISSING = object()
"""What `lookup` returns where there is no such field; None is a field that holds null."""

_PASSED = frozenset(
    "true t yes y 1 ok okay pass passed passing success succeeded successful accept accepted approve approved valid "
    "correct solved resolved green ⊤".split()
)
_FAILED = frozenset(
    "false f no n 0 fail failed failing failure reject rejected refused denied invalid incorrect wrong unsolved "
    "unresolved red ⊥".split()
)
_FATAL = frozenset(["fatal", "⊥fatal", "rejected_fatal"])
_NO_VERDICT = frozenset(["", "pending", "none", "null", "unknown", "no verdict", "no_verdict", "skipped"])
_OTHER_FORMATS = ("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M:%S.%f", "%Y/%m/%d %H:%M", "%d/%b/%Y:%H:%M:%S %z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lookup(record: Mapping[str, Any], path: str) -> Any:
    """Return the value at `path` in a JSON object, or MISSING.

    Args:
        record: one line of the log.
        path: a field's name, or names joined by dots into nested objects and lists: "choices.0.message.content".
            A field whose own name holds dots wins.
    """
    if path in record:
        return record[path]
    if "." not in path:
        return MISSING
    value: Any = record
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def as_text(value: Any) -> str:
    """Return a JSON value as text: strings as they are, null as "", structures as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def as_status(value: Any, accepted_value: str | None = None) -> tuple[ArtifactStatus, bool]:
    """Return a verdict and whether it was fatal; null, "" and "pending" are "no verdict" (PENDING).

    Args:
        value: true/false, 1/0, or a word: passed, failed, ok, success, accepted, rejected …
        accepted_value: if given, exactly this value accepts and every other one rejects ("0" for exit codes).

    Raises:
        ValueError: the value is none of these.
    """
    word = as_text(value).strip().lower().replace("-", "_")
    if accepted_value is not None and value is not None:
        accepted = word == accepted_value.strip().lower().replace("-", "_")
        return (ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED), False
    if isinstance(value, float) and value in {0.0, 1.0}:
        word = str(int(value))
    if word in _PASSED:
        return ArtifactStatus.ACCEPTED, False
    if word in _FAILED or word in _FATAL:
        return ArtifactStatus.REJECTED, word in _FATAL
    if word in _NO_VERDICT:
        return ArtifactStatus.PENDING, False
    if word == ArtifactStatus.SUPERSEDED.value:
        return ArtifactStatus.SUPERSEDED, False
    raise ValueError(
        "is no verdict; allowed are true/false, 1/0, words like passed/failed, accepted/rejected, ok, success, "
        "and null or pending for no verdict; for another value that means accepted write accepted=FIELD:VALUE, for a "
        "score accepted=FIELD>=NUMBER"
    )


def by_threshold(value: Any, comparison: str, limit: float) -> tuple[ArtifactStatus, bool]:
    """Return the verdict that a number gives, and that it is not fatal; null and "" are "no verdict".

    Args:
        value: a score or reward.
        comparison: ">=", ">", "<=" or "<": what accepts.
        limit: what it is compared with.

    Raises:
        ValueError: the value is no number.
    """
    if value is None or value == "":
        return ArtifactStatus.PENDING, False
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"is no number, so it cannot be compared with {limit:g}")
    accepted = _COMPARISONS[comparison](number, limit)
    return (ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED), False


_COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def as_time(value: Any) -> datetime:
    """Return a time in UTC; one without a zone is taken as UTC.

    Args:
        value: ISO 8601, RFC 2822, `2024/01/31 12:00:00`, or a number: seconds, milliseconds, microseconds or
            nanoseconds since 1970, told apart by size.

    Raises:
        ValueError: the value is no time.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text)
        except ValueError:
            return _time_of_text(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(_NO_TIME)
    magnitude = abs(value)
    per_second = next((unit for limit, unit in ((1e11, 1), (1e14, 1e3), (1e17, 1e6)) if magnitude < limit), 1e9)
    try:
        return _EPOCH + timedelta(microseconds=round(value * 1e6 / per_second))
    except OverflowError:
        raise ValueError(_NO_TIME) from None


_NO_TIME = (
    "is no time; allowed are ISO 8601 (2024-01-31T12:00:00Z), RFC 2822, 2024/01/31 12:00:00, "
    "and seconds, ms, us or ns since 1970"
)


def _time_of_text(text: str) -> datetime:
    try:
        return utc(text)
    except ValueError:
        pass
    for pattern in _OTHER_FORMATS:
        try:
            return utc(datetime.strptime(text, pattern))
        except ValueError:
            continue
    try:
        return utc(email.utils.parsedate_to_datetime(text))
    except (ValueError, TypeError, IndexError):
        raise ValueError(_NO_TIME) from None
