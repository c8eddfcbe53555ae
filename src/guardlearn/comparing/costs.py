"""What an accepted artifact costs, and the number of tasks after which a round of learning has paid.

A task is one chain: all its attempts are paid, accepted or not, and chains that end unsolved are paid too. A saving is
what a task costs less with the candidate than with the base. That the candidate also solves more tasks is not counted,
which errs against the round; where it solves fewer, a saving means little, and `Cost` (per accepted artifact) shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import msgspec

from guardlearn import statistics
from guardlearn.evidence import GroupCost, Performance, Spent

__all__ = ["Cost", "Payback", "Saving", "cost", "pays_after", "tasks_until_paid"]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one accepted artifact took."""

    accepted: int
    """Chains that were solved."""
    completion_tokens: float | None
    """Tokens written; None: nothing was accepted, or nobody counted."""
    prompt_tokens: float | None
    """Tokens read."""
    seconds: float | None
    """Of writing; the guard's time is not in it."""


class Saving(msgspec.Struct, frozen=True, kw_only=True):
    """What a task costs less, and when that has paid what was spent."""

    spent: float
    per_task: float
    """Base minus candidate, a mean of group means; below 0 a task costs more."""
    low: float | None
    high: float | None
    """95 % interval by group; None: fewer than two groups."""
    tasks: int | None
    """Smallest number of tasks whose savings reach what was spent; None: never."""
    tasks_low: int | None
    """Where the saving is as large as `high`."""
    tasks_high: int | None
    """Where it is as small as `low`; None: never, or there is no interval."""


class Payback(msgspec.Struct, frozen=True, kw_only=True):
    """After how many tasks a round has paid."""

    seconds: Saving | None
    """None: not measured for both."""
    tokens: Saving | None
    """Read and written; None: not counted for both, or what was spent is not known."""


def cost(performance: Performance) -> Cost:
    """Return what an accepted artifact took: everything paid for all chains, divided by those that were solved."""
    accepted = performance.outcomes.get("solved", 0)

    def each(total: float | None) -> float | None:
        return total / accepted if total is not None and accepted else None

    return Cost(
        accepted=accepted,
        completion_tokens=each(performance.completion_tokens or None),  # 0: a server counted none
        prompt_tokens=each(performance.prompt_tokens),
        seconds=each(performance.seconds),
    )


def tasks_until_paid(spent: float, saved: float) -> int | None:
    """Return the smallest n of at least 0 with n * saved >= spent, exactly; None where there is none.

    Args:
        spent: what has to come back; finite.
        saved: by each task; finite, below 0 where a task costs more.
    """
    if spent <= 0:
        return 0
    return None if saved <= 0 else math.ceil(Fraction(spent) / Fraction(saved))


def pays_after(costs: Sequence[GroupCost], *, spent_seconds: float, spent_tokens: float | None = None) -> Payback:
    """Return after how many tasks the savings outweigh what a round spent.

    The interval is a t interval over group means of the saving; the number of tasks falls as the saving rises, so its
    interval is that of the saving turned around.

    Args:
        costs: `Evidence.costs`: what the chains of each group cost with the base and with the candidate.
        spent_seconds: training and measuring, >= 0.
        spent_tokens: read and written by both, >= 0; None: not known.
    """
    return Payback(
        seconds=_saving([(one.chains, _seconds(one.base), _seconds(one.candidate)) for one in costs], spent_seconds),
        tokens=_saving([(one.chains, _tokens(one.base), _tokens(one.candidate)) for one in costs], spent_tokens),
    )


def _saving(groups: Sequence[tuple[int, float | None, float | None]], spent: float | None) -> Saving | None:
    means = [(before - after) / chains for chains, before, after in groups if before is not None and after is not None]
    if spent is None or not means or len(means) < len(groups):
        return None
    estimate = statistics.clustered_mean({n: [mean] for n, mean in enumerate(means)}, (-math.inf, math.inf))
    low, high = estimate.low, estimate.high
    assert estimate.rate is not None  # there is a group
    return Saving(
        spent=spent,
        per_task=estimate.rate,
        low=low,
        high=high,
        tasks=tasks_until_paid(spent, estimate.rate),
        tasks_low=None if high is None else tasks_until_paid(spent, high),
        tasks_high=None if low is None else tasks_until_paid(spent, low),
    )


def _seconds(spent: Spent | None) -> float | None:
    return None if spent is None else spent.seconds


def _tokens(spent: Spent | None) -> float | None:
    if spent is None or spent.prompt_tokens is None or spent.completion_tokens is None:
        return None
    return spent.prompt_tokens + spent.completion_tokens
