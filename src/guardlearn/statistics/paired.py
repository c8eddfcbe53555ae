"""Differences between two models on the same specifications, clustered by group, and their tests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from scipy import stats

from guardlearn.statistics.intervals import DIGITS, FEW, Groups, group_bootstrap, mean_interval, off_mode

__all__ = [
    "Alternative",
    "Difference",
    "clustered_difference",
    "holm",
    "mcnemar_exact",
    "minimum_detectable",
    "sign_flip",
]

Alternative = Literal["two-sided", "greater"]
"""What a test looks for: a difference either way, or a gain."""

_LATTICE_LIMIT = 200_000
"""Sums the exact sign-flip test may enumerate; beyond, it samples."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mean of group differences, with all that was asked of it."""

    rate: float | None
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided sign-flip test over groups."""
    minimum_detectable: float | None
    """Smallest difference the sample could have shown (alpha 0.05 two-sided, power 0.8); None: none at all."""
    bootstrap_low: float | None
    bootstrap_high: float | None
    """Percentile bootstrap over groups, beside the t interval."""
    method: str


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the two-sided exact McNemar p-value from the discordant pairs (McNemar 1947); 1.0 where there are none."""
    total = gained + lost
    return 1.0 if total == 0 else float(stats.binomtest(gained, total, 0.5).pvalue)


def clustered_difference(pairs: Groups, confidence: float = 0.95, seed: int = 0) -> Difference:
    """Return the mean of group differences with interval, test and what it could have shown.

    Args:
        pairs: candidate minus base for each pair, by group; each in [-1, 1].
        confidence: of the intervals.
        seed: of the bootstrap, and of the test where it has to sample.
    """
    means = [math.fsum(values) / len(values) for values in pairs.values() if len(values)]
    estimate = mean_interval(means, (-1.0, 1.0), confidence)
    bootstrap = group_bootstrap(means, confidence, seed)
    return Difference(
        rate=estimate.rate,
        low=estimate.low,
        high=estimate.high,
        p_value=sign_flip(means, seed) if len(means) > 1 else None,
        minimum_detectable=minimum_detectable(means),
        bootstrap_low=bootstrap[0] if bootstrap else None,
        bootstrap_high=bootstrap[1] if bootstrap else None,
        method=estimate.method,
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for their number by Holm's step-down method (Holm 1979), by the same names.

    Rejecting those at most alpha keeps the chance of any false rejection at alpha, whatever their dependence.
    """
    order = sorted(p_values, key=lambda name: p_values[name])
    adjusted, largest = {}, 0.0
    for done, name in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - done) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def sign_flip(
    means: Sequence[float], seed: int = 0, resamples: int = 100_000, alternative: Alternative = "two-sided"
) -> float:
    """Return the sign-flip permutation p-value of "group differences are symmetric about 0".

    With `alternative="greater"` it is the one-sided one: how often flipped groups gain as much as these or more.

    Exact by convolution where the differences lie on a common lattice, as shares of a few specifications do; else from
    seeded random flips, the observed one counted among them (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585). On
    differences of -1, 0 and 1 it is the exact McNemar test.
    """
    shares = [Fraction(value).limit_denominator(10_000) for value in means if abs(value) > 10**-DIGITS]
    if not shares:
        return 1.0
    denominator = math.lcm(*(share.denominator for share in shares))
    steps = [abs(int(share * denominator)) for share in shares]
    observed = sum(int(share * denominator) for share in shares)
    if sum(steps) <= _LATTICE_LIMIT and len(steps) <= 1000:  # beyond 1000 halvings a probability underflows
        return _exact_flips(steps, observed, alternative)
    sizes, total = np.abs(np.asarray(means)), math.fsum(means)
    generator, reached = np.random.default_rng(seed), 0
    for _ in range(100):  # in slices, so that memory stays small
        signs = generator.choice((-1.0, 1.0), size=(resamples // 100, len(sizes)))
        sums = signs @ sizes
        reached += int(
            (np.abs(sums) >= abs(total) - 1e-9 if alternative == "two-sided" else sums >= total - 1e-9).sum()
        )
    return (reached + 1) / (resamples // 100 * 100 + 1)


def minimum_detectable(means: Sequence[float], alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Return the smallest mean difference these groups could have shown; None where no difference could.

    From the groups' spread: (t_{1-alpha/2} + t_{power}) standard errors (Bloom 1995, doi 10.1177/0193841X9501900504).
    Where fewer than `FEW` groups are off the most common value the spread is not known; then at least the share of
    groups that must flip for the sign-flip test to reach `alpha` with that power. With too few groups (below 6 at
    0.05) even all of them flipping does not reach it.
    """
    groups = len(means)
    needed = 1 + math.ceil(math.log2(1 / alpha))  # flips in one direction until 2 / 2^n <= alpha
    if groups < needed:
        return None
    spread = float(np.std(means, ddof=1)) / math.sqrt(groups)
    freedom = groups - 1
    detectable = (float(stats.t.ppf(1 - alpha / 2, freedom)) + float(stats.t.ppf(power, freedom))) * spread
    if off_mode(means) < FEW:
        # the share s with P(Binomial(groups, s) >= needed) = power is a beta quantile
        detectable = max(detectable, float(stats.beta.ppf(power, needed, groups - needed + 1)))
    return min(1.0, detectable)


def _exact_flips(steps: Sequence[int], observed: int, alternative: Alternative) -> float:
    """Return P(sum of +-steps >= observed), or of their sizes, over all sign patterns, by convolution."""
    reach = sum(steps)
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for step in steps:
        # at most `reach` is used up, so nothing wraps around
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2
    sums = np.arange(-reach, reach + 1)
    extreme = np.abs(sums) >= abs(observed) if alternative == "two-sided" else sums >= observed
    return min(1.0, float(chances[extreme].sum()))
