"""Intervals and tests for pass rates, clustered by group: pure functions over numbers, nothing of guardlearn inside.

Specifications of one family succeed and fail together, so the group is the sampling unit: every estimate is a mean of
group means, every interval a t interval over groups, every test flips whole groups (Miller 2024, arXiv 2411.00640;
Cameron, Gelbach & Miller 2008, doi 10.1162/rest.90.3.414). Where each group holds one observation, the classical forms
apply and are used: Wilson's interval; the sign-flip test is then the exact McNemar test.

Where nearly all groups agree, their spread says nothing about the groups not drawn: a t interval over 37 groups with a
mean of 0.98 covers some 80 % instead of 95 % (simulated in the tests). With fewer than `FEW` groups off the most
common value the interval is therefore widened to allow for unseen groups: if a share q of all groups differed, none of
G would show it with probability (1 - q)^G, so q <= 1 - 0.025^(1/G) (Clopper & Pearson 1934 for 0 of G; about 3.7/G, the
two-sided rule of three), and such groups may lie at the worst end of the scale. For groups that all agree this bound
holds whatever the distribution; it errs on the wide side.

Rates lie in [0, 1], differences in [-1, 1]. Nothing here returns inf or nan: what cannot be said is None, with a note.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import stats

__all__ = [
    "FEW",
    "Chain",
    "Difference",
    "Estimate",
    "Survival",
    "clopper_pearson",
    "clustered_difference",
    "clustered_mean",
    "expected_attempts",
    "group_bootstrap",
    "mcnemar_exact",
    "minimum_detectable",
    "sign_flip",
    "wilson",
]

FEW = 5
"""Fewer groups than this off the most common value: the spread is not to be trusted (as in Cochran's rule of five)."""

_LATTICE_LIMIT = 200_000
"""Sums the exact sign-flip test may enumerate; beyond, it samples."""

_DIGITS = 9
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


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the two-sided exact McNemar p-value from the discordant pairs (McNemar 1947); 1.0 where there are none."""
    total = gained + lost
    return 1.0 if total == 0 else float(stats.binomtest(gained, total, 0.5).pvalue)


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
    return _mean_interval([math.fsum(values) / len(values) for values in present], bounds, confidence)


def clustered_difference(pairs: Groups, confidence: float = 0.95, seed: int = 0) -> Difference:
    """Return the mean of group differences with interval, test and what it could have shown.

    Args:
        pairs: candidate minus base for each pair, by group; each in [-1, 1].
        confidence: of the intervals.
        seed: of the bootstrap, and of the test where it has to sample.
    """
    means = [math.fsum(values) / len(values) for values in pairs.values() if len(values)]
    estimate = _mean_interval(means, (-1.0, 1.0), confidence)
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


def sign_flip(means: Sequence[float], seed: int = 0, resamples: int = 100_000) -> float:
    """Return the two-sided sign-flip permutation p-value of "group differences are symmetric about 0".

    Exact by convolution where the differences lie on a common lattice, as shares of a few specifications do; else from
    seeded random flips, the observed one counted among them (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585). On
    differences of -1, 0 and 1 it is the exact McNemar test.
    """
    shares = [Fraction(value).limit_denominator(10_000) for value in means if abs(value) > 10**-_DIGITS]
    if not shares:
        return 1.0
    denominator = math.lcm(*(share.denominator for share in shares))
    steps = [abs(int(share * denominator)) for share in shares]
    observed = abs(sum(int(share * denominator) for share in shares))
    if sum(steps) <= _LATTICE_LIMIT and len(steps) <= 1000:  # beyond 1000 halvings a probability underflows
        return _exact_flips(steps, observed)
    sizes = np.abs(np.asarray(means))
    generator, reached, target = np.random.default_rng(seed), 0, abs(math.fsum(means)) - 1e-9
    for _ in range(100):  # in slices, so that memory stays small
        signs = generator.choice((-1.0, 1.0), size=(resamples // 100, len(sizes)))
        reached += int((np.abs(signs @ sizes) >= target).sum())
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
    if _off_mode(means) < FEW:
        # the share s with P(Binomial(groups, s) >= needed) = power is a beta quantile
        detectable = max(detectable, float(stats.beta.ppf(power, needed, groups - needed + 1)))
    return min(1.0, detectable)


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
    survival = _survival(at_risk.sum(axis=0), solved.sum(axis=0))
    mean = 1.0 + float(survival[:-1].sum())
    if len(members) > 1:
        pseudo = []
        for row in range(len(members)):
            without = _survival(at_risk.sum(axis=0) - at_risk[row], solved.sum(axis=0) - solved[row])
            left_out = 1.0 + float(without[:-1].sum())
            pseudo.append(len(members) * mean - (len(members) - 1) * left_out)
    else:
        pseudo = [mean]
    interval = _mean_interval(pseudo, (1.0, float(r_max)), confidence)
    estimate = dataclasses.replace(interval, rate=mean)
    return Survival(expected_attempts=estimate, solved_by_attempt=tuple(float(1 - share) for share in survival))


def _mean_interval(means: Sequence[float], bounds: tuple[float, float], confidence: float) -> Estimate:
    if not means:
        return Estimate(rate=None, low=None, high=None, method="no observations")
    groups, mean = len(means), math.fsum(means) / len(means)
    if groups == 1:
        return Estimate(rate=mean, low=None, high=None, method="no interval: one group says nothing about others")
    half = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * float(np.std(means, ddof=1)) / math.sqrt(groups)
    low, high, method = mean - half, mean + half, f"t over {groups} group means"
    off = _off_mode(means)
    if off < FEW:
        unseen = 1 - ((1 - confidence) / 2) ** (1 / groups)
        low = min(low, mean - unseen * (mean - bounds[0]))
        high = max(high, mean + unseen * (bounds[1] - mean))
        method += f", widened for unseen groups: only {off} of them off the most common value"
    # a mean outside the scale (a pseudo-value, a rounding) must not turn the interval around
    return Estimate(rate=mean, low=max(bounds[0], low), high=min(bounds[1], high), method=method)


def _survival(at_risk: Any, solved: Any) -> Any:
    """Return S(1) .. S(r_max) from weights at risk and solved at each attempt."""
    hazard = np.divide(solved, at_risk, out=np.zeros_like(solved), where=at_risk > 1e-12)
    return np.cumprod(np.clip(1 - hazard, 0.0, 1.0))


def _off_mode(values: Sequence[float]) -> int:
    _, counts = np.unique(np.round(values, _DIGITS), return_counts=True)
    return len(values) - int(counts.max())


def _exact_flips(steps: Sequence[int], observed: int) -> float:
    """Return P(|sum of +-steps| >= observed) over all sign patterns, by convolution on the integers."""
    reach = sum(steps)
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for step in steps:
        # at most `reach` is used up, so nothing wraps around
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chances[sums >= observed].sum()))


def _check_counts(successes: int, total: int) -> None:
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} of {total} is no proportion: need 0 <= successes <= total and total >= 1")
