"""How many groups a gain takes to be shown, and what a number of groups can show: before anything is trained."""

from __future__ import annotations

import dataclasses
import math

from scipy import special

__all__ = ["Plan", "assumed_spread", "detectable_gain", "level_of_look", "plan_groups"]

_SERIES_UP_TO = 30.0
"""Standard errors from which scipy's noncentral t underflows, to nan."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a test of "the candidate passes more often" needs."""

    groups: int
    """Held-out groups."""
    alpha: float
    """One-sided level of the test."""
    power: float
    """Probability of finding the gain with so many groups, were it real; at least what was asked."""
    gain: float
    spread: float
    """Standard deviation of a group's difference that was assumed."""


def level_of_look(alpha: float, look: int) -> float:
    """Return the level of the `look`-th test on the same held-out specifications: 6 alpha / (pi^2 look^2).

    The levels of any number of looks sum to less than alpha (Bonferroni with spending; the series is Euler's), so that
    a repository that is looked at for years promotes a useless candidate at most with probability alpha.

    Raises:
        ValueError: `look` below 1, or `alpha` outside 0..1.
    """
    if look < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(f"look = {look}, alpha = {alpha}: need look >= 1 and 0 < alpha < 1")
    return 6 * alpha / (math.pi * look) ** 2


def assumed_spread(rate: float, gain: float, per_group: int, correlation: float = 0.2) -> float:
    """Return a standard deviation of group differences to plan with, where there are no earlier differences.

    Base and candidate are taken as independent, which common random numbers beat; the pairs of a group share
    `correlation` (the design effect of Kish 1965: 1 + (per_group - 1) correlation).

    Args:
        rate: of the base, in [0, 1].
        gain: to be found, in (0, 1]; `rate` + `gain` is capped at 1.
        per_group: specifications times samples in a group; >= 1.
        correlation: of differences within a group, in [0, 1].

    Raises:
        ValueError: a value outside its range.
    """
    if not (0.0 <= rate <= 1.0 and 0.0 < gain <= 1.0 and per_group >= 1 and 0.0 <= correlation <= 1.0):
        raise ValueError(
            f"rate = {rate}, gain = {gain}, per_group = {per_group}, correlation = {correlation}: rates lie in 0..1, "
            "a group holds at least one specification"
        )
    after = min(1.0, rate + gain)
    single = rate * (1 - rate) + after * (1 - after)
    return math.sqrt(single * (1 + (per_group - 1) * correlation) / per_group)


def plan_groups(
    gain: float, spread: float, alpha: float = 0.05, power: float = 0.8, least_gain: float = 0.0
) -> Plan | None:
    """Return how many groups show a gain, by a one-sided test at `alpha` and at least `least_gain` observed.

    From the noncentral t distribution, which a sign-flip test follows closely from some 20 groups on; never fewer
    groups than that test needs at all. None where no number does: the gain is not above `least_gain`.

    Args:
        gain: true difference of the pass rates, in (0, 1].
        spread: standard deviation of a group's difference, >= 0.
        alpha: level of the test.
        power: wanted probability of finding the gain, in (0, 1).
        least_gain: what must be observed beside a small p-value; below `gain`.
    """
    if gain <= least_gain or gain <= 0:
        return None
    low = high = _fewest_groups(alpha)
    while _power(high, gain, spread, alpha, least_gain) < power:
        low, high = high, high * 2
    while low < high:  # power grows with the number of groups
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, gain, spread, alpha, least_gain) >= power else (middle + 1, high)
    found = _power(high, gain, spread, alpha, least_gain)
    return Plan(groups=high, alpha=alpha, power=found, gain=gain, spread=spread)


def detectable_gain(
    groups: int, spread: float, alpha: float = 0.05, power: float = 0.8, least_gain: float = 0.0
) -> float | None:
    """Return the smallest true gain that so many groups show with probability `power`; None where none in (0, 1] is."""
    if groups < _fewest_groups(alpha) or _power(groups, 1.0, spread, alpha, least_gain) < power:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if _power(groups, middle, spread, alpha, least_gain) >= power else (middle, high)
    return high


def _fewest_groups(alpha: float) -> int:
    """Return how many groups the sign-flip test needs to reach `alpha` on one side, should all of them gain."""
    return max(2, math.ceil(math.log2(1 / alpha)))


def _power(groups: int, gain: float, spread: float, alpha: float, least_gain: float) -> float:
    """Return P(p <= alpha and the observed gain >= least_gain): of two thresholds on one mean, the higher decides."""
    if spread <= 0:
        return 1.0 if gain >= least_gain else 0.0
    error = spread / math.sqrt(groups)
    freedom, shift = groups - 1, gain / error
    needed = float(special.stdtrit(freedom, 1 - alpha))
    if shift < _SERIES_UP_TO:
        missed = float(special.nctdtr(freedom, shift, needed))
    else:  # Abramowitz & Stegun 26.7.10
        missed = float(
            special.ndtr((needed * (1 - 1 / (4 * freedom)) - shift) / math.sqrt(1 + needed**2 / (2 * freedom)))
        )
    shown = 1.0 - missed
    large = float(special.ndtr((gain - least_gain) / error))
    return min(shown, large)
