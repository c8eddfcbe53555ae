"""The Ray engine on a real cluster of one node: the local engine's results, dead workers, errors as they are."""

import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import collecting
from guardlearn.attempts import run_chains
from guardlearn.audit import AuditConfig, audit
from guardlearn.cli import main
from guardlearn.collect import collect
from guardlearn.dag import ArtifactDAG
from guardlearn.engines import LocalEngine
from guardlearn.errors import GuardError, ModelError, RequestRefused, UsageError
from guardlearn.evaluation import evaluate
from guardlearn.generators import ReplayGenerator
from guardlearn.prompts import Renderer
from guardlearn.types import GenerationRequest, GuardContext
from rules import WordGuard, guard, specification
from test_engines import Draws, Slow, shape

pytestmark = pytest.mark.slow

SPECS = [specification(n) for n in range(20)]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'guardlearn[ray]'")  # takes seconds to import
    made = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with made as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=100 * 2**20, _temp_dir=folder,
        )  # fmt: skip
        for name in (Draws.__module__, __name__):  # each worker would import all that these import
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])
        yield ray
        for name in (Draws.__module__, __name__):
            ray.cloudpickle.unregister_pickle_by_value(sys.modules[name])
        ray.shutdown()


def engine(opener=Draws, judge=guard, **options):
    from guardlearn.engines.ray import RayEngine

    return RayEngine(opener, judge, **options)


def answers():
    """A base that draws, and an adapter that is always right."""
    return ReplayGenerator(Draws.draw, lambda request: f"w{request.key.split('/')[1][1:]}")


def stored(dag):
    """All that the engine may not change."""
    timed = ("generation_seconds", "latency_seconds", "guard_seconds")
    return {
        item.id: (
            item.parent_id, item.artifact, item.status, item.feedback, item.workflow_id, item.sampling,
            {name: value for name, value in item.metadata.items() if name not in timed},
        )
        for item in dag.extract()
    }  # fmt: skip


def test_two_generators_collect_what_the_local_engine_collects(tmp_path):
    judge = Slow(0.001)
    with ArtifactDAG.create(tmp_path / "here.db") as here:
        collect(here, SPECS, Draws(), judge, renderer=Renderer())
        expected = stored(here)
    with ArtifactDAG.create(tmp_path / "there.db") as there, engine(Draws, judge, actors=2) as running:
        summary = collect(there, SPECS, running.generator, judge, renderer=Renderer(), engine=running)
        assert stored(there) == expected
        assert summary.attempts == summary.new_attempts == there.count()


def test_it_measures_what_the_local_engine_measures(tmp_path):
    options = {"adapter": "learned", "renderer": Renderer()}
    here = evaluate(SPECS, answers(), guard, folder=tmp_path / "here", **options)
    with engine(answers) as running:
        there = evaluate(SPECS, running.generator, guard, folder=tmp_path / "there", engine=running, **options)
    assert there == here
    assert there.candidate.first_attempt.rate == 1.0


def test_the_command_collects_on_a_cluster(tmp_path, monkeypatch, capsys):
    collecting.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    target = str(tmp_path / "runs.db")
    monkeypatch.setattr(sys, "argv", ["guardlearn", *collecting.command(target, tmp_path, "--engine", "ray")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == 0, capsys.readouterr().err
    assert collecting.look_after(target, tmp_path, 0) == collecting.expected()


class Deadly(WordGuard):
    """Kills its worker the first time it judges an answer to s1."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, artifact, context):
        mark = Path(self.folder) / "killed"
        if context.specification.id == "s1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(artifact, context)


class Mortal(ReplayGenerator):
    """Answers one after the other, a while apart, and says where it lives."""

    def __init__(self, folder):
        super().__init__(Draws.draw)
        self.folder = folder

    def generate(self, requests, on_done=None):
        (Path(self.folder) / "pid").write_text(str(os.getpid()))
        given = []
        for index, request in enumerate(requests):
            time.sleep(0.05)
            given += super().generate([request])
            on_done(index, given[-1])
        return given


def test_a_generator_and_a_guard_that_die_are_asked_again_for_what_they_did_not_answer(tmp_path):
    seen, pid, judge = [], tmp_path / "pid", Deadly(str(tmp_path))

    def kill(attempt):
        seen.append(attempt)
        if len(seen) == 5:
            os.kill(int(pid.read_text()), signal.SIGKILL)

    with engine(lambda: Mortal(str(tmp_path)), judge) as running:
        outcome = run_chains(SPECS, running.generator, judge, renderer=Renderer(), engine=running, on_attempt=kill)
    assert (tmp_path / "killed").exists()
    with LocalEngine(Draws(), guard) as local:
        expected = run_chains(SPECS, Draws(), guard, renderer=Renderer(), engine=local)
    assert shape(outcome.attempts) == shape(expected.attempts)
    assert len(seen) == len(expected.attempts)  # each told of once


class Refusing(Draws):
    def generate(self, requests, on_done=None):
        for request in requests:
            if "/s3/" in request.key:
                raise RequestRefused(f"{request.key} is too long", request.key)
        return super().generate(requests, on_done)

    def use_adapter(self, adapter):
        raise ModelError(f"no adapter {adapter}")


class NoGuard(WordGuard):
    def __call__(self, artifact, context):
        return "yes"


def broken():
    raise ModelError("no model folder at x")


def test_expected_errors_arrive_as_they_were_raised():
    with pytest.raises(ModelError, match=r"^no model folder at x$"):
        engine(broken)
    with engine(Refusing) as running:
        outcome = run_chains(SPECS, running.generator, guard, renderer=Renderer(), engine=running)
        assert outcome.unfinished == {("s3", 0): "0/s3/0/1 is too long"}
        with pytest.raises(ModelError, match=r"^no adapter x$"):
            running.generator.use_adapter("x")
        with pytest.raises(UsageError, match="through its engine"):
            running.generator.generate([])
    with engine(None, NoGuard()) as running:
        with pytest.raises(GuardError, match="'word' returned str"):
            running.judge("w1", GuardContext(specification=SPECS[1])).result(60)
        with pytest.raises(UsageError, match="no generator"):
            running.generate([], lambda index, generation: None)


class Endless(ReplayGenerator):
    def generate(self, requests, on_done=None):
        threading.Event().wait(600)


def test_closing_waits_for_nobody(cluster):
    running = engine(lambda: Endless(Draws.draw))
    request = GenerationRequest(messages=(), key="0/s1/0/1")
    future = running.generate([request], lambda index, generation: None)
    time.sleep(0.2)
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 30
    with pytest.raises(cluster.exceptions.RayError):
        future.result(30)


def test_an_audit_finds_there_what_it_finds_here(tmp_path):
    config = AuditConfig(repeat=2, degenerate=(" ".join(f"w{n}" for n in range(20)),))
    with ArtifactDAG.create(tmp_path / "runs.db") as dag, engine(None) as running:
        collect(dag, SPECS[:6], Draws(), guard, renderer=Renderer())
        here = audit(dag, guard, config, specifications=SPECS)
        there = audit(dag, guard, config, specifications=SPECS, engine=running)
    assert here.findings and there.findings == here.findings
    assert (there.checks, there.stale, there.wrong) == (here.checks, here.stale, here.wrong)
