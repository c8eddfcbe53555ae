"""How many attempts a specification needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from guardlearn.statistics.intervals import Estimate, mean_interval

__all__ = ["Chain", "Survival", "attempts_of_counts", "expected_attempts", "pass_at_k", "unsolved_bound"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One chain of attempts as survival data."""

    group: Any
    """Hashable."""
    judged: int
    """Attempts that got a verdict, 0 to r_max."""
    solved: bool
    """The last judged attempt was accepted."""
    cut: bool = False
    """Ended early for a reason that says nothing about the artifact (no verdict, budget): censored after `judged`.
    Not set for a fatal verdict, which is unsolved for good."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """How many attempts a specification needs, up to r_max."""

    expected_attempts: Estimate
    """Restricted mean: the sum of S(k) over k < r_max, in [1, r_max]."""
    solved_by_attempt: tuple[float, ...]
    """1 - S(k) for k = 1 .. r_max; the last one is the share solved within r_max."""


def expected_attempts(chains: Sequence[Chain], r_max: int, confidence: float = 0.95) -> Survival | None:
    """Return the restricted mean of attempts and the share solved by each attempt; None without a judged chain.

    S(k), the share unsolved after k attempts, is Kaplan & Meier's (1958) with each chain weighing 1/(chains of its
    group), so that without censoring the result is a mean of group means. A chain that is unsolved for good stays at
    risk to the end; a cut one leaves after its last judged attempt. Where nobody is left at risk, S stays where it was,
    which errs towards more attempts. The interval is a t interval over jackknife pseudo-values by group (Andersen,
    Hansen & Klein 2004, doi 10.1007/s10985-004-4771-0).

    Raises:
        ValueError: a chain has more judged attempts than `r_max`.
    """
    if any(not 0 <= chain.judged <= r_max for chain in chains):
        raise ValueError(f"a chain has fewer than 0 or more than r_max = {r_max} judged attempts")
    members: dict[Any, list[Chain]] = {}
    for chain in chains:
        if chain.judged or not chain.cut:
            members.setdefault(chain.group, []).append(chain)
    if not members:
        return None
    at_risk = np.zeros((len(members), r_max))
    solved = np.zeros((len(members), r_max))
    for row, group in enumerate(members.values()):
        for chain in group:
            until = chain.judged if chain.solved or chain.cut else r_max
            at_risk[row, :until] += 1 / len(group)
            if chain.solved:
                solved[row, chain.judged - 1] += 1 / len(group)
    return _estimate(at_risk, solved, confidence)


def attempts_of_counts(
    at_risk: Sequence[Sequence[float]], solved: Sequence[Sequence[float]], confidence: float = 0.95
) -> Survival | None:
    """Return the same from counts by group, each chain weighing 1; None without a judged attempt.

    The estimate is that of all chains pooled; its interval still takes the group as the unit, by leaving one out.

    Args:
        at_risk: a row a group: chains not yet solved that attempt 1, 2 … of theirs is judged of, or that are unsolved
            for good.
        solved: a row a group: those of them accepted at that attempt.
        confidence: of the interval.
    """
    rows = np.asarray(at_risk, dtype=float)
    return _estimate(rows, np.asarray(solved, dtype=float), confidence) if rows.any() else None


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from `samples` independent first attempts of one specification.

    1 - C(samples - passed, k) / C(samples, k): Chen et al. 2021, arXiv 2107.03374, eq. 1. Average it over
    specifications (by group), never from pooled counts.

    Raises:
        ValueError: `k` outside 1..`samples`, or `passed` outside 0..`samples`.
    """
    if not (1 <= k <= samples and 0 <= passed <= samples):
        raise ValueError(f"pass@{k} of {passed} in {samples}: need 1 <= k <= samples and 0 <= passed <= samples")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def unsolved_bound(epsilon: float, r_max: int) -> float:
    """Return (1 - epsilon)^r_max, the guide's bound on the share unsolved after r_max attempts.

    It holds where every attempt, whatever came before it, passes with probability at least `epsilon`. One rate for all
    specifications is not that: hard ones stay unsolved, so what is observed lies above (1 - mean rate)^r_max.

    Raises:
        ValueError: `epsilon` outside 0..1, or `r_max` below 1.
    """
    if not (0.0 <= epsilon <= 1.0 and r_max >= 1):
        raise ValueError(f"epsilon = {epsilon}, r_max = {r_max}: need 0 <= epsilon <= 1 and r_max >= 1")
    return float((1.0 - epsilon) ** r_max)


def _estimate(at_risk: Any, solved: Any, confidence: float) -> Survival:
    """Return the figures from weights at risk and solved: a row a group, a column an attempt."""
    groups, attempts = at_risk.shape
    survival = _survival(at_risk.sum(axis=0), solved.sum(axis=0))
    mean = 1.0 + float(survival[:-1].sum())
    pseudo = [mean]
    if groups > 1:
        without = _survival(at_risk.sum(axis=0) - at_risk, solved.sum(axis=0) - solved)
        pseudo = list(groups * mean - (groups - 1) * (1.0 + without[:, :-1].sum(axis=1)))
    estimate = dataclasses.replace(mean_interval(pseudo, (1.0, float(attempts)), confidence), rate=mean)
    return Survival(expected_attempts=estimate, solved_by_attempt=tuple(float(1 - share) for share in survival))


def _survival(at_risk: Any, solved: Any) -> Any:
    """Return S(1) .. S(r_max) along the last axis from weights at risk and solved at each attempt."""
    hazard = np.divide(solved, at_risk, out=np.zeros_like(solved), where=at_risk > 1e-12)
    return np.cumprod(np.clip(1 - hazard, 0.0, 1.0), axis=-1)
