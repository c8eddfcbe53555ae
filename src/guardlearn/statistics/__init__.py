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

from guardlearn.statistics.intervals import (
    FEW,
    Estimate,
    Groups,
    clopper_pearson,
    clustered_mean,
    group_bootstrap,
    wilson,
)
from guardlearn.statistics.paired import (
    Alternative,
    Difference,
    clustered_difference,
    holm,
    mcnemar_exact,
    minimum_detectable,
    sign_flip,
)
from guardlearn.statistics.planning import (
    Moments,
    Plan,
    assumed_moments,
    detectable_gain,
    level_of_look,
    moments_of,
    plan_groups,
)
from guardlearn.statistics.survival import (
    Chain,
    Survival,
    attempts_of_counts,
    expected_attempts,
    pass_at_k,
    unsolved_bound,
)

__all__ = [
    "FEW",
    "Alternative",
    "Chain",
    "Difference",
    "Estimate",
    "Groups",
    "Moments",
    "Plan",
    "Survival",
    "assumed_moments",
    "attempts_of_counts",
    "clopper_pearson",
    "clustered_difference",
    "clustered_mean",
    "detectable_gain",
    "expected_attempts",
    "group_bootstrap",
    "holm",
    "level_of_look",
    "mcnemar_exact",
    "minimum_detectable",
    "moments_of",
    "pass_at_k",
    "plan_groups",
    "sign_flip",
    "unsolved_bound",
    "wilson",
]
