"""One round of learning: planned, extracted, trained, measured, then promoted or refused (guide 7, Theorems 4 and 10).

Every step leaves its result in the round's folder first and then a row in ℛ, in one transaction; a step whose row is
missing is done again and finds what is there, so that a round that was killed anywhere goes on to the one result it
would have had. Only one process works on a learner's rounds at a time (a lease that dies with it), and should that
fail, ℛ takes each step of a round once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn import adapters, gate, jobs, report
from guardlearn.adapters import adapter_digest, config_digest
from guardlearn.dag import ArtifactDAG, checkpoints, registration, rounds
from guardlearn.dag.rounds import RoundStep, State
from guardlearn.digests import digest_file, digest_json
from guardlearn.engines import Engine
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.forgetting import GeneralText
from guardlearn.gate import GateConfig, GateFigures
from guardlearn.jobs import TrainingConfig, traces_again
from guardlearn.loop.checkpoint import check_item, check_restored, last_checkpoint
from guardlearn.loop.config import LoopConfig, LoopSettings
from guardlearn.loop.measuring import measure
from guardlearn.loop.planning import Waiting, held_out_digest, on_side, plan_round, planned_extraction
from guardlearn.loop.results import RoundResult, cost_of, measurement, result_of
from guardlearn.prompts import PromptConfig, Renderer
from guardlearn.traces import content_digest
from guardlearn.types import Generator, Guard, OnProgress, Side, Specification

__all__ = ["Bench", "Stage", "abandon", "run_round"]

Stage = Callable[[str], contextlib.AbstractContextManager[OnProgress]]
"""Opens a step's progress display by its name."""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What a round is trained on and measured with, read and found usable."""

    model_folder: Path
    """The base model's folder."""
    guard: Guard
    specs: list[Specification]
    """All of the loop's; their sides in ℛ decide what they are for."""
    open_generator: Callable[[LoopConfig, Mapping[str, Any]], tuple[Generator, Engine | None]]
    """Loads π_θ on the bare base, as the round's settings sample, for an adapter's manifest; the round closes the
    engine."""
    regressions: list[Specification] = []
    texts: list[GeneralText] = []
    hidden: list[Guard] = []
    python: str | None = None
    """Interpreter of the training process; None: this one."""


def run_round(
    dag: ArtifactDAG, settings: LoopSettings, bench: Bench, stage: Stage, actor: str
) -> RoundResult | Waiting:
    """Run the round that is due to its end, or continue the one that was begun; the same call after a crash goes on.

    Args:
        dag: ℛ, open for writing.
        settings: what a new round is to do; one that was begun keeps the settings it was planned with.
        bench: what it is done with.
        stage: opens the progress display of a step.
        actor: who is named beside the decision.

    Raises:
        RepositoryError: another process is at this learner's rounds, or ℛ is not what the last round left.
        UsageError: held-out specifications that can show nothing, or others than a begun round was planned with.
        JobError: the training failed; `abandon` gives such a round up.
    """
    learner = settings.loop.learner
    with dag.lease(f"the rounds of {learner}"):
        steps = _last_round(dag, learner)
        if not steps or steps[-1].state.decided:
            _check_repository(dag, settings.loop)
            with stage("plan") as progress:
                progress(0, 1, "looking for new traces")
                planned = plan_round(dag, settings, bench.specs, _measures(bench))
                progress(1, 1, "")
            if isinstance(planned, Waiting):
                return planned
            number, plan = planned
            steps = [_append(dag, learner, number, State.PLANNED, plan)]
        return _Round(dag, bench, stage, actor, steps).finish()


def abandon(dag: ArtifactDAG, learner: str, actor: str, reason: str) -> RoundResult:
    """Refuse the round that was begun, whatever step it has reached; its traces are new again if it had no adapter.

    Raises:
        UsageError: no round is under way.
        RepositoryError: another process is at it.
    """
    with dag.lease(f"the rounds of {learner}"):
        steps = _last_round(dag, learner)
        if not steps or steps[-1].state.decided:
            raise UsageError(f"learner {learner!r} has no round under way in {dag.target}; nothing to abandon")
        told = f"abandoned by {actor}: {reason}"
        step = _append(dag, learner, steps[-1].round, State.REFUSED, {"decision": None, "reason": told})
        return result_of([*steps, step])


class _Round:
    """A round under way: does what comes next until it is decided."""

    def __init__(self, dag: ArtifactDAG, bench: Bench, stage: Stage, actor: str, steps: Sequence[RoundStep]) -> None:
        self.dag, self.bench, self.stage, self.actor = dag, bench, stage, actor
        self.steps = list(steps)
        self.learner, self.number = steps[0].learner, steps[0].round
        self.plan: Mapping[str, Any] = steps[0].details
        said = self.plan["settings"]
        self.config = msgspec.convert(said["loop"], LoopConfig)
        self.gate = msgspec.convert(said["promotion"], GateConfig)
        self.training = TrainingConfig(**_tuples(self.plan["training"]))
        self.folder = Path(self.config.folder).absolute() / f"{self.number:03}"
        self.held_out = on_side(dag, bench.specs, Side.HELD_OUT)

    def finish(self) -> RoundResult:
        """Do every step that is left."""
        self._check_bench()
        following = {
            State.PLANNED: self._extract,
            State.EXTRACTED: self._train,
            State.TRAINED: self._measure,
            State.MEASURED: self._decide,
        }
        while not self.steps[-1].state.decided:
            following[self.steps[-1].state]()
        return result_of(self.steps)

    def _details(self, state: State) -> dict[str, Any]:
        return next(step.details for step in self.steps if step.state is state)

    def _check_bench(self) -> None:
        """Refuse to measure a round with other things than it was planned with."""
        found = held_out_digest(self.held_out)
        if found != self.plan["held_out"]["digest"]:
            raise UsageError(
                f"round {self.number} was planned with {self.plan['held_out']['specs']} held-out specifications, these "
                f"are others ({len(self.held_out)}): give the ones it was planned with, or end it with --abandon"
            )
        for name, planned in self.plan["measures"].items():
            if planned != (now := _measures(self.bench)[name]):
                raise UsageError(
                    f"round {self.number} was planned with {name} {_short(planned)}, now it is {_short(now)}: give "
                    "what it was planned with, or end it with --abandon"
                )

    def _extract(self) -> None:
        with self.stage("extract") as progress:
            extraction = planned_extraction(self.dag, self.plan)
            parent = self.plan["parent"]
            summary = jobs.write_job(
                self.folder / "job",
                extraction,
                self.bench.model_folder,
                self.training,
                weights=self.plan["weights"] or None,
                about=self.plan["weighting"],
                parent=Path(parent["adapter"]) if parent else None,
                on_progress=progress,
            )
        self._append(
            State.EXTRACTED,
            {
                "job": str(summary.folder),
                "manifest_digest": digest_file(summary.folder / "manifest.json"),
                "rows": summary.rows,
                "validation_rows": summary.validation_rows,
                "dropped": self.plan["dropped"],
                "dropped_rows": summary.dropped,
            },
        )

    def _train(self) -> None:
        job, parent = self.folder / "job", self.plan["parent"]
        with self.stage("train") as progress:
            trained = jobs.run_job(
                job,
                self.bench.model_folder,
                python=self.bench.python,
                parent=Path(parent["adapter"]) if parent else None,
                on_progress=progress,
            )
            folder = adapters.publish(job, self.folder / "adapter")
        digest = adapter_digest(folder)
        manifest = adapters.read_manifest(folder)
        details = {
            "adapter": str(folder),
            "adapter_digest": digest,
            "config_digest": config_digest(folder),
            "manifest": manifest,
            "result": trained.result,
        }
        contents = self._new_contents()
        before = last_checkpoint(self.dag, self.learner)
        about = {
            "seq": self.plan["seq"],
            "traces_processed": (before.traces_processed if before else 0) + len(contents),
            "adapter": str(folder),
            "adapter_digest": digest,
            "parent_adapter": parent["digest"] if parent else "",
        }
        with self.dag.writing() as connection:  # an adapter and its checkpoint are there together (erratum 44)
            checkpoints.append(connection, self.learner, contents, about)
            self.steps.append(rounds.append(connection, self.learner, self.number, State.TRAINED, details))

    def _measure(self) -> None:
        trained = self._details(State.TRAINED)
        manifest = trained["manifest"]
        config = self.config
        kept = on_side(self.dag, self.bench.specs, Side.VALIDATION)
        prompts = PromptConfig(**manifest["prompts"])
        with self.stage("measure") as progress:
            generator, engine = self.bench.open_generator(config, manifest)
            with contextlib.closing(engine) if engine else contextlib.nullcontext():
                measured = measure(
                    self.held_out,
                    generator,
                    self.bench.guard,
                    incumbent=self.plan["incumbent"]["adapter"] if self.plan["incumbent"] else None,
                    candidate=trained["adapter"],
                    renderer=Renderer(config=prompts, special_tokens=generator.special_tokens),
                    folder=self.folder / "measured",
                    look=self.plan["look"],
                    manifest=manifest,
                    r_max=config.r_max,
                    samples=config.samples,
                    seed=self.plan["seed"],
                    regressions=self.bench.regressions,
                    trained_action_pairs=self._trained_action_pairs(),
                    texts=self.bench.texts,
                    kept=kept,
                    hidden=self.bench.hidden,
                    engine=engine,
                    on_progress=progress,
                )
        if measured.evidence is not None:
            report.write(self.folder, measured.evidence, story=report.story_of_adapter(Path(trained["adapter"])))
        details = measurement(measured, self.folder) | {"cost": cost_of(measured, trained["result"])}
        with self.dag.writing() as connection:
            if measured.evidence is not None:
                sides = registration.sides_digest(connection)
                registration.record_reading(connection, trained["adapter_digest"], sides, len(self.held_out), "gate")
            self.steps.append(rounds.append(connection, self.learner, self.number, State.MEASURED, details))

    def _new_contents(self) -> dict[str, bytes]:
        """Return what each new trace teaches, as it was planned: also of those that a cap kept out of the job."""
        new = traces_again(self.dag, self.plan["new_item_ids"], histories=self.plan["histories"])
        return {trace.item.id: content_digest(trace.item) for trace in new}

    def _trained_action_pairs(self) -> set[str]:
        return {trace.item.action_pair_id for trace in planned_extraction(self.dag, self.plan).traces}

    def _decide(self) -> None:
        trained, measured = self._details(State.TRAINED), self._details(State.MEASURED)
        decision = gate.decide(msgspec.convert(measured["figures"], GateFigures), self.gate)
        state = State.PROMOTED if decision.promoted else State.REFUSED
        details = {"decision": msgspec.to_builtins(decision), "reason": decision.reason}
        folder = Path(trained["adapter"])
        found = (adapter_digest(folder), config_digest(folder))
        if decision.promoted and found != (trained["adapter_digest"], trained["config_digest"]):
            raise RepositoryError(
                f"{folder} is not the adapter that was measured ({trained['adapter_digest'][:12]}): it was edited; put "
                "it back, or end the round with --abandon"
            )
        with self.dag.writing() as connection:
            self.steps.append(rounds.append(connection, self.learner, self.number, state, details))
            if decision.promoted:
                rounds.promote(
                    connection,
                    self.learner,
                    action="promote",
                    adapter=trained["adapter"],
                    adapter_digest=trained["adapter_digest"],
                    actor=self.actor,
                    reason=decision.reason,
                    round_=self.number,
                )

    def _append(self, state: State, details: Mapping[str, Any]) -> None:
        self.steps.append(_append(self.dag, self.learner, self.number, state, details))


def _last_round(dag: ArtifactDAG, learner: str) -> list[RoundStep]:
    with dag.reading() as connection:
        last = rounds.read(connection, learner, last=True)
        return rounds.read(connection, learner, last[0].round) if last else []


def _measures(bench: Bench) -> dict[str, Any]:
    """Return what decides a measurement beside the held-out specifications, as far as it can be told apart."""
    return {
        "guard": f"{bench.guard.name}@{bench.guard.version}",
        "hidden guards": [f"{each.name}@{each.version}" for each in bench.hidden],
        "regressions": held_out_digest(bench.regressions),
        "general texts": digest_json(msgspec.to_builtins(bench.texts)),
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}…"


def _append(dag: ArtifactDAG, learner: str, number: int, state: State, details: Mapping[str, Any]) -> RoundStep:
    with dag.writing() as connection:
        return rounds.append(connection, learner, number, state, details)


def _check_repository(dag: ArtifactDAG, config: LoopConfig) -> None:
    """Refuse an ℛ that is behind what was trained from it (Definition 15)."""
    check_restored(dag, Path(config.folder), config.learner)
    last = last_checkpoint(dag, config.learner)
    if last is not None:
        check_item(dag, last)


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
