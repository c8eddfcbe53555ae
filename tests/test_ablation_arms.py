"""What an ablation compares, by laws: arms of each axis, shares of the traces, costs of steps, and what records say."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ablating
from guardlearn import settings, statistics
from guardlearn.ablation import (
    AXES,
    AblationConfig,
    Cost,
    arms_of,
    cost_of,
    fewest_groups,
    plan_ablation,
    read_settings,
    steps_within,
    subset,
)
from guardlearn.ablation.keeping import ChainOutcome, Record, file_name
from guardlearn.ablation.summary import ATTEMPTS, FIRST, difference
from guardlearn.ablation.timing import deviation, levelled, seconds_for
from guardlearn.ablation.work import step_sizes
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import DataError, UsageError
from guardlearn.evidence import Outcome
from guardlearn.jobs import TrainingConfig
from guardlearn.traces import Checkpoint, Extraction
from guardlearn.types import Side, TrainingTrace

TRAINING = TrainingConfig()


def named(over: str, *names: str, training: TrainingConfig = TRAINING, select: str = "refinement", **given: Any) -> Any:
    arms, reference = arms_of(over, training, select, names, **given)
    return [arm.name for arm in arms], reference


# -- arms


@pytest.mark.parametrize(
    ("over", "names", "reference"),
    [
        ("views", ["first_attempt", "repair", "both"], "both"),
        ("policy", ["refinement", "all", "generator", "human", "high_value", "recent"], "refinement"),
        ("retry_prompt", ["feedback", "artifact"], "feedback"),
        ("budget", ["25 %", "50 %", "100 %"], "100 %"),
        ("method", ["sft", "sft+kto", "sft+dpo"], "sft"),
    ],
)
def test_the_usual_arms_and_the_one_that_is_set(over, names, reference):
    assert named(over) == (names, reference)


def test_an_arm_differs_in_its_setting_only():
    arms, _ = arms_of("views", TRAINING, "refinement")
    assert {arm.name: arm.training.views for arm in arms} == {
        "first_attempt": ("first_attempt",),
        "repair": ("repair",),
        "both": ("first_attempt", "repair"),
    }
    for arm in arms:
        assert dataclasses.replace(arm.training, views=TRAINING.views) == TRAINING
        assert (arm.select, arm.share) == ("refinement", 1.0)
    (half, whole), _ = arms_of("budget", TRAINING, "all", ["50", "100%"])
    assert (half.share, whole.share, half.training, half.select) == (0.5, 1.0, TRAINING, "all")


def test_what_is_set_is_the_reference_and_an_arm():
    training = TrainingConfig(method="dpo", views=("repair", "first_attempt"), retry="artifact")
    assert named("method", training=training) == (["sft", "sft+kto", "sft+dpo", "dpo"], "dpo")
    assert named("views", training=training)[1] == "both"
    assert named("retry_prompt", training=training)[1] == "artifact"
    text = "refinement() & retries(at_least=2)"
    assert named("policy", select=text)[1] == text and text in named("policy", select=text)[0]
    assert named("method", "sft", "kto", training=training)[1] == "sft"  # what is set is no arm: the first
    assert named("method", "sft", "kto", reference="kto")[1] == "kto"
    assert named("budget", "25", "100", reference="25")[1] == "25 %"


@pytest.mark.parametrize(
    ("over", "names", "said"),
    [
        ("view", [], r"unknown axis 'view' \(did you mean 'views'\?\); choose views or policy or retry_prompt"),
        ("method", ["sft", "ppo"], r"unknown arm 'ppo' of axis method.*; choose sft or kto or dpo or sft\+kto"),
        ("retry_prompt", ["feedback", "both"], "unknown arm 'both' of axis retry_prompt"),
        ("policy", ["refinement", "refinment"], r"unknown policy 'refinment' \(did you mean refinement\?\)"),
        ("budget", ["0", "100"], "arm '0' of axis budget is no share of the traces"),
        ("budget", ["half", "100"], "arm 'half' of axis budget is no share"),
        ("budget", ["101", "100"], "arm '101' of axis budget is no share"),
        ("budget", ["25", "25.0 %"], "arm '25 %' of axis budget is named 2 times"),
        ("views", ["both"], "1 arm of axis views compares nothing"),
    ],
)
def test_what_is_no_arm_is_refused_in_one_line(over, names, said):
    with pytest.raises(UsageError, match=said) as refused:
        named(over, *names)
    assert "\n" not in str(refused.value)


def test_a_reference_must_be_an_arm():
    with pytest.raises(UsageError, match="reference 'repair' is none of the arms first_attempt, both"):
        named("views", "first_attempt", "both", reference="repair")


# -- settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seeds": ()}, "seeds of .* give at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"samples": 0}, "samples of .* at least 1"),
        ({"calibration_steps": 2}, "calibration_steps of .* at least 3"),
        ({"r_max": 0}, "r_max of .* at least 1"),
        ({"minutes": 0.0}, "minutes of .* above 0"),
        ({"minutes": float("nan")}, "minutes of .* above 0"),
        ({"first_stage": 1.0}, "first_stage of .* between 0 and 1"),
    ],
)
def test_settings_outside_their_range(given, said):
    with pytest.raises(UsageError, match=said):
        AblationConfig(**given)


def test_the_table_is_read_strictly_and_placed_beside_its_file(tmp_path):
    file = tmp_path / "guardlearn.toml"
    file.write_text('[ablation]\nseeds = [4]\nfolder = "cmp"\n[training]\nlora_r = 4\n')
    found = read_settings(settings.read(file))
    assert (found.ablation.seeds, found.ablation.folder) == ((4,), str(tmp_path / "cmp"))
    assert found.training.lora_r == 4
    file.write_text("[ablation]\nsead = [4]\n")
    with pytest.raises(DataError, match=r"\[ablation\]: unknown key 'sead' \(did you mean 'seeds'\?\)"):
        read_settings(settings.read(file))


def test_what_would_end_an_arm_early_is_left_out_and_said(tmp_path, tiny_model):
    ablating.found(tmp_path / "runs.db")
    bench, _ = ablating.bench(tiny_model, None, {})
    wanted = ablating.wanted({"keep": "best", "early_stopping": 2, "eval_steps": 1})
    with ArtifactDAG.load(tmp_path / "runs.db", read_only=True) as dag:
        planned = plan_ablation(dag, wanted, bench, "views", folder=tmp_path / "out", keep=False)
    assert {(arm.training.keep, arm.training.early_stopping, arm.training.eval_steps) for arm in planned.arms} == {
        ("last", 0, None)
    }
    assert any(note.startswith("early_stopping and keep of [training] are not used") for note in planned.notes)
    assert not (tmp_path / "out").exists()


# -- shares of the traces


def extraction(sizes: list[int]) -> Extraction:
    """Traces in groups of these sizes, in turn."""
    spec = ablating.specifications("train")[0]
    item = ablating.refinements(spec, "x", 0)[0]
    most = max(sizes)
    traces = [
        TrainingTrace(item=item, history=(), group=f"g{group}", side=Side.TRAIN)
        for place in range(most)
        for group, size in enumerate(sizes)
        if place < size
    ]
    checkpoint = Checkpoint(seq=1, item_id="x")
    return Extraction(
        traces=traces, dropped={"redacted": 1}, selected=len(traces) + 1, predicate="p", checkpoint=checkpoint,
        sides_digest="",
    )  # fmt: skip


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 99),
)
def test_shares_are_nested_whole_groups_and_just_enough(sizes, shares, seed):
    whole = extraction(sizes)
    smaller, greater = (subset(whole, share, seed) for share in sorted(shares))
    groups = [{trace.group for trace in each.traces} for each in (smaller, greater)]
    assert groups[0] <= groups[1]
    for share, part, taken in zip(sorted(shares), (smaller, greater), groups, strict=True):
        assert part.traces == [trace for trace in whole.traces if trace.group in taken]  # whole groups, in order
        assert len(part.traces) >= share * len(whole.traces) - 1e-6
        by_group = {group: sum(trace.group == group for trace in part.traces) for group in taken}
        assert len(part.traces) - max(by_group.values()) < share * len(whole.traces)  # no group too many
        assert len(part.traces) + sum(part.dropped.values()) == part.selected
    assert subset(whole, 1.0, seed) == whole


@given(groups=st.integers(1, 12), taken=st.integers(1, 12), size=st.integers(1, 4), seed=st.integers(0, 9))
def test_of_groups_of_one_size_a_share_takes_its_number(groups, taken, size, seed):
    taken = min(taken, groups)
    part = subset(extraction([size] * groups), taken / groups, seed)
    assert len({trace.group for trace in part.traces}) == taken


def test_another_seed_takes_other_groups():
    whole = extraction([2] * 12)
    taken = {frozenset(trace.group for trace in subset(whole, 0.25, seed).traces) for seed in range(6)}
    assert len(taken) > 3


@given(comparisons=st.integers(1, 30))
def test_the_fewest_groups_are_those_whose_flips_reach_the_level(comparisons):
    groups = fewest_groups(comparisons)
    for count, reaches in ((groups, True), (groups - 1, False)):
        p_value = statistics.sign_flip([1.0] * count)
        assert (comparisons * p_value <= 0.05) is reaches


# -- time


SECONDS = st.floats(0.01, 100)


@given(
    start=SECONDS, rest=SECONDS, steps=st.lists(SECONDS, min_size=1, max_size=2), first=st.floats(0, 50),
    sizes=st.lists(st.floats(0.1, 3), min_size=3, max_size=20),
)  # fmt: skip
def test_a_cost_is_found_again_from_the_times_of_its_steps(start, rest, steps, first, sizes):
    """However long the first step of a stage takes beyond the others: that is there once. Longer rows take longer."""
    now, arrivals = start, {0: start}
    for stage, each in enumerate(steps):
        now += first
        for step, size in enumerate(sizes):
            now += each * size
            arrivals[stage * len(sizes) + step + 1] = now
    cost = cost_of(arrivals, now + rest, [sizes] * len(steps))
    assert cost.start == pytest.approx(start) and cost.steps == pytest.approx(steps)
    assert cost.rest == pytest.approx(rest + first * len(steps), rel=1e-6, abs=1e-6)


def test_steps_of_long_rows_are_larger(tmp_path):
    """What all prompts begin with does not count, nor does it matter in which order rows came."""
    training = TrainingConfig(method="sft+dpo", batch_size=2, max_steps=2)
    begins = "You are asked. " * 20
    single = [{"id": f"s{n}", "prompt": begins + "x" * 10 * n, "completion": "y" * 10} for n in range(4)]
    pairs = [{"id": f"p{n}", "prompt": "z", "chosen": "y" * n, "rejected": "y"} for n in range(1, 3)]
    for name, rows in (("train.jsonl", single), ("train.second.jsonl", pairs)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [["s3", "s2"], ["s0", "s1"], ["p2", "p1"], ["p1", "p2"]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"rows": rows}) + "\n" for rows in steps))
    first, second = step_sizes(tmp_path, training)
    assert first == pytest.approx([(41 + 31) / 52, (11 + 21) / 52])  # x, y and the quotation mark that ends a prompt
    assert second == pytest.approx([1, 1])


@given(
    start=SECONDS, rest=SECONDS, steps=st.lists(SECONDS, min_size=1, max_size=2), seconds=st.floats(1, 10_000),
    share=st.floats(0.1, 0.9),
)  # fmt: skip
def test_steps_fill_the_time_to_the_nearest_step(start, rest, steps, seconds, share):
    cost = Cost(start=start, rest=rest, steps=steps)
    try:
        found = steps_within("a", cost, seconds, share)
    except UsageError:
        left = seconds - start - rest
        parts = [left] if len(steps) == 1 else [share * left, (1 - share) * left - steps[0] / 2]
        assert any(part < 0.5 * each + 1e-6 for part, each in zip(parts, steps, strict=True))
        return
    assert abs(seconds_for(cost, found) - seconds) <= steps[-1] / 2 + 1e-6
    if len(steps) == 2:
        assert abs(found[0] * steps[0] - share * (seconds - start - rest)) <= steps[0] / 2 + 1e-6


def test_what_is_the_same_work_for_several_arms_costs_them_the_same():
    measured = {"a": (3.0, 1.0), "b": (9.0, 5.0), "c": (4.0, 2.0), "dpo": (5.0, 50.0)}
    costs = {name: Cost(start=start, rest=rest, steps=[2.0]) for name, (start, rest) in measured.items()}
    found = {name: (cost.start, cost.rest) for name, cost in levelled(costs, "abc").items()}
    assert found == {"a": (4.5, 2.0), "b": (4.5, 2.0), "c": (4.5, 2.0), "dpo": (4.5, 50.0)}
    assert {cost.rest for cost in levelled(costs, ()).values()} == {1.0, 5.0, 2.0, 50.0}


def test_how_uneven_times_were():
    assert deviation([10.0]) is None
    assert deviation([10.0, 10.0, 13.0]) == pytest.approx(0.3)
    assert deviation([8.0, 10.0, 12.0, 10.0]) == pytest.approx(0.2)


# -- differences


def record(outcomes: dict[str, Outcome], groups: int = 100) -> Record:
    chains = [
        ChainOutcome(spec=name, sample=0, group=f"g{number % groups}", outcome=outcome)
        for number, (name, outcome) in enumerate(outcomes.items())
    ]
    return Record(of="", steps=[], pairing="common random numbers", chains=chains)


OUTCOMES = st.one_of(
    st.builds(lambda n: Outcome(first=n == 1, attempts=n, outcome="solved"), st.integers(1, 4)),
    st.just(Outcome(first=False, attempts=4, outcome="unsolved")),
    st.builds(lambda n: Outcome(first=False, attempts=n, outcome="fatal"), st.integers(1, 4)),
    st.just(Outcome(first=None, attempts=1, outcome="no verdict")),
    st.just(Outcome(first=False, attempts=2, outcome="no verdict")),
)


@given(chains=st.lists(st.tuples(OUTCOMES, OUTCOMES), min_size=1, max_size=12))
def test_a_difference_is_the_mean_over_groups_of_what_both_got_a_verdict_for(chains):
    ours = record({f"s{n}": one for n, (one, _) in enumerate(chains)})
    theirs = record({f"s{n}": other for n, (_, other) in enumerate(chains)})
    firsts = [one.first - other.first for one, other in chains if None not in (one.first, other.first)]
    found, pairs = difference([ours], [theirs], FIRST, 4)
    assert (pairs, found.rate) == (len(firsts), pytest.approx(sum(firsts) / len(firsts)) if firsts else None)
    needed = [
        (one.attempts if one.outcome == "solved" else 4) - (other.attempts if other.outcome == "solved" else 4)
        for one, other in chains
        if "no verdict" not in (one.outcome, other.outcome)
    ]
    found, pairs = difference([ours], [theirs], ATTEMPTS, 4)
    assert (pairs, found.rate) == (len(needed), pytest.approx(sum(needed) / len(needed)) if needed else None)
    if found.low is not None:
        assert -3 <= found.low <= found.rate <= found.high <= 3


def test_seeds_are_paired_with_their_own_and_counted_in_their_group():
    good = Outcome(first=True, attempts=1, outcome="solved")
    bad = Outcome(first=False, attempts=1, outcome="unsolved")
    arm = [record({"a": good, "b": bad}), record({"a": good, "b": good})]
    reference = [record({"a": bad, "b": bad}), record({"a": good, "b": bad})]
    found, pairs = difference(arm, reference, FIRST, 1)
    assert (pairs, found.rate) == (4, 0.5)  # group a: (1 + 0) / 2, group b: (0 + 1) / 2
    assert difference(arm, list(reversed(reference)), FIRST, 1)[0].rate == 0.5
    swapped, _ = difference(reference, arm, FIRST, 1)
    assert swapped.rate == -0.5


@given(names=st.lists(st.text(max_size=60), min_size=2, max_size=6, unique=True))
def test_arms_never_share_a_file(names):
    files = [file_name(name, seed) for name in names for seed in (0, 1, 10)]
    assert len({name.lower() for name in files}) == len(files)
    assert all("/" not in name and len(name) < 70 for name in files)


def test_the_page_shows_the_defaults_and_every_axis():
    """docs/ablations.md: its table is read as it stands, its axes and arms are those there are."""
    text = (Path(__file__).parents[1] / "docs" / "ablations.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    shown = tomllib.loads(table)["ablation"]
    assert settings.convert(shown, AblationConfig, "docs") == AblationConfig()
    assert set(shown) | set(re.findall(r"^# (\w+) =", table, re.MULTILINE)) == set(AblationConfig.__struct_fields__)
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(AXES)
    for name, said in rows:
        listed = re.findall(r"`([^`]+)`", said)
        assert not listed or listed == named(name)[0]
    assert "6 groups for two arms, 7 for three or four, 8 for five to seven" in " ".join(text.split())
    assert [fewest_groups(arms - 1) for arms in range(2, 8)] == [6, 7, 7, 8, 8, 8]
