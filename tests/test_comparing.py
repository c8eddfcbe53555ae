"""Two evaluations against each other: it is what `evaluate` says, 0 with itself, and refuses what cannot be paired."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidences import evidence_of, spec
from guardlearn.comparing import Measured, compare, measured
from guardlearn.comparing.pairing import LeftOut
from guardlearn.errors import DataError, UsageError

R_MAX = 3
CHAIN = st.sampled_from([
    ["pass"], ["fail", "pass"], ["fail", "fail", "pass"], ["fail", "fail", "fail"], ["fatal"], ["fail", "fatal"],
    ["silent"], ["fail", "silent"],
])  # fmt: skip


@st.composite
def evaluations(draw: st.DrawFn, models: int = 2):
    """How `models` models fared on the same specifications, a few groups of a few each."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=8))
    if sum(sizes) < 2:
        sizes.append(1)
    names = [f"g{group}.{n}" for group, size in enumerate(sizes) for n in range(size)]
    samples = draw(st.integers(1, 3))
    return [{name: [draw(CHAIN) for _ in range(samples)] for name in names} for _ in range(models)]


def alone(chains, **about) -> Measured:
    """Return the only model of an evidence."""
    return measured(evidence_of(chains, r_max=R_MAX, **about))


@given(evaluations())
@settings(max_examples=20, deadline=None)
def test_base_and_candidate_of_one_evidence_compare_as_evaluate_says(drawn):
    evidence = evidence_of(*drawn, r_max=R_MAX)
    found = compare(measured(evidence, "base"), measured(evidence, "candidate"))
    assert found.difference == evidence.difference
    assert found.changes == evidence.changes
    assert found.by_action_pair == evidence.by_action_pair
    for figures, performance in ((found.a, evidence.base), (found.b, evidence.candidate)):
        for name in (
            "first_attempt", "expected_attempts", "expected_attempts_low", "expected_attempts_high",
            "expected_retries", "solved_within_r_max", "solved_by_attempt", "outcomes",
        ):  # fmt: skip
            assert getattr(figures, name) == getattr(performance, name), name
    assert (found.specs, found.groups, found.r_max) == (evidence.specs, evidence.groups, evidence.r_max)
    assert found.pairing == "common random numbers"


@given(evaluations())
@settings(max_examples=20, deadline=None)
def test_two_bases_measured_apart_compare_as_if_measured_together(drawn):
    together = evidence_of(*drawn, r_max=R_MAX)
    found = compare(*map(alone, drawn))
    assert (found.difference, found.changes) == (together.difference, together.changes)


@given(evaluations(models=1))
@settings(max_examples=20, deadline=None)
def test_nothing_differs_from_itself(drawn):
    one = alone(drawn[0])
    found = compare(one, one)
    assert found.difference.rate in (0.0, None)
    assert found.difference.p_value in (1.0, None)
    assert not found.difference.holds
    assert found.changes.gained == found.changes.lost == found.changes.chains_changed == 0
    assert all(row.difference in (0.0, None) for row in found.pass_at_k)
    assert found.mcnemar_p_value in (1.0, None)
    assert "Every chain went the same way with both." in found.notes
    assert msgspec.structs.replace(found.a, name="") == msgspec.structs.replace(found.b, name="")


@given(evaluations())
@settings(max_examples=20, deadline=None)
def test_the_other_way_round_every_difference_changes_its_sign(drawn):
    a, b = map(alone, drawn)
    there, back = compare(a, b), compare(b, a)
    assert (there.a, there.b) == (back.b, back.a)
    assert (there.changes.gained, there.changes.lost) == (back.changes.lost, back.changes.gained)
    assert there.mcnemar_p_value == back.mcnemar_p_value
    pairs = [(there.difference, back.difference, "rate")]
    for name in ("pass_at_k", "by_action_pair"):
        rows = zip(getattr(there, name), getattr(back, name), strict=True)
        pairs += [(one, other, "difference") for one, other in rows]
    for one, other, name in pairs:
        assert negated(getattr(one, name)) == pytest.approx(getattr(other, name))
        assert negated(one.low) == pytest.approx(other.high)
    for name in ("p_value", "minimum_detectable"):
        assert getattr(there.difference, name) == pytest.approx(getattr(back.difference, name))
    # missing verdicts are held against B, whichever that is
    assert there.difference.conservative.rate + back.difference.conservative.rate <= 1e-9


def negated(value):
    return None if value is None else -value


def test_figures_worked_out_by_hand():
    """Four groups of one specification with one sample: three gained, none lost."""
    a = {"a": [["fail", "pass"]], "b": [["fail", "fail", "fail"]], "c": [["fail", "pass"]], "d": [["pass"]]}
    b = {"a": [["pass"]], "b": [["pass"]], "c": [["pass"]], "d": [["pass"]]}
    found = compare(alone(a), alone(b))
    assert (found.difference.rate, found.changes.gained, found.changes.lost) == (0.75, 3, 0)
    assert found.mcnemar_p_value == pytest.approx(0.25)  # 2 / 2^3
    assert found.difference.p_value == pytest.approx(0.25)  # the same test
    assert found.a.expected_attempts == pytest.approx((2 + 3 + 2 + 1) / 4)
    assert (found.a.bound.epsilon, found.a.bound.observed) == (0.25, pytest.approx(0.25))
    assert found.a.bound.bound == pytest.approx(0.75**3)
    assert found.b.bound.bound == 0.0
    assert found.pass_at_k == []


def test_mcnemar_is_for_chains_that_stand_alone():
    apart = {"a": [["fail", "fail", "fail"]], "b": [["pass"]]}
    together = {"a.1": [["fail", "fail", "fail"]], "a.2": [["pass"]], "b.1": [["pass"]]}
    twice = {"a": [["pass"], ["pass"]], "b": [["pass"], ["pass"]]}
    assert compare(alone(apart), alone(apart)).mcnemar_p_value == 1.0
    assert compare(alone(together), alone(together)).mcnemar_p_value is None
    assert compare(alone(twice), alone(twice)).mcnemar_p_value is None


def test_pass_at_k_is_unbiased_and_a_mean_of_group_means():
    worse = [["pass"], *[["fail", "pass"]] * 3]
    a = {"g.1": worse, "g.2": [["pass"]] * 4, "h.1": [["fail", "pass"]] * 4}
    b = {"g.1": [["pass"]] * 4, "g.2": [["pass"]] * 4, "h.1": worse}
    found = compare(alone(a), alone(b))
    assert [row.k for row in found.pass_at_k] == [2, 4]
    two, four = found.pass_at_k
    # of six pairs out of four attempts, three hold the one that passed: 1 - C(3,2)/C(4,2) = 1/2
    assert (two.a, two.b) == (pytest.approx((0.5 + 1) / 2 / 2), pytest.approx((1 + 0.5) / 2))
    assert two.difference == pytest.approx(two.b - two.a)
    assert (four.a, four.b, four.specs) == (0.5, 1.0, 3)


def test_pass_at_k_leaves_out_specifications_with_too_few_verdicts():
    a = {"a": [["pass"], ["silent"]], "b": [["fail", "pass"], ["pass"]], "c": [["pass"], ["pass"]]}
    b = {name: [["pass"], ["pass"]] for name in a}
    (row,) = compare(alone(a), alone(b)).pass_at_k
    assert (row.k, row.specs, row.a) == (2, 2, 1.0)
    assert [row.k for row in compare(*[alone({n: [["pass"]] * 6 for n in "ab"})] * 2).pass_at_k] == [2, 4, 6]


def test_missing_verdicts_are_held_against_b():
    a = {name: [["fail", "pass"]] for name in "abcdefgh"}
    b = a | {name: [["pass"]] for name in "abcd"} | {name: [["silent"]] for name in "efgh"}
    found = compare(alone(a), alone(b))
    assert (found.difference.rate, found.difference.conservative.rate) == (1.0, 0.5)
    assert compare(alone(b), alone(a)).difference.conservative.rate == -1.0
    assert "4 pairs have not both verdicts." in found.notes


def test_p_values_of_action_pairs_are_adjusted_for_their_number():
    names = [f"{pair}{n}" for pair in "xy" for n in range(10)]
    specs = [spec(name, action_pair_id=name[0], group=name) for name in names]
    a = {name: [["fail", "pass"]] for name in names}
    b = a | {f"x{n}": [["pass"]] for n in range(10)} | {f"y{n}": [["pass"]] for n in range(6)}
    x, y = compare(alone(a, specs=specs), alone(b, specs=specs)).by_action_pair
    assert (x.p_value, y.p_value) == (pytest.approx(2 / 2**10), pytest.approx(2 / 2**6))
    assert (x.adjusted_p_value, y.adjusted_p_value) == (pytest.approx(4 / 2**10), pytest.approx(2 / 2**6))


# -- what is refused


CHAINS = {f"g{n}.{k}": [["fail", "pass"]] for n in range(3) for k in range(2)}
OTHER = {
    "guard": ({"guard": "cases"}, "guard 'style' and 'cases'"),
    "guard version": ({"guard_version": "v2"}, "guard version 'v1' and 'v2'"),
    "temperature": (
        {"sampling": {"generator": "transformers", "temperature": 1.0, "seed": 0}}, "sampling temperature 0.7 and 1.0",
    ),
    "a setting that only one has": (
        {"sampling": {"generator": "transformers", "temperature": 0.7, "seed": 0, "top_k": 5}},
        "sampling top_k None and 5",
    ),
    "renderer": ({"digests": {"renderer": "r2", "prompt": "p", "specifications": ""}}, "renderer 'r' and 'r2'"),
    "prompts": ({"digests": {"renderer": "r", "prompt": "p2", "specifications": ""}}, "prompts 'p' and 'p2'"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_what_was_measured_otherwise_is_refused_with_both_values(name):
    about, said = OTHER[name]
    with pytest.raises(UsageError) as caught:
        compare(alone(CHAINS), alone(CHAINS, **about), common=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_all_that_differs_is_named_at_once():
    a, b = evidence_of(CHAINS, r_max=3), evidence_of(CHAINS, r_max=4, guard="cases")
    with pytest.raises(UsageError, match="guard 'style' and 'cases'; R_max 3 and 4; measure both in the same way"):
        compare(measured(a), measured(b))
    twice = {name: chains * 2 for name, chains in CHAINS.items()}
    with pytest.raises(UsageError, match="samples per specification 1 and 2"):
        compare(measured(a), measured(evidence_of(twice, r_max=3)))


def test_another_seed_is_no_obstacle_and_is_said():
    found = compare(alone(CHAINS), alone(CHAINS, seed=7))
    assert found.pairing == "specification"
    assert "Seeds 0 and 7: pairs share the specification only, not the sampling noise." in found.notes
    assert (found.a.seed, found.b.seed) == (0, 7)
    server = compare(alone(CHAINS), alone(CHAINS, pairing="specification"))
    assert server.pairing == "specification"
    assert "Pairs share the specification only, not the sampling noise." in server.notes


def test_other_models_are_compared_and_named():
    assert "The models differ: m and n." in compare(alone(CHAINS), alone(CHAINS, model="n")).notes


def test_other_specifications_are_refused_or_left_out_and_counted():
    more = {f"g{n}.{k}": [["pass"]] for n in range(1, 5) for k in range(2)}
    specs = [spec(name, specification="Do something else" if name == "g1.0" else f"Do {name}") for name in more]
    a, b = alone(CHAINS), alone(more, specs=specs)
    with pytest.raises(UsageError, match=r"other specifications: 6 with digest .* and 8 with digest .* the 3 "):
        compare(a, b)
    found = compare(a, b, common=True)
    assert found.left_out == LeftOut(only_in_a=2, only_in_b=4, altered=1)
    assert (found.specs, found.groups, found.difference.pairs, found.difference.rate) == (3, 2, 3, 1.0)
    assert any("2 specifications that only A has, 4 that only B has, 1 that differ" in note for note in found.notes)
    assert found.a.cost is None is found.b.cost


def test_the_same_specifications_in_another_order_are_the_same():
    back = dict(reversed(CHAINS.items()))
    assert compare(alone(CHAINS), alone(back)).left_out == LeftOut()


def test_evidence_from_before_texts_were_noted_is_matched_by_id_and_group():
    def older(one):
        pairs = [msgspec.structs.replace(pair, digest="") for pair in one.evidence.per_spec]
        return one._replace(evidence=msgspec.structs.replace(one.evidence, per_spec=pairs))

    a = older(alone(CHAINS))
    found = compare(a, alone(CHAINS))
    assert found.difference.rate == 0.0
    assert any("matched by id and group alone" in note for note in found.notes)
    moved = [spec(name, group="elsewhere" if name == "g0.0" else name.split(".")[0]) for name in CHAINS]
    with pytest.raises(UsageError, match="measured other specifications"):
        compare(a, older(alone(CHAINS, specs=moved)))
    assert compare(a, older(alone(CHAINS, specs=moved)), common=True).left_out.altered == 1


@pytest.mark.parametrize("common", [False, True])
def test_one_specification_gives_nothing_to_compare(common):
    one = alone({"a": [["pass"]]})
    with pytest.raises(UsageError, match="share 1 specification, of 1 and 1; a comparison takes at least 2"):
        compare(one, one, common=common)


def test_nothing_in_common_is_refused():
    with pytest.raises(UsageError, match="share 0 specifications, of 6 and 2"):
        compare(alone(CHAINS), alone({"x": [["pass"]], "y": [["pass"]]}), common=True)


def test_one_group_is_compared_without_an_interval():
    chains = {f"g.{n}": [["fail", "pass"]] for n in range(4)}
    found = compare(alone(chains), alone({name: [["pass"]] for name in chains}))
    assert (found.difference.rate, found.difference.low, found.difference.p_value) == (1.0, None, None)
    assert any("One group only" in note for note in found.notes)


def test_the_candidate_is_meant_unless_the_base_is_asked_for():
    both, base = evidence_of(CHAINS, {name: [["pass"]] for name in CHAINS}), evidence_of(CHAINS)
    assert (measured(both).which, measured(base).which) == ("candidate", "base")
    assert (measured(both).adapter, measured(both, "base").adapter) == ("learned", None)
    assert measured(msgspec.structs.replace(both, against="older"), "base").adapter == "older"
    with pytest.raises(UsageError, match="out has no candidate: only the base was measured; choose base"):
        measured(base, "candidate", "out")


def test_a_chain_named_twice_is_an_error():
    evidence = evidence_of(CHAINS)
    twice = msgspec.structs.replace(evidence, per_spec=[*evidence.per_spec, evidence.per_spec[2]])
    for a, b in itertools.permutations([measured(evidence), measured(twice, name="edited")]):
        with pytest.raises(DataError, match=r"edited names specification 'g1\.0' sample 0 twice"):
            compare(a, b)
