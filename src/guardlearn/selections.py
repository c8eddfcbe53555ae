"""How a selection is named, what it selects, what it turns away and why, and what the policies would select instead.

One account for whoever asks: `guardlearn stats --policy NAME` shows it, and an extraction that finds nothing to train
on fails with it. `traces.explain_selection` makes it, because it knows what becomes a trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from guardlearn.dag import ArtifactDAG, QueryPlan
from guardlearn.errors import NoTracesError
from guardlearn.predicates import POLICIES, Predicate, and_, as_predicate, parse, policy, up_to
from guardlearn.types import RepositoryItem, Side

__all__ = [
    "Filter",
    "SelectionReport",
    "account",
    "by_side",
    "no_traces",
    "policy_counts",
    "query_plan",
    "resolve_predicate",
    "to_predicate",
]

Filter = str | Predicate | Callable[[RepositoryItem], Any]
"""A policy's name, a predicate, its text, or a function of an item."""

_REASONS_IN_A_LINE = 6


class SelectionReport(msgspec.Struct, frozen=True, kw_only=True):
    """The account of one selection: every item is selected or turned away, every selected one a trace or dropped."""

    predicate: str
    """Φ as text, relative times made absolute."""
    items: int
    """Items that ℛ held."""
    selected: int
    """items - sum(turned_away.values())."""
    turned_away: dict[str, int]
    """Items by the first condition they fail, in words; in the order of the predicate."""
    traces: dict[Side, int]
    """Selected items that are traces, by the side of their specification."""
    dropped: dict[str, int]
    """Selected items that are no trace, by reason."""
    refusal: str
    """Why an extraction would stop before it looks at items: the sides cannot support a measurement; "" if not."""
    policies: dict[str, int]
    """Items that each policy of Definition 22 selects."""


def to_predicate(predicate: Filter) -> Predicate:
    """Return Φ as a value, whichever way it was named.

    Raises:
        UsageError: a name that is no policy, or malformed text.
    """
    if isinstance(predicate, str):
        return parse(predicate) if "(" in predicate else policy(predicate)
    return as_predicate(predicate)


def resolve_predicate(predicate: Filter) -> Predicate:
    """Return Φ with relative times made absolute as of now (erratum 14); otherwise as `to_predicate`."""
    return to_predicate(predicate).resolve(datetime.now(UTC))


def policy_counts(dag: ArtifactDAG) -> dict[str, int]:
    """Return how many items each policy of Definition 22 selects."""
    return {name: dag.count(policy(name)) for name in POLICIES}


def query_plan(dag: ArtifactDAG, predicate: Filter) -> QueryPlan:
    """Return the query that an extraction of `predicate` would run now, and how the database carries it out."""
    return dag.explain(and_(resolve_predicate(predicate), up_to(dag.last_seq)))


def by_side(counts: Mapping[Side, int]) -> dict[Side, int]:
    """Return the counts that are not 0, in the order of `Side`."""
    return {side: counts[side] for side in Side if counts.get(side)}


def account(
    dag: ArtifactDAG,
    predicate: Predicate,
    seq: int,
    traces: Iterable[Side],
    dropped: Mapping[str, int],
    refusal: str = "",
) -> SelectionReport:
    """Complete what an extraction found with what the predicate turned away before it.

    Args:
        dag: ℛ; it is only read.
        predicate: Φ, resolved.
        seq: how far the extraction looked; later items are not counted.
        traces: the side of each trace that was found.
        dropped: selected items that are no trace, by reason.
        refusal: see `SelectionReport`.
    """
    turned_away = dag.explain_drops(predicate, among=up_to(seq))
    items = dag.count(up_to(seq))
    return SelectionReport(
        predicate=repr(predicate),
        items=items,
        selected=items - sum(turned_away.values()),
        turned_away=turned_away,
        traces=by_side(Counter(traces)),
        dropped=dict(dropped),
        refusal=refusal,
        policies=policy_counts(dag),
    )


def no_traces(target: str, report: SelectionReport) -> NoTracesError:
    """Return the error of a selection that training can do nothing with.

    Args:
        target: what ℛ was opened with.
        report: the account of the selection.
    """
    if not report.items:
        message = f"{target} holds no items; fill it with `guardlearn collect` or `guardlearn import` first"
        return NoTracesError(message, report.policies)
    found = sum(report.traces.values())
    if found:
        what = f"{report.predicate} gives {found} traces, but none on the train side"
    elif report.selected:
        dropped = _listed(report.dropped)
        what = f"{report.predicate} selects {report.selected} of {report.items} items, but none can be used: {dropped}"
    else:
        what = f"{report.predicate} selects none of {report.items} items ({_listed(report.turned_away)})"
    policies = ", ".join(f"{name} {count}" for name, count in report.policies.items())
    return NoTracesError(f"{what}; the policies select: {policies}", report.policies)


def _listed(reasons: Mapping[str, int]) -> str:
    shown = [f"{count} {reason}" for reason, count in list(reasons.items())[:_REASONS_IN_A_LINE]]
    if len(reasons) > _REASONS_IN_A_LINE:
        shown.append(f"{len(reasons) - _REASONS_IN_A_LINE} more reasons")
    return "; ".join(shown)
