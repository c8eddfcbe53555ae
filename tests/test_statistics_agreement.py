"""Statistics against other implementations, and what is planned before anything is trained against simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.duration.survfunc import SurvfuncRight
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from guardlearn import statistics
from guardlearn.statistics import Chain, Moments

P_VALUES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_intervals_of_proportions_agree_with_statsmodels(counts, confidence):
    for ours, theirs in ((statistics.wilson, "wilson"), (statistics.clopper_pearson, "beta")):
        expected = proportion_confint(*counts, alpha=1 - confidence, method=theirs)
        assert ours(*counts, confidence) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_statsmodels(gained, lost):
    table = [[3, lost], [gained, 5]]
    assert statistics.mcnemar_exact(gained, lost) == pytest.approx(mcnemar(table, exact=True).pvalue, abs=1e-12)


@pytest.mark.slow
@given(P_VALUES)
@settings(max_examples=20, deadline=None)
def test_holm_agrees_with_statsmodels(values):
    adjusted = statistics.holm({str(n): value for n, value in enumerate(values)})
    assert list(adjusted.values()) == pytest.approx(multipletests(values, method="holm")[1], abs=1e-12)


def test_holm_of_a_worked_example():
    found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["solved", "cut", "unsolved"])), min_size=2, max_size=30),
)
@settings(deadline=None)
def test_expected_attempts_agree_with_statsmodels(rows):
    """One chain a group: Kaplan and Meier's estimator, and its restricted mean."""
    r_max = 5
    chains = [
        Chain(group=n, judged=r_max if how == "unsolved" else judged, solved=how == "solved", cut=how == "cut")
        for n, (judged, how) in enumerate(rows)
    ]
    # who is unsolved for good stays at risk to the end
    durations = [r_max + 1 if how == "unsolved" else judged for judged, how in rows]
    theirs = SurvfuncRight(durations, [float(how == "solved") for _, how in rows])
    unsolved = dict(zip(theirs.surv_times, theirs.surv_prob, strict=True))  # where somebody was solved
    curve, share = [1.0], 1.0
    for attempt in range(1, r_max + 1):
        share = float(unsolved.get(attempt, share))
        curve.append(share)
    survival = statistics.expected_attempts(chains, r_max)
    assert survival is not None
    assert survival.solved_by_attempt == pytest.approx([1 - each for each in curve[1:]], abs=1e-9)
    assert survival.expected_attempts.rate == pytest.approx(sum(curve[:-1]), abs=1e-9)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_choices_with_a_pass(drawn):
    samples, passed, k = drawn
    answers = [True] * passed + [False] * (samples - passed)
    choices = list(itertools.combinations(answers, k))
    assert statistics.pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@pytest.mark.parametrize(("samples", "passed", "k"), [(3, 4, 1), (3, 1, 4), (3, 1, 0), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be(samples, passed, k):
    with pytest.raises(ValueError, match="need 1 <= k"):
        statistics.pass_at_k(samples, passed, k)


def test_the_bound_holds_for_equal_rates_and_not_for_a_mixture():
    assert statistics.unsolved_bound(0.4, 3) == pytest.approx(0.216)
    hard_and_easy = (0.9**4 + 0.1**4) / 2  # rates 0.1 and 0.9: half of the specifications stay unsolved
    assert hard_and_easy > statistics.unsolved_bound(0.5, 4)
    with pytest.raises(ValueError, match="epsilon"):
        statistics.unsolved_bound(1.2, 3)


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=9))
def test_the_one_sided_test_equals_enumeration(values):
    sums = [float(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=len(values))]
    expected = sum(each >= math.fsum(values) - 1e-9 for each in sums) / len(sums)
    assert statistics.sign_flip(values, alternative="greater") == pytest.approx(expected, abs=1e-12)


def test_the_sampled_one_sided_test_agrees_with_enumeration():
    values = np.random.default_rng(3).normal(0.3, 1.0, size=14)  # on no lattice
    signs = np.array(list(itertools.product((1, -1), repeat=14)))
    expected = float(((signs @ np.abs(values)) >= values.sum() - 1e-9).mean())
    assert 0.01 < expected < 0.5
    assert statistics.sign_flip(list(values), alternative="greater") == pytest.approx(expected, abs=0.006)
    assert statistics.sign_flip(list(-values), alternative="greater") == pytest.approx(1 - expected, abs=0.006)


@given(st.floats(0.001, 0.4), st.integers(1, 200))
def test_the_levels_of_all_looks_together_stay_below_alpha(alpha, looks):
    assert sum(statistics.level_of_look(alpha, look) for look in range(1, looks + 1)) < alpha
    with pytest.raises(ValueError, match="look"):
        statistics.level_of_look(alpha, 0)


def bell(spread):
    return Moments(spread=spread, third=0.0, fourth=3 * spread**4, step=0.0)


@pytest.mark.parametrize(("gain", "spread"), [(0.1, 0.5), (0.1, 0.4), (0.05, 0.4)])
def test_planned_groups_are_close_to_a_t_test_where_there_are_many(gain, spread):
    plan = statistics.plan_groups(gain, bell(spread), alpha=0.05, power=0.8)
    theirs = TTestPower().solve_power(effect_size=gain / spread, alpha=0.05, power=0.8, alternative="larger")
    assert plan is not None
    assert plan.groups == pytest.approx(theirs, rel=0.03)
    assert plan.power >= 0.8


@given(st.floats(0.05, 1.0), st.floats(0.05, 1.0), st.floats(0.001, 0.1), st.floats(0.0, 0.04))
@settings(max_examples=100, deadline=None)
def test_planning_and_detecting_are_inverses(gain, spread, alpha, least):
    moments = bell(spread)
    plan = statistics.plan_groups(gain, moments, alpha, 0.8, least)
    assert plan is not None
    found = statistics.detectable_gain(plan.groups, moments, alpha, 0.8, least)
    assert found is not None
    assert found <= gain + 2e-4
    fewer = statistics.detectable_gain(plan.groups - 1, moments, alpha, 0.8, least)
    assert fewer is None or fewer > gain - 2e-4


def test_a_gain_below_what_must_be_observed_cannot_be_planned():
    assert statistics.plan_groups(0.02, bell(0.4), least_gain=0.02) is None
    assert statistics.detectable_gain(3, bell(0.4)) is None  # three groups cannot reach 0.05
    assert statistics.detectable_gain(6, bell(5.0)) is None  # no gain up to 1 is seen through such a spread


def test_assumed_moments_are_the_simulated_ones():
    """Groups of 4 specifications, independent models, differences that are correlated within a group or not."""
    drawn, wanted = np.random.default_rng(5), statistics.assumed_moments(0.2, 0.2, per_group=4, correlation=0.0)
    found = statistics.moments_of(
        ((drawn.random((100_000, 4)) < 0.4).astype(float) - (drawn.random((100_000, 4)) < 0.2)).tolist()
    )
    assert found is not None
    assert (found.spread, found.step) == pytest.approx((wanted.spread, wanted.step), rel=0.01)
    assert found.third == pytest.approx(wanted.third, rel=0.25)
    assert found.fourth == pytest.approx(wanted.fourth, rel=0.02)
    alike = statistics.assumed_moments(0.2, 0.2, per_group=4, correlation=1.0)
    assert alike.spread == pytest.approx(2 * wanted.spread)
    assert statistics.moments_of([[1.0]]) is None
    with pytest.raises(ValueError, match="per_group"):
        statistics.assumed_moments(0.5, 0.2, per_group=0)


def test_clustered_means_are_close_to_statsmodels_cluster_robust_regression():
    """Groups of equal size: the same mean, and nearly the same standard error as sandwich estimators by cluster."""
    import statsmodels.formula.api as smf

    drawn = np.random.default_rng(8)
    rates = drawn.beta(2, 2, size=60)
    rows = [(group, float(drawn.random() < rates[group])) for group in range(60) for _ in range(5)]
    frame = pd.DataFrame(rows, columns=["group", "passed"])
    fitted = smf.ols("passed ~ 1", frame).fit(cov_type="cluster", cov_kwds={"groups": frame["group"]}, use_t=True)
    low, high = fitted.conf_int().iloc[0]
    estimate = statistics.clustered_mean({group: part["passed"].tolist() for group, part in frame.groupby("group")})
    assert estimate.rate == pytest.approx(fitted.params.iloc[0])
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=2e-3)
