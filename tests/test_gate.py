"""The promotion gate: what it promotes, what it refuses and why, and its error rates by simulation."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn import statistics
from guardlearn.errors import UsageError
from guardlearn.gate import GateConfig, GateFigures, Paired, decide, plan


def paired(groups, against=None):
    judged = {f"g{n:03}": list(map(float, values)) for n, values in enumerate(groups)}
    return Paired(judged=judged, against=judged if against is None else against)


def figures(held_out, **others):
    return GateFigures(**{"held_out": held_out, "look": 1, "changed": True} | others)


GAIN = paired([[1, 0, 1, 0]] * 20 + [[0, 0, 0, 0]] * 10)
SAME = paired([[0, 0]] * 80)


def failed(decision):
    return [check.name for check in decision.checks if not check.passed]


def test_a_clear_gain_is_promoted_and_says_by_how_much():
    decision = decide(figures(GAIN, regressions={"other": SAME}, general_loss={"a": [0.01], "b": [0.0], "c": [-0.01]}))
    assert decision.promoted
    assert failed(decision) == []
    assert decision.gain == pytest.approx(1 / 3)
    assert "+33.3 points" in decision.reason
    assert "3 more checks" in decision.reason


def test_no_gain_is_refused_by_superiority():
    decision = decide(figures(paired([[1, -1], [0, 0], [-1, 1]] * 10)))
    assert failed(decision) == ["superiority"]
    assert decision.reason.startswith("refused by superiority: 30 groups: +0.0 points")


def test_a_sure_gain_that_is_too_small_is_refused():
    groups = paired([[1] + [0] * 199] * 40)  # half a point in every group: p is tiny
    decision = decide(figures(groups))
    assert decision.p_value is not None
    assert decision.p_value < 1e-6
    assert failed(decision) == ["superiority"]
    assert decide(figures(groups), GateConfig(min_gain=0.004)).promoted


def test_each_look_asks_for_more():
    groups = paired([[1]] * 7 + [[0]] * 20)  # p = 2^-7
    levels = [decide(figures(groups, look=look)).level for look in range(1, 5)]
    assert levels == pytest.approx([statistics.level_of_look(0.05, look) for look in range(1, 5)])
    assert [decide(figures(groups, look=look)).promoted for look in range(1, 5)] == [True, False, False, False]


def test_a_conclusion_that_rests_on_missing_verdicts_is_refused():
    against = {f"g{n:03}": [1.0, 0.0, 1.0, 0.0] if n < 8 else [-1.0, 0.0, 0.0, 0.0] for n in range(30)}
    decision = decide(figures(paired([[1, 0, 1, 0]] * 20 + [[0, 0, 0, 0]] * 10, against)))
    assert failed(decision) == ["superiority"]
    assert "missing verdicts against it" in decision.reason


def test_a_candidate_that_changes_nothing_is_refused():
    decision = decide(figures(SAME, changed=False))
    assert failed(decision) == ["superiority", "difference"]
    assert "changes nothing" in next(check for check in decision.checks if check.name == "difference").found


def test_harm_elsewhere_refuses_and_so_does_a_set_too_small_to_tell():
    worse = paired([[0, -1]] * 20 + [[0, 0]] * 40)
    assert failed(decide(figures(GAIN, regressions={"other": worse}))) == ["no harm to other"]
    small = decide(figures(GAIN, regressions={"other": paired([[0, 0]])}))
    assert failed(small) == ["no harm to other"]
    assert "too few groups" in small.reason
    # twenty groups that all agree leave room for three in twenty unseen ones that do not
    assert failed(decide(figures(GAIN, regressions={"other": paired([[0, 0]] * 20)}))) == ["no harm to other"]
    assert decide(figures(GAIN, regressions={"other": paired([[0, 0]] * 20)}), GateConfig(margin=0.2)).promoted


def test_a_rising_loss_on_general_text_refuses():
    calm = {f"t{n}": [0.01 + 0.001 * n] for n in range(8)}
    assert decide(figures(GAIN, general_loss=calm)).promoted
    risen = {f"t{n}": [0.2 + 0.01 * n] for n in range(8)}
    assert failed(decide(figures(GAIN, general_loss=risen))) == ["general loss"]
    unsure = {f"t{n}": [(-1) ** n * 0.5] for n in range(8)}
    assert failed(decide(figures(GAIN, general_loss=unsure))) == ["general loss"]
    assert failed(decide(figures(GAIN, general_loss={"t": [0.0]}))) == ["general loss"]


def test_divergence_from_the_base_refuses_only_where_a_bound_asks_for_it():
    near = {f"p{n}": [0.1 + 0.01 * n] for n in range(8)}
    assert decide(figures(GAIN, kl=near)).promoted
    assert [check.name for check in decide(figures(GAIN, kl=near)).checks] == ["superiority", "difference"]
    assert decide(figures(GAIN, kl=near), GateConfig(kl_margin=0.2)).promoted
    assert failed(decide(figures(GAIN, kl=near), GateConfig(kl_margin=0.14))) == ["divergence"]  # mean 0.135
    unmeasured = decide(figures(GAIN), GateConfig(kl_margin=9.0))
    assert failed(unmeasured) == ["divergence"]
    assert "not measured" in unmeasured.reason
    assert "too few prompts" in decide(figures(GAIN, kl={"p": [0.0]}), GateConfig(kl_margin=9.0)).reason


def test_that_nothing_changed_is_the_reason_given():
    assert decide(figures(paired([]), changed=False)).reason.startswith("refused by difference: every answer")


def test_guard_gaming_refuses():
    gaming = {f"g{n}": [1.0, 0.0] for n in range(10)}
    assert failed(decide(figures(GAIN, guard_gap=gaming))) == ["hidden guards"]
    honest = {f"g{n}": [0.0, 0.0, float(n == 0) - float(n == 1)] for n in range(10)}
    assert decide(figures(GAIN, guard_gap=honest)).promoted
    assert failed(decide(figures(GAIN, guard_gap={"g": []}))) == ["hidden guards"]
    # a rise within the margin, yet in every group
    steady = {f"g{n}": [0.0] * 99 + [1.0] for n in range(12)}
    assert failed(decide(figures(GAIN, guard_gap=steady))) == ["hidden guards"]


def test_nothing_measured_is_refused_in_words():
    for groups in (paired([]), paired([[1]])):
        decision = decide(figures(groups))
        assert failed(decision) == ["superiority"]
        assert (decision.p_value, decision.detectable) == (None, None)
    with pytest.raises(UsageError, match="counted from 1"):
        decide(figures(GAIN, look=0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.5},
        {"alpha": 0.0},
        {"power": 1.0},
        {"min_gain": -0.1},
        {"margin": 0.0},
        {"kl_margin": 0.0},
        {"gap_margin": 2.0},
    ],
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(UsageError, match=f"the gate's {next(iter(wrong))} is .*; allowed: "):
        GateConfig(**wrong)


OUTCOMES = st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=4), min_size=2, max_size=12)


@pytest.mark.slow
@given(OUTCOMES, st.integers(1, 5), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_decision_depends_on_neither_names_nor_order(groups, look, order):
    decision = decide(figures(paired(groups), look=look))
    shuffled = order.sample(groups, len(groups))
    renamed = {f"other {n}": order.sample(values, len(values)) for n, values in enumerate(shuffled)}
    again = decide(figures(Paired(judged=renamed, against=renamed), look=look))
    assert msgspec.json.encode(again) == msgspec.json.encode(decision)


@given(OUTCOMES)
@settings(deadline=None)
def test_a_loss_in_the_mean_is_never_promoted(groups):
    decision = decide(figures(paired(groups)), GateConfig(min_gain=0.0))
    if decision.promoted:
        assert decision.gain is not None
        assert decision.gain > 0
        assert decision.p_value is not None
        assert decision.p_value <= decision.level


def simulated(drawn, groups, base, gain, per_group=4):
    """Pairs of two models on specifications whose difficulty their group shares."""
    difficulty = drawn.normal(0, 0.15, size=(groups, 1))
    before, after = (np.clip(rate + difficulty, 0.02, 0.98) for rate in (base, base + gain))
    steps = (drawn.random((groups, per_group)) < after).astype(float) - (drawn.random((groups, per_group)) < before)
    return paired(steps.tolist())


@pytest.mark.slow
def test_useless_candidates_are_seldom_promoted():
    """600 nulls: at most alpha + 3.3 standard errors; 10 000 are in `make prove`."""
    drawn = np.random.default_rng(11)
    promoted = sum(decide(figures(simulated(drawn, 30, 0.5, 0.0))).promoted for _ in range(600))
    assert promoted / 600 < 0.03 + 3.3 * (0.03 * 0.97 / 600) ** 0.5  # level of the first look: 0.0304


def test_what_was_planned_is_found_as_often_as_planned():
    """300 candidates with the gain that was planned for: the power within four standard errors."""
    drawn, gain = np.random.default_rng(12), 0.2
    moments = statistics.moments_of(list(simulated(drawn, 4000, 0.4, gain).judged.values()))
    assert moments is not None
    needed, detectable = plan(gain, moments, groups=20)
    assert needed is not None
    assert detectable is not None
    assert detectable > gain
    found = sum(decide(figures(simulated(drawn, needed.groups, 0.4, gain))).promoted for _ in range(300)) / 300
    assert found == pytest.approx(needed.power, abs=0.03 + 3 * (needed.power * (1 - needed.power) / 300) ** 0.5)
