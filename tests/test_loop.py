"""Rounds: learn as traces accumulate, promote only on evidence; resumable, one at a time, nothing lost, nothing twice.

A trainer that takes no time stands in for the training process, and answers are replayed; the rest is what users run.
A real model goes through rounds in `make prove`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

import killing
import looping
from databases import Files, Place, Server
from guardlearn import ArtifactDAG, settings
from guardlearn.cli.loop import _bench
from guardlearn.dag import rounds
from guardlearn.dag.rounds import State
from guardlearn.errors import GuardlearnError, JobError, RepositoryError, UsageError
from guardlearn.loop.advice import advice
from guardlearn.loop.config import LoopSettings, read_settings
from guardlearn.loop.planning import Waiting, rounds_of
from guardlearn.loop.results import RoundResult
from guardlearn.loop.rounds import abandon, run_round
from guardlearn.types import OnProgress

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_starts")]


class Project:
    """A loop in a folder, on a database."""

    def __init__(self, folder: Path, target: str, model: Path) -> None:
        self.folder, self.target, self.model = folder, target, model
        self.trainer = looping.write_trainer(folder)
        looping.found(target)
        self.write()

    def write(self, **given: Any) -> None:
        looping.write_project(self.folder, self.model, **given)

    def settings(self) -> LoopSettings:
        return read_settings(settings.read(self.folder / "guardlearn.toml"))

    def run(self, during: Callable[[str], None] | None = None) -> RoundResult | Waiting:
        """Run the round that is due; `during` is called with a step's name when it begins."""

        @contextlib.contextmanager
        def stage(name: str) -> Iterator[OnProgress]:
            if during:
                during(name)
            yield lambda done, total, note: None

        with contextlib.chdir(self.folder), ArtifactDAG.load(self.target) as dag:
            wanted = self.settings()
            return run_round(dag, wanted, _bench(wanted, str(self.trainer)), stage, "tester")

    def decided(self, during: Callable[[str], None] | None = None) -> RoundResult:
        outcome = self.run(during)
        assert isinstance(outcome, RoundResult), outcome
        return outcome

    def steps(self) -> list[tuple[int, str]]:
        with ArtifactDAG.load(self.target) as dag:
            return [(step.round, step.state.value) for each in rounds_of(dag) for step in each]

    def details(self, round_: int, state: str) -> dict[str, Any]:
        with ArtifactDAG.load(self.target) as dag, dag.reading() as connection:
            return next(s.details for s in rounds.read(connection, "main", round_) if s.state.value == state)

    def live(self) -> str:
        with ArtifactDAG.load(self.target) as dag, dag.reading() as connection:
            found = rounds.live(connection, "main")
            return found.adapter_digest if found else ""

    def verified(self) -> None:
        with ArtifactDAG.load(self.target) as dag:
            assert dag.verify().problems == []

    def command(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "guardlearn", "loop", self.target, "--python", str(self.trainer), *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | environment,
        )  # fmt: skip


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Leave no process and no open pipe behind, whatever happens."""
    try:
        yield process
    finally:
        process.kill()
        with contextlib.suppress(ValueError):  # its pipes are closed already
            process.communicate()


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    return Project(tmp_path, str(tmp_path / "runs.db"), tiny_model)


@pytest.fixture
def anywhere(place: Place, tmp_path: Path, tiny_model: Path) -> Project:
    """On either database."""
    return Project(tmp_path, place.target, tiny_model)


ALL = ["planned", "extracted", "trained", "measured"]


def test_a_better_candidate_goes_live(anywhere: Project) -> None:
    looping.collect(anywhere.target, [f"a{n}" for n in range(6)])
    looping.collect(anywhere.target, ["v0", "v1"], side="validation")
    result = anywhere.decided()
    assert (result.round, result.state, result.new_traces, result.rows) == (1, State.PROMOTED, 6, 6)
    assert result.gain == pytest.approx(6 / 12) and result.gain_low is not None and result.gain_low > 0
    assert result.reason.startswith("promoted: 12 groups: +50.0 points")
    assert [state for _, state in anywhere.steps()] == [*ALL, "promoted"]
    assert anywhere.live() == result.adapter_digest
    folder = anywhere.folder / "rounds" / "001"
    evidence = json.loads((folder / "evidence.json").read_text())
    assert evidence["difference"]["rate"] == result.gain and (folder / "report.html").is_file()
    plan = anywhere.details(1, "planned")
    assert plan["new_item_ids"] == [f"a{n}/1" for n in range(6)]
    assert sorted(plan["item_ids"]) == sorted([*plan["new_item_ids"], "v0/1", "v1/1"])
    manifest = json.loads((folder / "adapter" / "guardlearn.json").read_text())["manifest"]
    assert manifest["item_ids"] == plan["new_item_ids"] and manifest["parent_adapter"] is None
    anywhere.verified()


def test_an_equal_candidate_does_not_and_the_live_one_stays(project: Project) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    first = project.decided()
    looping.collect(project.target, [f"b{n}" for n in range(5)])
    second = project.decided()
    assert (second.round, second.state, second.look, second.new_traces) == (2, State.REFUSED, 2, 5)
    assert second.reason.startswith("refused by difference: every answer is")  # the replayed answers are the same
    assert project.details(2, "planned")["incumbent"]["digest"] == first.adapter_digest == project.live()
    assert len(project.details(2, "planned")["item_ids"]) == 11  # restart: all of them
    assert second.detectable is not None and 0 < second.detectable < 1
    assert isinstance(project.run(), Waiting)  # each trace is new once, whatever was decided
    project.verified()


def test_a_harmful_one_is_refused(project: Project) -> None:
    project.write(base=8, adapted=2)
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    result = project.decided()
    assert result.state is State.REFUSED and result.gain == pytest.approx(-0.5)
    assert project.live() == ""


def test_one_that_changes_nothing_is_refused_before_anything_is_sampled(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    monkeypatch.setenv("TRAINER_ZERO", "1")
    result = project.decided()
    assert result.state is State.REFUSED and "difference" in {
        check["name"] for check in project.details(1, "refused")["decision"]["checks"] if not check["passed"]
    }
    assert project.details(1, "measured")["evidence"] is None
    assert not list((project.folder / "rounds" / "001").rglob("attempts.jsonl"))
    monkeypatch.delenv("TRAINER_ZERO")
    looping.collect(project.target, [f"b{n}" for n in range(6)])
    assert project.decided().look == 1  # nothing was looked at


def test_a_round_waits_for_enough_new_traces(project: Project) -> None:
    assert isinstance(project.run(), Waiting)
    looping.collect(project.target, ["a0", "a1", "a2"])
    waiting = project.run()
    assert isinstance(waiting, Waiting) and (waiting.new, waiting.needed) == (3, 4)
    assert project.steps() == []
    looping.collect(project.target, ["a3"])
    assert project.decided().new_traces == 4


@pytest.mark.parametrize("step", ["extract", "train", "measure"])
def test_what_lands_meanwhile_is_the_next_rounds(anywhere: Project, step: str) -> None:
    """Items of two writers at once and a late verdict, appended while a step runs; on both databases."""
    looping.collect(anywhere.target, [f"a{n}" for n in range(6)])
    spec = looping.specifications("train")[0]
    late = looping.refinements(spec, "late")
    with ArtifactDAG.load(anywhere.target) as dag:
        pending = [late[0], *(_pending(each) for each in late[1:])]
        dag.append_many(pending)

    def land(name: str) -> None:
        if name == step:
            writers = [
                threading.Thread(target=looping.collect, args=(anywhere.target, [f"{writer}{n}" for n in range(5)]))
                for writer in "bc"
            ]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
            with ArtifactDAG.load(anywhere.target) as dag:
                dag.append_event("late/1", "status", value="accepted")

    first = anywhere.decided(land)
    assert (first.new_traces, first.rows) == (6, 6)
    second = anywhere.decided()
    landed = {f"{writer}{n}/1" for writer in "bc" for n in range(5)} | {"late/1"}
    assert set(anywhere.details(2, "planned")["new_item_ids"]) == landed
    assert second.new_traces == 11
    anywhere.verified()


def _pending(item: Any) -> Any:
    return msgspec.structs.replace(item, status="pending")


def test_two_loops_do_not_collide(anywhere: Project) -> None:
    looping.collect(anywhere.target, [f"a{n}" for n in range(6)])
    refused: list[str] = []

    def second(name: str) -> None:
        if name == "train":
            with pytest.raises(RepositoryError) as caught:
                anywhere.run()
            refused.append(str(caught.value))

    assert anywhere.decided(second).state is State.PROMOTED
    assert len(refused) == 1 and "another process holds the rounds of main" in refused[0]
    assert [state for _, state in anywhere.steps()] == [*ALL, "promoted"]


def test_killed_rounds_go_on_to_their_one_result(
    databases: Files | Server, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seeded kills (make prove: a hundred): as if there had been none, job folders byte by byte."""
    monkeypatch.setenv("TRAINER_SECONDS", "0.3")
    with killing.nursery(*looping.IMPORTED) as nursery, databases.new() as place, databases.new() as twin:
        seen = looping.kill_rounds(nursery, place.target, twin.target, tmp_path, tiny_model, seed=1, kills=10)
    assert seen["killed"] == 10 and seen["rounds"] >= 2


def test_a_begun_round_keeps_its_settings(project: Project) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])

    def fail(name: str) -> None:
        if name == "measure":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project.run(fail)
    project.write(promotion="min_gain = 0.9")
    assert project.decided().state is State.PROMOTED  # it was planned with a min_gain of 2 points
    looping.collect(project.target, [f"b{n}" for n in range(5)])
    project.decided()
    checks = {check["name"]: check for check in project.details(2, "refused")["decision"]["checks"]}
    assert "90.0 points" in checks["superiority"]["needed"]


def test_a_begun_round_samples_as_it_was_planned(project: Project) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    interrupted_at(project, "measure")
    project.write(more="temperature = 1.5")
    asked: list[Any] = []
    with contextlib.chdir(project.folder), ArtifactDAG.load(project.target) as dag:
        wanted = project.settings()
        bench = _bench(wanted, str(project.trainer))

        def opened(config: Any, manifest: Any) -> Any:
            asked.append((config.temperature, manifest["seed"]))
            return bench.open_generator(config, manifest)

        noting = msgspec.structs.replace(bench, open_generator=opened)
        run_round(dag, wanted, noting, lambda name: contextlib.nullcontext(lambda *_: None), "tester")
    assert wanted.loop.temperature == 1.5 and asked == [(0.7, 1)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: text.replace('match = ["^yes"]', 'match = ["yes"]'), "guard says_yes@"),
        (lambda text: text.replace("[training]", 'hidden_guards = ["says_yes"]\n[training]'), "hidden guards"),
        (lambda text: text.replace("[training]", 'general = "texts.jsonl"\n[training]'), "general texts"),
    ],
)
def test_other_things_to_measure_with_stop_a_begun_round(
    project: Project, change: Callable[[str], str], named: str
) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    interrupted_at(project, "train")
    (project.folder / "texts.jsonl").write_text('{"text": "One text of my own."}\n')
    file = project.folder / "guardlearn.toml"
    before = file.read_text()
    file.write_text(change(before))
    with pytest.raises(UsageError, match=rf"round 1 was planned with {named}.*--abandon") as said:
        project.run()
    assert "\n" not in str(said.value)
    file.write_text(before)
    assert project.decided().state is State.PROMOTED


def interrupted_at(project: Project, step: str) -> None:
    """Run a round up to where a step begins."""

    def stop(name: str) -> None:
        if name == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project.run(stop)


def test_other_held_out_specifications_stop_a_begun_round(project: Project) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])

    def fail(name: str) -> None:
        if name == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project.run(fail)
    specs = (project.folder / "specs.jsonl").read_text().splitlines()
    (project.folder / "specs.jsonl").write_text("\n".join(specs[:-1]) + "\n")
    with pytest.raises(
        UsageError, match=r"planned with 24 held-out specifications, these are others \(23\).*--abandon"
    ):
        project.run()


def test_a_round_can_be_given_up(project: Project) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    with ArtifactDAG.load(project.target) as dag, pytest.raises(UsageError, match="no round under way"):
        abandon(dag, "main", "me", "no use")

    def fail(name: str) -> None:
        if name == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project.run(fail)
    process = project.command("--abandon", "wrong model", "--json", GUARDLEARN_ACTOR="me")
    out, _ = process.communicate()
    (given_up,) = json.loads(out)["rounds"]
    assert (given_up["state"], given_up["reason"]) == ("refused", "abandoned by me: wrong model")
    (project.folder / "rounds" / "001").rename(project.folder / "old")
    second = project.decided()
    assert (second.round, second.new_traces, second.look) == (2, 6, 1)  # it had no adapter: its traces are new again


def test_a_held_out_set_that_can_show_nothing_is_refused_before_training(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    lines = (project.folder / "specs.jsonl").read_text().splitlines()
    few = [line for line in lines if '"held_out ' not in line or '"held_out 0"' in line or '"held_out 1"' in line]
    (project.folder / "specs.jsonl").write_text("\n".join(few) + "\n")
    with pytest.raises(UsageError, match=r"2 held-out groups can show no gain at look 1 .* at least 6"):
        project.run()
    (project.folder / "specs.jsonl").write_text("\n".join(line for line in lines if '"held_out ' not in line) + "\n")
    with pytest.raises(UsageError, match="held-out side"):
        project.run()
    assert project.steps() == []


def test_a_repository_behind_its_loop_is_refused(project: Project) -> None:
    """Restored from a backup (Definition 15)."""
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    backup = Path(project.target).read_bytes()
    project.decided()
    Path(project.target).write_bytes(backup)
    with pytest.raises(RepositoryError, match="was restored from a backup"):
        project.run()
    assert project.steps() == []


def test_an_adapter_edited_before_the_decision_is_not_promoted(project: Project) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])

    def edit(name: str) -> None:
        if name == "measure":
            weights = project.folder / "rounds" / "001" / "adapter" / "adapter_model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    with pytest.raises(GuardlearnError, match=r"edited|digest|altered"):
        project.run(edit)
    assert project.live() == ""


def test_continuing_trains_on_what_the_live_one_has_not_learned(project: Project) -> None:
    project.write(more='mode = "continue"\n[loop.weighting]\nreplay = 0.5\n')
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    first = project.decided()
    assert project.details(1, "planned")["parent"] is None
    looping.collect(project.target, [f"b{n}" for n in range(4)])
    project.decided()
    plan = project.details(2, "planned")
    assert plan["parent"]["digest"] == first.adapter_digest
    assert {f"b{n}/1" for n in range(4)} < set(plan["item_ids"]) and len(plan["item_ids"]) == 6
    manifest = project.details(2, "trained")["manifest"]
    assert manifest["parent_adapter"] == first.adapter_digest


def test_a_failed_training_says_how_to_end_the_round(project: Project) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    project.trainer.write_text("#!/bin/sh\necho 'error: the loss is nan' >&2\nexit 1\n")
    with pytest.raises(JobError, match="the loss is nan"):
        project.run()
    looping.write_trainer(project.folder)
    assert project.decided().state is State.PROMOTED


def test_dry_run_says_what_a_round_could_show(project: Project) -> None:
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    before = Path(project.target).read_bytes()
    told = json.loads(project.command("--dry-run", "--gain", "0.3", "--json").communicate()[0])
    assert (told["new_traces"], told["groups"], told["look"], told["gain"]) == (6, 12, 1, 0.3)
    assert told["groups_needed"] > 12 > 0 and told["detectable"] > 0.3 and told["assumed"] is True
    assert Path(project.target).read_bytes() == before
    shown = project.command("--dry-run").communicate()
    assert "12 held-out groups show" in shown[1]
    assert not (project.folder / "rounds").exists()


def test_watching_ends_when_rounds_no_longer_help(project: Project) -> None:
    project.write(more="patience = 2")
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    with ended(project.command("--watch", "--every", "0.2", "--json")) as process:
        for name, due in (("b", 1), ("c", 2)):
            patience = time.monotonic() + 300
            while len([state for _, state in project.steps() if state in ("promoted", "refused")]) < due:
                assert time.monotonic() < patience and process.poll() is None
                time.sleep(0.1)
            looping.collect(project.target, [f"{name}{n}" for n in range(5)])
        out, err = process.communicate(timeout=300)
    told = json.loads(out)
    assert process.returncode == 0, err
    assert [each["state"] for each in told["rounds"]] == ["promoted", "refused", "refused"]
    assert "the last 2 rounds" in told["advice"]
    page = (project.folder / "rounds" / "report.html").read_text()
    assert "3 rounds, 1 promoted" in page and "<svg" in page and "refused by difference" in page
    own = (project.folder / "rounds" / "001" / "report.html").read_text()
    assert "promoted: " in own  # written again once it was decided


def rounds_that(*ends: tuple[str, float]) -> list[list[rounds.RoundStep]]:
    """Rounds by the check that failed ("": promoted) and the upper end of the gain's interval."""
    found = []
    for number, (failed, high) in enumerate(ends, 1):
        about = {"number": number, "learner": "me", "round": number, "created_at": datetime.now(UTC)}
        plan = {"new_item_ids": [], "item_ids": [], "look": number, "settings": {"loop": {"folder": "rounds"}}}
        measured = {"evidence": {"difference": {"rate": 0.0, "low": -0.1, "high": high}}, "cost": {"payback": None}}
        checks = [{"name": failed or "superiority", "passed": not failed, "found": "", "needed": ""}]
        decision = {
            "promoted": not failed, "checks": checks, "level": 0.01, "p_value": 0.5, "gain": 0.0, "detectable": 0.12,
        }  # fmt: skip
        steps = [(State.PLANNED, plan), (State.MEASURED, measured)]
        steps.append((State.REFUSED if failed else State.PROMOTED, {"decision": decision, "reason": ""}))
        found.append([rounds.RoundStep(state=state, details=details, **about) for state, details in steps])
    return found


def test_the_stop_rule_tells_nothing_to_find_from_cannot_tell() -> None:
    idle = ("superiority", 0.01)
    assert advice(rounds_that(idle), 2, 0.02) == advice(rounds_that(idle, ("", 0.3), idle), 2, 0.02)
    assert not advice(rounds_that(idle, ("no harm to sql", 0.01)), 2, 0.02).stop
    nothing_left = advice(rounds_that(("", 0.5), idle, idle), 2, 0.02)
    assert nothing_left.stop and "gained at most +1.0 points" in nothing_left.reason
    cannot_tell = advice(rounds_that(idle, ("superiority", 0.09)), 2, 0.02)
    assert cannot_tell.stop and "finds gains from +12.0 points on" in cannot_tell.reason
    assert not advice(rounds_that(idle, idle), 3, 0.02).stop


def test_ctrl_c_while_it_waits(project: Project) -> None:
    cold = str(Path(sys.prefix) / "bin" / "python")  # a warm one would take the signal itself
    command = [cold, "-m", "guardlearn", "loop", project.target, "--watch", "--every", "0.2"]
    process = subprocess.Popen(command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with ended(process):
        assert process.stderr is not None
        while "waiting" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("min_new_traces = 0", r"min_new_traces of \[loop\] is 0"),
        ('mode = "again"', r"\[loop\]: mode: "),
        ('learner = "a/b"', r"learner of \[loop\] is 'a/b'"),
        ("patiense = 2", r"unknown key 'patiense' \(did you mean 'patience'\?\)"),
        ('select = "refinements"', "did you mean refinement"),
        ('regressions = ["none.jsonl"]', "no specification file at .*none.jsonl"),
        ('hidden_guards = ["nobody"]', "nobody"),
        ('general = "none.jsonl"', r"none\.jsonl"),
    ],
)
def test_wrong_settings_are_one_line(project: Project, line: str, message: str) -> None:
    name = line.partition(" ")[0]
    lines = (project.folder / "guardlearn.toml").read_text().splitlines()
    kept = [each for each in lines if not each.startswith(f"{name} ")]
    kept.insert(kept.index("[loop]") + 1, line)
    (project.folder / "guardlearn.toml").write_text("\n".join(kept))
    looping.collect(project.target, [f"a{n}" for n in range(6)])
    with pytest.raises(GuardlearnError, match=message) as caught:
        project.run()
    assert "\n" not in str(caught.value)
