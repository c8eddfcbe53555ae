"""The words of Φ: each returns a frozen predicate, and each reads like its definition.

    refinement() & source("generator") & retries(at_least=3) & created_after("2026-10-01")

Definitions 18, 21 and 22.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

from guardlearn.errors import UsageError
from guardlearn.predicates.expression import Comparison, Predicate, Satisfies, Word
from guardlearn.types import ArtifactStatus, RepositoryItem, Side, Source, utc

__all__ = [
    "VOCABULARY",
    "action_pair",
    "adapter",
    "after",
    "broken",
    "created_after",
    "created_before",
    "everything",
    "excluded",
    "fresh",
    "group",
    "guard",
    "item",
    "model",
    "recent",
    "redacted",
    "refinement",
    "retries",
    "reviewed",
    "satisfies",
    "side",
    "source",
    "status",
    "up_to",
    "workflow",
    "workflow_ref",
]

_LARGEST = 2**63 - 1  # what a database's integer holds


def everything() -> Predicate:
    """Select every item."""
    return Word("everything")


def status(*statuses: ArtifactStatus | str) -> Predicate:
    """Select items whose current status is one of `statuses` (Φ_status)."""
    return _one_of("status", "status", _members("status", ArtifactStatus, statuses))


def source(*sources: Source | str) -> Predicate:
    """Select by who wrote the artifact (Φ_source); "GENERATOR" and "generated" are `generator`."""
    return _one_of("source", "source", _members("source", Source, sources))


def action_pair(*ids: str) -> Predicate:
    """Select by action pair (Φ_action_pair, Definition 6)."""
    return _one_of("action_pair", "action_pair_id", _texts("action_pair", ids))


def workflow(*ids: str) -> Predicate:
    """Select by workflow."""
    return _one_of("workflow", "workflow_id", _texts("workflow", ids))


def workflow_ref(*refs: str) -> Predicate:
    """Select by W_ref, the digest of the workflow (Definition 11)."""
    return _one_of("workflow_ref", "workflow_ref", _texts("workflow_ref", refs))


def guard(name: str, version: str | None = None) -> Predicate:
    """Select by the guard that judged, and its version if given."""
    name, *_ = _texts("guard", (name,))
    if version is None:
        return Word("guard", (name,), (), (Comparison("guard", "in", (name,)),))
    (version,) = _texts("guard", (version,))
    comparisons = (Comparison("guard", "in", (name,)), Comparison("guard_version", "in", (version,)))
    return Word("guard", (name,), (("version", version),), comparisons)


def model(*names: str) -> Predicate:
    """Select by base model; "" is unknown."""
    return _one_of("model", "model", _texts("model", names))


def adapter(*digests: str) -> Predicate:
    """Select by the adapter's digest; "" is the bare base."""
    return _one_of("adapter", "adapter", _texts("adapter", digests))


def group(*names: str) -> Predicate:
    """Select by the group given with the specification; items without one belong to none."""
    names = _texts("group", names)
    if "" in names:
        raise UsageError("group('') names no group: items without a group belong to none; give a group's name")
    return _one_of("group", "group", names)


def side(*sides: Side | str) -> Predicate:
    """Select by the side that Ψ is on."""
    return _one_of("side", "side", _members("side", Side, sides))


def item(*ids: str) -> Predicate:
    """Select items by id."""
    return _one_of("item", "id", _texts("item", ids))


def refinement() -> Predicate:
    """Definition 21, Φ_refinement: accepted, with at least one rejected attempt before it in its chain."""
    accepted = Comparison("status", "in", (ArtifactStatus.ACCEPTED,))
    return Word("refinement", (), (), (accepted, Comparison("rejected_ancestors", ">=", 1)))


def retries(at_least: int | None = None, at_most: int | None = None) -> Predicate:
    """Select by the number of REJECTED attempts before the item in its chain (Φ_retry_count)."""
    if at_least is None and at_most is None:
        raise UsageError("retries() needs a bound: write retries(at_least=3), retries(at_most=2) or both")
    options, comparisons = [], []
    for name, test, bound in (("at_least", ">=", at_least), ("at_most", "<=", at_most)):
        if bound is not None:
            options.append((name, _whole("retries", bound)))
            comparisons.append(Comparison("rejected_ancestors", test, bound))  # type: ignore[arg-type]
    return Word("retries", (), tuple(options), tuple(comparisons))


def created_after(moment: datetime | str) -> Predicate:
    """Select items created later than `moment` (Φ_timestamp); a naive time is UTC, a string is ISO 8601."""
    return _by_time("created_after", ">", moment)


def created_before(moment: datetime | str) -> Predicate:
    """Select items created earlier than `moment`; a naive time is UTC, a string is ISO 8601."""
    return _by_time("created_before", "<", moment)


def recent(days: float = 30) -> Predicate:
    """Select items of the last `days` days; an extraction turns it into `created_after` once (erratum 14)."""
    if isinstance(days, bool) or not isinstance(days, int | float) or not math.isfinite(days) or days <= 0:
        raise UsageError(f"recent(days={days!r}): days must be a number above 0")
    return Word("recent", (), (("days", days),), (), float(days))


def after(seq: int) -> Predicate:
    """Select items that ℛ committed after `seq` (a training checkpoint, Definition 14)."""
    return Word("after", (_whole("after", seq),), (), (Comparison("seq", ">", seq),))


def up_to(seq: int) -> Predicate:
    """Select items that ℛ committed up to and including `seq`."""
    return Word("up_to", (_whole("up_to", seq),), (), (Comparison("seq", "<=", seq),))


def excluded() -> Predicate:
    """Select items that somebody excluded from training."""
    return _flag("excluded", "excluded")


def reviewed() -> Predicate:
    """Select items that somebody reviewed."""
    return _flag("reviewed", "reviewed")


def fresh() -> Predicate:
    """Select items whose guard has not changed since it judged them."""
    return _flag("fresh", "stale", False)


def redacted() -> Predicate:
    """Select items whose texts were blanked."""
    return _flag("redacted", "redacted")


def broken() -> Predicate:
    """Select items of chains in which an ancestor is missing or the links run in a circle."""
    return _flag("broken", "broken")


def satisfies(function: Callable[[RepositoryItem], Any]) -> Predicate:
    """Select what a function of an item says; the way out of the vocabulary: it has no text form and no SQL."""
    if isinstance(function, Predicate) or not callable(function):
        raise UsageError(f"satisfies({function!r}): give a function of an item")
    return Satisfies(function)


VOCABULARY: dict[str, Callable[..., Predicate]] = {
    word.__name__: word
    for word in (
        *(everything, status, source, action_pair, workflow, workflow_ref, guard, model, adapter, refinement, retries),
        *(created_after, created_before, recent, group, side, item, after, up_to),
        *(excluded, reviewed, fresh, redacted, broken, satisfies),
    )
}
"""Every word by name: what the text form knows."""


def _one_of(word: str, field: str, values: tuple[Any, ...]) -> Predicate:
    return Word(word, values, (), (Comparison(field, "in", values),))


def _flag(word: str, field: str, value: bool = True) -> Predicate:
    return Word(word, (), (), (Comparison(field, "in", (value,)),))


def _texts(word: str, values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise UsageError(f"{word}() needs at least one name, as in {word}('a', 'b')")
    for value in values:
        if not isinstance(value, str):
            raise UsageError(f"{word}({value!r}): give strings")
    return tuple(dict.fromkeys(values))


def _members(word: str, kind: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise UsageError(f"{word}() needs at least one of: {', '.join(kind)}")
    try:
        return tuple(dict.fromkeys(kind(value) for value in values))
    except ValueError as error:
        raise UsageError(f"{word}: {error}; allowed are {', '.join(kind)}") from error


def _whole(word: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise UsageError(f"{word}: {value!r} must be a whole number from 0 to {_LARGEST}")
    return value


def _by_time(word: str, test: Any, moment: datetime | str) -> Predicate:
    try:
        cutoff = utc(moment)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"{word}: {moment!r} is no time; write ISO 8601, as in {word}('2026-10-01') or '2026-10-01T12:00:00+02:00'"
        ) from error
    return Word(word, (cutoff.isoformat(),), (), (Comparison("created_at", test, cutoff),))
