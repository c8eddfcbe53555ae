"""Statistics: published values, exact laws, degenerate data, and coverage by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn import statistics
from guardlearn.statistics import Chain, clustered_difference, clustered_mean, expected_attempts

SHARES = st.sampled_from([-1.0, -2 / 3, -0.5, -1 / 3, 0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0])


def by_group(values):
    return {f"g{n}": [value] for n, value in enumerate(values)}


# published values: Newcombe (1998), Statistics in Medicine 17:857-872, table I, methods 3 and 5
@pytest.mark.parametrize(
    ("successes", "total", "wilson", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0000, 0.1611), (0.0000, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_single_proportions_agree_with_newcombes_table(successes, total, wilson, exact):
    assert statistics.wilson(successes, total) == pytest.approx(wilson, abs=5e-5)
    assert statistics.clopper_pearson(successes, total) == pytest.approx(exact, abs=5e-5)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="3 of 2 is no proportion"):
        statistics.wilson(3, 2)
    with pytest.raises(ValueError, match="total >= 1"):
        statistics.clopper_pearson(0, 0)


def test_one_observation_a_group_uses_wilson():
    estimate = clustered_mean(by_group([1.0] * 15 + [0.0] * 133))
    assert (estimate.low, estimate.high) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert "Wilson" in estimate.method


def test_several_observations_a_group_use_a_t_interval_over_group_means():
    groups = {"a": [1, 0], "b": [1, 1, 1, 0], "c": [0, 0, 0, 1], "d": [1, 1], "e": [0], "f": [1, 0, 0], "g": [0.6]}
    means = [0.5, 0.75, 0.25, 1.0, 0.0, 1 / 3, 0.6]
    estimate = clustered_mean(groups)
    half = 2.446912 * np.std(means, ddof=1) / math.sqrt(7)  # t(0.975, 6)
    assert estimate.rate == pytest.approx(np.mean(means))
    assert (estimate.low, estimate.high) == pytest.approx((np.mean(means) - half, np.mean(means) + half), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_groups_that_all_agree_get_the_exact_bound_for_unseen_groups(value):
    groups = {n: [value] * 3 for n in range(37)}
    low, high = statistics.clopper_pearson(round(37 * value), 37)
    estimate = clustered_mean(groups)
    assert (estimate.rate, estimate.low, estimate.high) == (value, pytest.approx(low), pytest.approx(high))
    assert high - low > 0.09
    assert "unseen" in estimate.method


def test_a_complete_turn_still_has_an_honest_interval():
    difference = clustered_difference({n: [1.0] * 3 for n in range(37)})
    assert difference.rate == 1.0
    assert difference.high == 1.0
    assert difference.low == pytest.approx(2 * 0.025 ** (1 / 37) - 1)  # 0.81: unseen groups may even turn back
    assert difference.p_value == pytest.approx(2 / 2**37)
    assert 0 < difference.minimum_detectable < 0.5


def test_no_change_at_all_still_has_an_honest_interval():
    difference = clustered_difference({n: [0.0] * 3 for n in range(37)})
    assert (difference.rate, difference.p_value) == (0.0, 1.0)
    assert -0.1 < difference.low < -0.09
    assert 0.09 < difference.high < 0.1


def test_one_group_gives_no_interval_and_says_why():
    estimate = clustered_mean({"only": [1.0, 0.0]})
    assert (estimate.rate, estimate.low, estimate.high) == (0.5, None, None)
    assert "one group" in estimate.method
    difference = clustered_difference({"only": [1.0]})
    assert (difference.low, difference.p_value, difference.minimum_detectable) == (None, None, None)


def test_no_observation_gives_no_rate():
    assert clustered_mean({"a": []}).rate is None
    assert clustered_difference({}).rate is None
    assert expected_attempts([], 4) is None


@given(st.lists(SHARES, min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_every_interval_is_finite_ordered_and_holds_its_rate(values):
    difference = clustered_difference({n: [value] for n, value in enumerate(values)})
    assert -1 <= difference.low <= difference.rate + 1e-12
    assert difference.rate - 1e-12 <= difference.high <= 1
    assert difference.low < difference.high
    assert 0 < difference.p_value <= 1
    assert difference.minimum_detectable is None or 0 < difference.minimum_detectable <= 1


@given(st.lists(SHARES, min_size=1, max_size=10))
@settings(max_examples=60, deadline=None)
def test_sign_flip_equals_enumeration(values):
    target = abs(math.fsum(values)) - 1e-9
    signs = itertools.product((1, -1), repeat=len(values))
    flips = [
        abs(math.fsum(sign * value for sign, value in zip(pattern, values, strict=True))) >= target for pattern in signs
    ]
    assert statistics.sign_flip(values) == pytest.approx(sum(flips) / len(flips))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_sign_flip_of_single_pairs_is_the_exact_mcnemar_test(gained, lost, same):
    values = [1.0] * gained + [-1.0] * lost + [0.0] * same
    assert statistics.sign_flip(values) == pytest.approx(statistics.mcnemar_exact(gained, lost))


def test_sampled_sign_flip_agrees_with_the_exact_one():
    generator = np.random.default_rng(3)
    lattice = generator.integers(-2, 4, 30) / 12
    # a little noise takes the values off any common lattice, which forces the sampled form
    noisy = lattice + generator.normal(0, 1e-7, 30) * math.pi
    assert statistics.sign_flip(list(noisy)) == pytest.approx(statistics.sign_flip(list(lattice)), rel=0.15)


def test_published_mcnemar_value():
    # Agresti, Categorical Data Analysis: approval ratings, discordant 150 and 86; the exact p is about 3.7e-5
    assert statistics.mcnemar_exact(86, 150) == pytest.approx(3.7e-5, rel=0.03)
    assert statistics.mcnemar_exact(0, 0) == 1.0


def test_bootstrap_is_seeded_and_close_to_t_on_well_behaved_data():
    means = list(np.random.default_rng(0).uniform(0.2, 0.9, 40))
    low, high = statistics.group_bootstrap(means)
    assert (low, high) == statistics.group_bootstrap(means)
    estimate = clustered_mean(by_group(means))
    assert (low, high) == pytest.approx((estimate.low, estimate.high), abs=0.02)


def test_minimum_detectable_is_found_in_four_of_five_samples():
    generator = np.random.default_rng(5)
    spread, groups = 0.3, 30
    detectable = statistics.minimum_detectable(list(generator.normal(0, spread, 4000)[:groups]))
    expected = (2.045 + 0.854) * spread / math.sqrt(groups)  # t(0.975, 29) + t(0.8, 29)
    assert detectable == pytest.approx(expected, rel=0.35)
    samples = generator.normal(expected, spread, (2000, groups))
    errors = samples.std(axis=1, ddof=1) / math.sqrt(groups)
    assert np.mean(samples.mean(axis=1) / errors > 2.045) == pytest.approx(0.8, abs=0.03)


def test_too_few_groups_can_show_nothing():
    assert statistics.minimum_detectable([1.0] * 5) is None
    assert statistics.minimum_detectable([1.0] * 6) is not None


# the spread of the demo: pass chances of families spread widely, three specifications each
COVERAGE = [  # mean, intraclass correlation, groups, least coverage by group
    (0.60, 0.5, 37, 0.93),
    (0.85, 0.4, 37, 0.92),
    (0.92, 0.4, 37, 0.93),
    (0.98, 0.4, 37, 0.95),
    (0.98, 0.8, 20, 0.95),
    (0.50, 0.5, 10, 0.92),
]


@pytest.mark.parametrize(("mean", "correlation", "groups", "least"), COVERAGE)
def test_intervals_by_group_cover_what_they_claim(mean, correlation, groups, least):
    generator = np.random.default_rng(11)
    scale = 1 / correlation - 1
    hits = 0
    for _ in range(600):
        chances = generator.beta(mean * scale, (1 - mean) * scale, groups)
        passed = generator.binomial(3, chances)
        estimate = clustered_mean({n: [1.0] * k + [0.0] * (3 - k) for n, k in enumerate(passed)})
        hits += estimate.low <= mean <= estimate.high
    assert hits / 600 >= least


def test_a_plain_t_interval_would_not_cover_where_nearly_all_groups_agree():
    """Why the interval is widened there: the same simulation, without."""
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(600):
        means = generator.binomial(3, generator.beta(0.98 * 1.5, 0.02 * 1.5, 37)) / 3
        half = 2.028 * means.std(ddof=1) / math.sqrt(37)  # t(0.975, 36)
        hits += abs(means.mean() - 0.98) <= half
    assert 0.75 < hits / 600 < 0.92


def test_intervals_by_specification_would_not_cover():
    """Why groups: the same data, taken specification by specification, covers far less than it claims."""
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(600):
        passed = generator.binomial(10, generator.beta(0.3, 0.3, 12)).sum()
        low, high = statistics.wilson(int(passed), 120)
        hits += low <= 0.5 <= high
    assert hits / 600 < 0.75


def chain(group, judged, solved, cut=False):
    return Chain(group=group, judged=judged, solved=solved, cut=cut)


def test_expected_attempts_without_censoring_is_the_mean_of_group_means():
    chains = [chain("a", 1, True), chain("a", 3, True), chain("b", 4, False), chain("c", 2, True)]
    survival = expected_attempts(chains, 4)
    assert survival.expected_attempts.rate == pytest.approx(((1 + 3) / 2 + 4 + 2) / 3)
    assert survival.solved_by_attempt == pytest.approx((1 / 6, 1 / 2, 2 / 3, 2 / 3))
    # without censoring the pseudo-values are the group means, so this is the plain t interval, within the scale
    assert survival.expected_attempts.low == 1.0
    assert survival.expected_attempts.high == 4.0


def test_a_fatal_chain_is_unsolved_for_good_and_a_cut_one_is_censored():
    solved = [chain(n, 1, True) for n in range(3)]
    fatal = expected_attempts([*solved, chain("x", 1, False)], 4)
    assert fatal.expected_attempts.rate == pytest.approx((3 * 1 + 4) / 4)
    cut = expected_attempts([*solved, chain("x", 0, False, cut=True)], 4)
    assert cut.expected_attempts.rate == 1.0


def test_censoring_follows_kaplan_and_meier():
    # four at risk, one solved; two cut after the first attempt; of the one left, solved at the second
    chains = [chain(0, 1, True), chain(1, 1, False, cut=True), chain(2, 1, False, cut=True), chain(3, 2, True)]
    survival = expected_attempts(chains, 3)
    assert survival.solved_by_attempt == pytest.approx((0.25, 1.0, 1.0))
    assert survival.expected_attempts.rate == pytest.approx(1 + 0.75)


def test_expected_attempts_at_the_ends():
    assert expected_attempts([chain(n, 1, True) for n in range(37)], 4).expected_attempts.rate == 1.0
    never = expected_attempts([chain(n, 4, False) for n in range(37)], 4)
    assert (never.expected_attempts.rate, never.solved_by_attempt[-1]) == (4.0, 0.0)
    assert never.expected_attempts.low < 4.0
    with pytest.raises(ValueError, match="r_max = 4"):
        expected_attempts([chain(0, 5, True)], 4)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=25))
@settings(max_examples=80, deadline=None)
def test_survival_is_monotone_and_consistent(rows):
    chains = [chain(g, k, s and k > 0, cut=c and not (s and k > 0)) for g, k, s, c in rows]
    survival = expected_attempts(chains, 4)
    if survival is None:
        assert all(one.cut and not one.judged for one in chains)
        return
    curve = survival.solved_by_attempt
    assert list(curve) == sorted(curve)
    assert survival.expected_attempts.rate == pytest.approx(4 - sum(curve[:-1]))
    interval = survival.expected_attempts
    assert interval.low is None or 1 <= interval.low <= interval.high <= 4
