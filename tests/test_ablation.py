"""Ablations: arms at equal time, paired on the validation side, resumable; what cannot be compared is refused.

A trainer whose steps take a set time stands in for the training process and answers are replayed by arm; the rest is
what users run. One ablation trains the tiny model for real.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
from pathlib import Path

import msgspec
import pytest

import ablating
import killing
from guardlearn import ArtifactDAG
from guardlearn.ablation import ablate
from guardlearn.errors import (
    DataError,
    GuardlearnError,
    JobError,
    LeakageError,
    NoTracesError,
    PredicateError,
    UsageError,
)
from guardlearn.predicates import refinement
from guardlearn.report.ablation_files import load_ablation
from guardlearn.types import Side

SHARES = {"": 0.1, "both": 0.3, "first_attempt": 0.95, "repair": 0.3}


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_model):
    """An ℛ, an ablation over views that was run to its end, and what it came to."""
    folder = tmp_path_factory.mktemp("done")
    ablating.found(folder / "runs.db")
    bench, _ = ablating.bench(tiny_model, ablating.write_trainer(folder), SHARES)
    with ArtifactDAG.load(folder / "runs.db", read_only=True) as dag:
        ablating.allot(dag, ablating.wanted(), bench, "views", folder=folder / "out")
        found = ablate(dag, ablating.wanted(), bench, "views", folder=folder / "out", stage=ablating.quiet)
    return folder, found


@pytest.fixture
def target(tmp_path, done):
    shutil.copy(done[0] / "runs.db", tmp_path)
    return tmp_path / "runs.db"


@pytest.fixture
def finished(tmp_path, target, done):
    """What an ablation came to that was run in this test's folder."""
    shutil.copytree(done[0] / "out", tmp_path / "out")
    return done[1]


@pytest.fixture
def run(tmp_path, target, tiny_model):
    """Run an ablation in a folder; keeps the keys that were asked for in `run.asked`."""
    trainer = ablating.write_trainer(tmp_path)

    def run(over="views", *names, settings=None, shares=SHARES, reference=None, timed=False, **given):
        bench, run.asked = ablating.bench(tiny_model, trainer, shares, **given)
        asked, folder = (settings or ablating.wanted(), bench, over, names, reference), tmp_path / "out"
        with ArtifactDAG.load(target, read_only=True) as dag:
            if not timed:
                with contextlib.suppress(GuardlearnError):  # it is to say so itself
                    ablating.allot(dag, *asked, folder=folder)
            return ablate(dag, *asked, folder=folder, stage=ablating.quiet)

    return run


# -- what comes out


def test_a_better_arm_is_told_apart_and_an_equal_one_is_not(finished):
    found = finished
    assert (found.reference, [arm.figures.name for arm in found.arms]) == ("both", ["both", "first_attempt", "repair"])
    by_name = {each.arm: each for each in found.differences}
    assert by_name["repair"].rate == 0 and by_name["repair"].adjusted_p_value == 1.0  # same share, same noise
    better = by_name["first_attempt"]
    assert better.rate > 0.2 and better.low > 0 and better.adjusted_p_value < 0.05
    assert better.adjusted_p_value == pytest.approx(min(1.0, 2 * better.p_value))
    assert found.says[0].startswith("first_attempt minus both: +") and ": better (p = " in found.says[0]
    assert "not told apart; these groups could have shown" in found.says[1]
    assert (found.specs, found.groups, found.r_max, found.seeds) == (20, 10, 1, [0, 1])
    assert [arm.traces for arm in found.arms] == [[32, 32]] * 3
    assert [each.name for each in found.untrained] == ["untrained"]


def test_every_rate_is_the_share_of_chains_that_the_records_hold(finished, tmp_path):
    for arm in finished.arms:
        name = arm.figures.name
        kept = [json.loads((tmp_path / "out" / "records" / f"{name}-{seed}.json").read_bytes()) for seed in (0, 1)]
        firsts = [chain["outcome"]["first"] for record in kept for chain in record["chains"]]
        assert len(firsts) == 40
        assert arm.figures.first_attempt.rate == pytest.approx(sum(firsts) / 40)  # groups are of one size
        assert arm.figures.by_seed == [
            pytest.approx(sum(chain["outcome"]["first"] for chain in record["chains"]) / 20) for record in kept
        ]


def test_only_the_validation_side_is_asked_and_judged(run):
    guard = ablating.WordGuard()
    run(guard=guard, settings=ablating.wanted(seeds=(0,)))
    asked = {key.split("/")[1] for key in run.asked}
    assert asked == {spec.id for spec in ablating.specifications("validation")}
    assert {name for name, _ in guard.judged} == asked


def test_held_out_is_not_read_and_nothing_is_written_into_the_repository(run, target):
    before = target.read_bytes()
    run(settings=ablating.wanted(seeds=(0,)))
    assert target.read_bytes() == before
    with ArtifactDAG.load(target, read_only=True) as dag:
        assert dag.readings() == []


def test_all_arms_meet_the_same_noise(run):
    run(settings=ablating.wanted(samples=2))
    models = 3 * 2 + 1  # three arms with two seeds, and the untrained model
    assert len(run.asked) == models * 20 * 2
    assert len(set(run.asked)) == 20 * 2


def test_ways_of_asking_are_told_apart_by_the_attempts_they_need(run):
    shares = {"": 0.1, "feedback": 0.3, "artifact": 0.9}
    found = run("retry_prompt", shares=shares)
    assert (found.outcome, found.r_max, found.reference) == ("attempts", 4, "feedback")
    (versus,) = found.differences
    feedback, artifact = (arm.figures for arm in found.arms)
    assert versus.rate == pytest.approx(artifact.expected_attempts - feedback.expected_attempts)
    assert versus.rate < -0.5 and versus.high < 0 and ": better" in found.says[0]  # fewer are better
    assert versus.low >= -3
    assert [each.name for each in found.untrained] == ["untrained, feedback", "untrained, artifact"]


def test_the_prompts_of_a_retry_are_those_of_the_arm(run, tmp_path):
    seen = {}

    class Listening(ablating.ByArm):
        def _chosen(self, request):
            if request.key.endswith("/2"):
                arm = "" if self._adapter is None else Path(self._adapter).parents[1].name
                seen.setdefault(arm, request.messages[-1]["content"])
            return ablating.BAD

    run("retry_prompt", open_generator=lambda config, manifest: (Listening({}, []), None))
    assert ablating.BAD not in seen["feedback-0"].split() and "word misses good" in seen["feedback-0"]
    assert ablating.BAD in seen["artifact-0"].split()


def test_fatal_and_missing_verdicts_are_counted_for_what_they_are(run):
    shares = {"": 0.1, "feedback": 0.5, "artifact": 0.5}

    class Silent(ablating.WordGuard):
        def __call__(self, artifact, context):
            if context.specification.id == "validation-0-0":
                raise RuntimeError("the checker is down")
            return super().__call__(artifact, context)

    found = run("retry_prompt", shares=shares, guard=Silent())
    (versus,) = found.differences
    assert versus.pairs == 2 * 19
    assert [arm.figures.first_attempt.no_verdict for arm in found.arms] == [2, 2]


# -- the same time for all


@pytest.mark.slow
def test_arms_get_the_steps_that_the_same_time_holds(run, monkeypatch):
    monkeypatch.setenv("TRAINER_SECONDS", "0.05")
    found = run(settings=ablating.wanted({"max_steps": 8}, seeds=(0,)), timed=True)
    steps = {arm.figures.name: arm.steps[0] for arm in found.arms}
    assert 7 <= steps["both"] <= 9
    # a step of "both" takes twice as long in this trainer
    assert 12 <= steps["first_attempt"] <= 22 and 12 <= steps["repair"] <= 22
    assert found.seconds >= 0.8
    batches = {"both": 16, "first_attempt": 8, "repair": 8}  # of 4 rows: 32 traces, two rows each under both views
    assert all(arm.passes == [round(arm.steps[0] / batches[arm.figures.name], 3)] for arm in found.arms)


@pytest.mark.slow
def test_without_a_number_of_steps_the_reference_takes_its_epochs(run, monkeypatch):
    monkeypatch.setenv("TRAINER_SECONDS", "0.05")
    settings = ablating.wanted({"max_steps": None, "epochs": 1.2, "views": ("first_attempt",)}, seeds=(0,))
    found = run("views", "first_attempt", "repair", settings=settings, timed=True)
    assert 9 <= found.arms[0].steps[0] <= 11  # 1.2 passes over 32 rows in batches of 4


@pytest.mark.slow
def test_two_stages_share_the_time(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_SECONDS", "0.04")
    settings = ablating.wanted({"views": ("first_attempt",), "max_steps": 30}, seeds=(0,), first_stage=0.5)
    shares = {"": 0.1, "sft": 0.5, "sft_dpo-" + ablating_digest("sft+dpo"): 0.5}
    found = run("method", "sft", "sft+dpo", settings=settings, shares=shares, timed=True)
    sft, both = (arm.steps for arm in found.arms)
    assert 27 <= sft[0] <= 33
    assert 11 <= both[0] <= 20 and 5 <= both[1] <= 10  # a half of the time each, at twice the price in the second
    name = next(
        path.name
        for path in (tmp_path / "out" / "trained").iterdir()
        if path.name.startswith("sft_dpo") and path.is_dir()
    )
    assert json.loads((tmp_path / "out" / "trained" / name / "job" / "result.json").read_bytes())["steps"] == sum(both)


def ablating_digest(name):
    from guardlearn.digests import digest_text

    return digest_text(name)[:8]


@pytest.mark.slow
def test_minutes_are_kept_to(run, monkeypatch):
    monkeypatch.setenv("TRAINER_SECONDS", "0.05")
    found = run(settings=ablating.wanted({"views": ("first_attempt",)}, seeds=(0,), minutes=0.02), timed=True)
    assert found.seconds == 1.2
    assert all(0.5 <= arm.wall_seconds[0] <= 3 for arm in found.arms)


@pytest.mark.slow
def test_a_time_that_holds_no_step_is_refused(run, monkeypatch):
    monkeypatch.setenv("TRAINER_SECONDS", "0.1")
    with pytest.raises(UsageError, match=r"minutes hold no step of arm 'both', which takes .* give more --minutes"):
        run(settings=ablating.wanted(minutes=1e-6), timed=True)


# -- going on


def test_run_again_it_trains_and_asks_nothing(run, finished, tmp_path, monkeypatch):
    kept = ablating.records(tmp_path / "out")
    monkeypatch.setenv("TRAINER_FAILS", "first_attempt")  # a training would fail
    assert msgspec.to_builtins(run()) == msgspec.to_builtins(finished)
    assert run.asked == [] and ablating.records(tmp_path / "out") == kept


def test_a_failed_training_is_said_and_the_same_call_goes_on(run, monkeypatch):
    monkeypatch.setenv("TRAINER_FAILS", "repair")
    with pytest.raises(JobError, match="out of luck"):
        run()
    monkeypatch.delenv("TRAINER_FAILS")
    assert len(run().arms) == 3


def test_what_came_into_the_repository_meanwhile_is_not_looked_at(run, finished, target, tmp_path):
    kept = ablating.records(tmp_path / "out")
    (tmp_path / "out" / "records" / "repair-1.json").unlink()
    spec = ablating.specifications("train")[0]
    with ArtifactDAG.load(target) as dag:
        dag.append_many(ablating.refinements(spec, "late", 1))
    assert msgspec.to_builtins(run()) == msgspec.to_builtins(finished)
    assert len(run.asked) == 20 and ablating.records(tmp_path / "out") == kept


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": ablating.wanted(seeds=(0, 2))}, "seeds"),
        (
            {"settings": ablating.wanted({"learning_rate": 1e-3})},
            "arm both: training: learning_rate 0.0002 there, 0.001",
        ),
        ({"settings": ablating.wanted(loop={"temperature": 0.1})}, "temperature 0.7 there, 0.1 here"),
        ({"specs": ablating.everything()[:-9]}, "specifications"),
        ({"reference": "repair"}, "reference both there, repair here"),
        ({"guard": ablating.WordGuard("other")}, "guard word@good 1 there, word@other 1 here"),
    ],
)
def test_another_ablation_in_the_folder_is_refused(run, finished, change, said):
    with pytest.raises(UsageError, match="holds another ablation") as refused:
        run(**change)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_traces_that_changed_since_are_refused(run, finished, target):
    with ArtifactDAG.load(target) as dag:
        dag.append_event(next(iter(dag.ids(refinement()))), "exclude", actor="me", reason="wrong")
    with pytest.raises(UsageError, match=r"holds another ablation \(arm both: traces: 0 .* there, .* here"):
        run()


def test_a_record_of_another_plan_is_refused(run, finished, tmp_path):
    path = tmp_path / "out" / "records" / "both-0.json"
    path.write_text(path.read_text().replace('"of": "', '"of": "0'))
    with pytest.raises(UsageError, match=r"both-0\.json is of another ablation"):
        run()


@pytest.mark.parametrize("name", ["plan.json", "time.json", "records/both-0.json", "trained/both-0.json"])
def test_a_damaged_file_is_named(run, finished, tmp_path, name):
    (tmp_path / "out" / name).write_text('{"half": ')
    with pytest.raises(DataError, match=Path(name).name):
        run()


def test_only_one_process_is_at_it(run, tmp_path):
    import filelock

    (tmp_path / "out").mkdir()
    with (
        filelock.FileLock(tmp_path / "out" / ".ablation.lock"),
        pytest.raises(UsageError, match="another process is at the ablation"),
    ):
        run()


# -- bad input


def test_an_unknown_axis_or_arm_leaves_nothing(run, tmp_path):
    with pytest.raises(UsageError, match=r"unknown axis 'vews' \(did you mean 'views'\?\); choose views or policy"):
        run("vews")
    with pytest.raises(UsageError, match=r"unknown arm 'repiar' of axis views \(did you mean 'repair'\?\)"):
        run("views", "both", "repiar")
    assert not (tmp_path / "out").exists()


def test_no_specification_on_the_validation_side(run):
    with pytest.raises(UsageError, match="none of 24 specifications is on ℛ's validation side"):
        run(specs=ablating.specifications("train") + ablating.specifications("held_out"))


def test_one_group_says_nothing_about_others(run):
    with pytest.raises(UsageError, match="of one group, 'validation 0'"):
        run(specs=ablating.specifications("validation")[:2])


def test_too_few_groups_are_said_before_anything_is_trained(run):
    found = run(specs=ablating.specifications("validation")[:8])
    assert found.notes[0].startswith("Whatever comes out, 4 groups on the validation side tell none of 2 arms")
    assert all(each.minimum_detectable is None for each in found.differences)
    assert all("could have shown no difference at all" in said for said in found.says)


def test_no_traces(tmp_path, tiny_model):
    with ArtifactDAG.create(tmp_path / "empty.db") as dag:
        for spec in ablating.specifications("validation"):
            dag.assign_side(spec.group, Side.VALIDATION)
        dag.register(ablating.specifications("validation"))
        bench, _ = ablating.bench(tiny_model, None, SHARES)
        with pytest.raises(NoTracesError, match="holds no items"):
            ablate(dag, ablating.wanted(), bench, "views", folder=tmp_path / "out", stage=ablating.quiet)


def test_one_attempt_shows_nothing_of_retries(run):
    with pytest.raises(UsageError, match="r_max is 1, and axis retry_prompt compares ways of asking a retry"):
        run("retry_prompt", settings=ablating.wanted(r_max=1))


def test_a_server_cannot_switch_adapters(run):
    with pytest.raises(UsageError, match="generator 'openai' cannot switch"):
        run(settings=ablating.wanted(loop={"generator": "openai"}))


def test_a_specification_that_is_to_be_trained_on_is_refused(run, target, tmp_path):
    spec = ablating.specifications("validation")[0]
    text = msgspec.structs.replace(ablating.specifications("train")[0], specification=spec.specification)
    with ArtifactDAG.load(target) as dag:  # an amended Ψ in a chain of the train side
        chain = ablating.refinements(ablating.specifications("train")[0], "amended", 1)
        dag.append_many([chain[0], msgspec.structs.replace(chain[1], specification=text.specification)])
    with pytest.raises(LeakageError, match=r"specification 'validation-0-0' was trained on"):
        run()
    assert not (tmp_path / "out" / "trained").exists()


# -- policies


def test_policies_that_select_the_same_are_trained_once_and_those_that_select_nothing_not_at_all(run):
    shares = {"": 0.1, "refinement": 0.5, "high_value": 0.5}
    found = run("policy", shares=shares)
    assert [arm.figures.name for arm in found.arms] == ["refinement", "high_value"]
    assert found.same == {"all": "refinement", "generator": "refinement", "recent": "refinement"}
    assert found.left_out == {"human": "it selects no trace of the train side"}
    assert found.arms[0].traces == [32, 32] and 0 < found.arms[1].traces[0] < 32


def test_a_policy_that_was_asked_for_must_select_something(run):
    with pytest.raises(NoTracesError, match="selects none of"):
        run("policy", "refinement", "human")
    with pytest.raises(PredicateError):
        run("policy", "refinement", "retries(at_least=")


def test_a_predicate_can_be_an_arm(run):
    text = "refinement() & retries(at_least=2)"
    from guardlearn.ablation.keeping import file_name

    found = run("policy", "refinement", text, shares={"": 0.1, "refinement": 0.5, file_name(text): 0.5})
    assert [arm.figures.name for arm in found.arms] == ["refinement", text]


def test_nothing_to_compare_is_refused(run):
    with pytest.raises(UsageError, match=r"only arm 'refinement' .* is left \(generator: as refinement\)"):
        run("policy", "refinement", "generator")


# -- the learning curve


def test_a_share_of_the_traces_is_made_of_whole_groups(run):
    shares = {"": 0.1} | {f"{share}-{ablating_digest(f'{share} %')}": 0.5 for share in (25, 50, 100)}
    found = run("budget", shares=shares)
    assert found.reference == "100 %"
    by_name = {arm.figures.name: arm for arm in found.arms}
    assert [by_name[name].traces for name in ("25 %", "50 %", "100 %")] == [[8, 8], [16, 16], [32, 32]]
    assert by_name["25 %"].groups == [2, 2]


def test_shares_that_hold_the_same_groups_are_refused(run):
    with pytest.raises(
        DataError, match=r"20 % and 25 % of the traces are the same 8 traces of 2 group\(s\) with seed 0"
    ):
        run("budget", "20", "25", "100")


# -- kills


@pytest.mark.slow
def test_killed_anywhere_it_comes_to_the_same_records(target, tmp_path, tiny_model, monkeypatch):
    ablating.write_project(tmp_path, tiny_model, steps=30)
    trainer = ablating.write_trainer(tmp_path)
    arms = ["--arm", "both", "--arm", "repair", "--seeds", "0"]
    command = ["ablate", "runs.db", *arms, "--python", trainer, "--json", "-o"]
    chance, killed = random.Random(5), 0
    imported = ("guardlearn.cli.ablate", "guardlearn.ablation", "scipy.stats", "matplotlib.backends.backend_svg")
    monkeypatch.setenv("TRAINER_SECONDS", "0.01")
    with killing.nursery(*imported, "transformers.models.auto.tokenization_auto") as nursery:

        def run(folder, kill_after=None):
            status, seconds = nursery.run(
                "command_in", tmp_path, tmp_path / "said", *command, folder, kill_after=kill_after
            )
            assert status in (0, -signal.SIGKILL), (tmp_path / "said").read_text()
            return status, seconds

        _, usual = run("usual")
        while killed < 5:
            status, _ = run("killed", chance.uniform(0.05, usual))
            killed += status != 0
            if status == 0:
                shutil.rmtree(tmp_path / "killed")  # it was done before the kill: all over again
        assert run("killed")[0] == 0
        # nobody kills one with the same plan and the steps that were found then
        (tmp_path / "unbroken").mkdir()
        for name in ("plan.json", "time.json"):
            shutil.copy(tmp_path / "killed" / name, tmp_path / "unbroken")
        assert run("unbroken")[0] == 0
    assert len(ablating.records(tmp_path / "killed")) == 3
    assert ablating.records(tmp_path / "unbroken") == ablating.records(tmp_path / "killed")
    one, other = (ablating.untimed(load_ablation(tmp_path / name / "ablation.json")) for name in ("killed", "unbroken"))
    assert one == other


# -- for real


@pytest.mark.slow
def test_the_tiny_model_is_trained_and_measured(target, tmp_path, tiny_model, warm_starts):
    from guardlearn.generators import SamplingConfig, open_generator

    answers = {"model": "tiny", "generator": "transformers"}
    settings = ablating.wanted({"max_steps": 60, "views": ("first_attempt",)}, loop=answers, seeds=(0,))

    def opened(config, manifest):
        return open_generator("transformers", tiny_model, sampling=SamplingConfig(max_new_tokens=4)), None

    bench, _ = ablating.bench(tiny_model, None, {}, open_generator=opened)
    with ArtifactDAG.load(target, read_only=True) as dag:
        found = ablate(
            dag, settings, bench, "method", ("sft", "sft+dpo"), folder=tmp_path / "out", stage=ablating.quiet
        )
    assert [len(arm.steps) for arm in found.arms] == [1, 2]
    assert all(wall is not None for arm in found.arms for wall in arm.wall_seconds)
    trained = json.loads(next((tmp_path / "out" / "trained").glob("sft_dpo*/job/result.json")).read_bytes())
    assert trained["steps"] == sum(found.arms[1].steps)
    assert [each["steps"] for each in trained["stages"]] == found.arms[1].steps
