"""What ℛ shows of each adapter, beside what the evidence promised that it was promoted on.

An adapter is judged by the chains that it began: the share of first attempts that passed, a mean of group means as in
an evaluation, with its interval. Only where that interval lies wholly below the interval of the evidence is it a
warning, and even then the adapter need not have become worse: the specifications people ask for are another mix than
the held-out ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from guardlearn import statistics
from guardlearn.dag import rounds
from guardlearn.dag.breakdown import BreakdownRow, GroupRow, breakdown, by_group
from guardlearn.dag.rounds import State
from guardlearn.predicates import everything

__all__ = ["AdapterFigures", "Promise", "figures_of_adapters", "promises"]


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """First attempts that pass, as the evidence had it that an adapter was promoted on."""

    learner: str
    round: int
    rate: float
    low: float | None
    high: float | None


class AdapterFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What ℛ shows of one adapter: all of it, or one week."""

    row: BreakdownRow
    """Counts, and the estimates of all chains pooled."""
    groups: int
    """Groups in which an attempt got a verdict."""
    first_rate: float | None
    """Share of first attempts that passed, a mean of group means."""
    first_low: float | None
    first_high: float | None
    expected_attempts_low: float | None
    expected_attempts_high: float | None
    """Interval by group of `row.expected_attempts`."""
    promise: Promise | None = None
    """None: ℛ holds no round that promoted it."""
    warning: str = ""
    """In one line, where it fell below its promise; "": it did not, or nothing can be said."""


def promises(connection: Connection) -> dict[str, Promise]:
    """Return what the evidence of each promoted adapter said, by the digest of its weights.

    Args:
        connection: one state of ℛ.
    """
    found: dict[str, Promise] = {}
    for promotion in rounds.read_promotions(connection):
        if not promotion.adapter_digest or promotion.adapter_digest in found:
            continue  # the bare base, or back to what was live before
        for step in rounds.read(connection, promotion.learner, promotion.round):
            rate = _first_attempt(step.details) if step.state is State.MEASURED else {}
            if rate.get("rate") is not None:
                found[promotion.adapter_digest] = Promise(
                    learner=promotion.learner,
                    round=promotion.round,
                    rate=rate["rate"],
                    low=rate.get("low"),
                    high=rate.get("high"),
                )
    return found


def figures_of_adapters(connection: Connection, *, by_week: bool = False) -> list[AdapterFigures]:
    """Return what ℛ shows of each adapter; a chain belongs to the adapter of its first attempt.

    Counted in the database; a number a group and attempt is held here for one adapter at a time.

    Args:
        connection: one state of ℛ.
        by_week: a row a week in which chains began, in order of time; nothing is promised of a week.
    """
    axis = "adapter,week" if by_week else "adapter"
    rows = breakdown(connection, axis, everything())
    promised = {} if by_week else promises(connection)
    intervals: dict[tuple[str, str], dict[str, Any]] = {}
    for key, groups in itertools.groupby(by_group(connection, axis), key=lambda group: (group.value, group.week)):
        intervals[key] = _intervals(list(groups))
    nothing = _intervals([])
    return [
        _warned(
            AdapterFigures(row=row, promise=promised.get(row.value), **intervals.get((row.value, row.week), nothing))
        )
        for row in rows
    ]


def _intervals(groups: Sequence[GroupRow]) -> dict[str, Any]:
    """Return the estimates of one row that take groups as the unit."""
    # two observations stand for many: a group with one alone is told apart, nothing else is
    firsts = {
        number: [group.accepted[1] / group.judged[1]] * min(2, group.judged[1])
        for number, group in enumerate(groups)
        if group.judged.get(1)
    }
    rate = statistics.clustered_mean(firsts)
    attempts = range(1, max((max(group.judged) for group in groups), default=0) + 1)
    at_risk = [
        [group.judged.get(k, 0) + sum(n for at, n in group.ended.items() if at < k) for k in attempts]
        for group in groups
    ]
    solved = [[group.accepted.get(k, 0) for k in attempts] for group in groups]
    survival = statistics.attempts_of_counts(at_risk, solved)
    expected = survival.expected_attempts if survival else None
    return {
        "groups": len(groups),
        "first_rate": rate.rate,
        "first_low": rate.low,
        "first_high": rate.high,
        "expected_attempts_low": expected.low if expected else None,
        "expected_attempts_high": expected.high if expected else None,
    }


def _warned(figures: AdapterFigures) -> AdapterFigures:
    row, promise = figures.row, figures.promise
    if promise is None or promise.low is None or promise.high is None or figures.first_high is None:
        return figures
    if figures.first_low is None or row.first_rate is None or figures.first_high >= promise.low:
        return figures
    warning = (
        f"adapter {row.value[:12]} passes first time in {_percent(row.first_rate)} % of {row.first_judged} chains "
        f"({_percent(figures.first_low)}-{_percent(figures.first_high)} % by group), below what its evidence promised "
        f"({_percent(promise.low)}-{_percent(promise.high)} %); the specifications may be another mix"
    )
    return msgspec.structs.replace(figures, warning=warning)


def _first_attempt(details: dict[str, Any]) -> dict[str, Any]:
    """Return the candidate's first-attempt rate of a measurement; {} where nothing was sampled."""
    candidate = (details.get("evidence") or {}).get("candidate") or {}
    found: dict[str, Any] = candidate.get("first_attempt") or {}
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
