"""Rates with their intervals, clustered by group; see the package's docstring for what is done where groups agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

__all__ = [
    "FEW",
    "Estimate",
    "Groups",
    "clopper_pearson",
    "clustered_mean",
    "group_bootstrap",
    "mean_interval",
    "off_mode",
    "wilson",
]

FEW = 5
"""Fewer groups than this off the most common value: the spread is not to be trusted (as in Cochran's rule of five)."""

DIGITS = 9
"""Decimals to which group means count as equal."""

Groups = Mapping[Any, Sequence[float]]
"""Observations by group; groups without observations are left out."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean of group means with its interval."""

    rate: float | None
    """None: no observations."""
    low: float | None
    high: float | None
    """None: one group, or none, gives no interval."""
    method: str
    """How the interval was found, in words."""


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927; Newcombe 1998, method 3).

    Raises:
        ValueError: `successes` outside 0..`total`, or `total` below 1.
    """
    _check_counts(successes, total)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    rate, scale = successes / total, 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    # the ends are exact where the proportion is: rounding would leave 1e-17
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == total else centre + half)


def clopper_pearson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a proportion (Clopper & Pearson 1934).

    Raises:
        ValueError: `successes` outside 0..`total`, or `total` below 1.
    """
    _check_counts(successes, total)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, total - successes + 1))
    high = 1.0 if successes == total else float(stats.beta.ppf(1 - tail, successes + 1, total - successes))
    return low, high


def clustered_mean(groups: Groups, bounds: tuple[float, float] = (0.0, 1.0), confidence: float = 0.95) -> Estimate:
    """Return the mean of group means and its interval by group.

    Args:
        groups: observations by group, each within `bounds`.
        bounds: ends of the scale; the interval stays within them.
        confidence: of the interval.
    """
    present = [list(values) for values in groups.values() if len(values)]
    binary = bounds == (0.0, 1.0) and all(len(values) == 1 and values[0] in (0.0, 1.0) for values in present)
    if len(present) > 1 and binary:
        passed = round(sum(values[0] for values in present))
        low, high = wilson(passed, len(present), confidence)
        return Estimate(rate=passed / len(present), low=low, high=high, method="Wilson: one observation a group")
    return mean_interval([math.fsum(values) / len(values) for values in present], bounds, confidence)


def group_bootstrap(
    means: Sequence[float], confidence: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean, resampling groups; None for fewer than two groups."""
    if len(means) < 2:
        return None
    draws = np.random.default_rng(seed).integers(0, len(means), size=(resamples, len(means)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(means)[draws].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(means: Sequence[float], bounds: tuple[float, float], confidence: float) -> Estimate:
    """Return the mean of group means with a t interval within `bounds`, widened where nearly all groups agree."""
    if not means:
        return Estimate(rate=None, low=None, high=None, method="no observations")
    groups, mean = len(means), math.fsum(means) / len(means)
    if groups == 1:
        return Estimate(rate=mean, low=None, high=None, method="no interval: one group says nothing about others")
    half = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * float(np.std(means, ddof=1)) / math.sqrt(groups)
    low, high, method = mean - half, mean + half, f"t over {groups} group means"
    off = off_mode(means)
    if off < FEW and all(map(math.isfinite, bounds)):
        unseen = 1 - ((1 - confidence) / 2) ** (1 / groups)
        low = min(low, mean - unseen * (mean - bounds[0]))
        high = max(high, mean + unseen * (bounds[1] - mean))
        method += f", widened for unseen groups: only {off} of them off the most common value"
    # a mean outside the scale (a pseudo-value, a rounding) must not turn the interval around
    return Estimate(rate=mean, low=max(bounds[0], low), high=min(bounds[1], high), method=method)


def off_mode(values: Sequence[float]) -> int:
    """Return how many values are not the most common one."""
    _, counts = np.unique(np.round(values, DIGITS), return_counts=True)
    return len(values) - int(counts.max())


def _check_counts(successes: int, total: int) -> None:
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} of {total} is no proportion: need 0 <= successes <= total and total >= 1")
