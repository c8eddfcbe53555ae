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
from guardlearn.comparing import Payback, pays_after
from guardlearn.dag import ArtifactDAG, checkpoints, registration, rounds
from guardlearn.dag.importers.atomicguard_prompts import dependency_contents
from guardlearn.dag.rounds import RoundStep, State
from guardlearn.digests import digest_file
from guardlearn.engines import Engine
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.forgetting import GeneralText
from guardlearn.gate import Decision, GateConfig, GateFigures
from guardlearn.jobs import TrainingConfig
from guardlearn.loop.checkpoint import check_item, check_restored, last_checkpoint
from guardlearn.loop.config import LoopConfig, LoopSettings
from guardlearn.loop.measuring import Measured, measure
from guardlearn.loop.planning import Waiting, held_out_digest, on_side, plan_round, planned_extraction, rounds_of
from guardlearn.prompts import PromptConfig, Renderer
from guardlearn.traces import content_digest
from guardlearn.types import Generator, Guard, OnProgress, Side, Specification

__all__ = ["Bench", "RoundResult", "Stage", "abandon", "result_of", "run_round"]

Stage = Callable[[str], contextlib.AbstractContextManager[OnProgress]]
"""Opens a step's progress display by its name."""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What a round is trained on and measured with, read and found usable."""

    model_folder: Path
    """The base model's folder."""
    guard: Guard
    specs: list[Specification]
    """All of the loop's; their sides in ℛ decide what they are for."""
    open_generator: Callable[[Mapping[str, Any]], tuple[Generator, Engine | None]]
    """Loads π_θ on the bare base for an adapter's manifest, when it is measured; the round closes the engine."""
    regressions: list[Specification] = []
    texts: list[GeneralText] = []
    hidden: list[Guard] = []
    python: str | None = None
    """Interpreter of the training process; None: this one."""


class RoundResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a round came to."""

    learner: str
    round: int
    state: State
    reason: str
    """Why it was promoted or refused, in one line."""
    adapter: str
    """Folder of the round's adapter; "" where it came to none."""
    adapter_digest: str
    new_traces: int
    traces: int
    rows: int
    gain: float | None
    """Candidate minus incumbent, share of first attempts; None: not measured."""
    gain_low: float | None
    gain_high: float | None
    detectable: float | None
    """The smallest true gain that its measurement would have found."""
    look: int
    folder: str
    payback: Payback | None
    """After how many tasks the round would have paid for itself, were its candidate live; None: not measured."""


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
                planned = plan_round(dag, settings, bench.specs, model_folder=bench.model_folder)
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
        self._check_held_out()
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

    def _check_held_out(self) -> None:
        found = held_out_digest(self.held_out)
        if found != self.plan["held_out"]["digest"]:
            raise UsageError(
                f"round {self.number} was planned with {self.plan['held_out']['specs']} held-out specifications, these "
                f"are others ({len(self.held_out)}): give the ones it was planned with, or end it with --abandon"
            )

    def _extract(self) -> None:
        with self.stage("extract") as progress:
            extraction = planned_extraction(self.dag, self.plan)
            parent = self.plan["parent"]
            prompts = PromptConfig(retry=self.training.retry, layout=self.training.layout)
            summary = jobs.write_job(
                self.folder / "job",
                extraction,
                self.bench.model_folder,
                self.training,
                weights=self.plan["weights"] or None,
                about=self.plan["weighting"],
                parent=Path(parent["adapter"]) if parent else None,
                dependencies=dependency_contents(self.dag, (t.item for t in extraction.traces))
                if prompts.templates
                else None,
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
        contents = {name: content_digest(self.dag.get_item(name)) for name in self.plan["new_item_ids"]}
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
            generator, engine = self.bench.open_generator(manifest)
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
        details = _measurement(measured, self.folder) | {"cost": _cost(measured, trained["result"])}
        with self.dag.writing() as connection:
            if measured.evidence is not None:
                sides = registration.sides_digest(connection)
                registration.record_reading(connection, trained["adapter_digest"], sides, len(self.held_out), "gate")
            self.steps.append(rounds.append(connection, self.learner, self.number, State.MEASURED, details))

    def _trained_action_pairs(self) -> set[str]:
        return {self.dag.get_item(name).action_pair_id for name in self.plan["item_ids"]}

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


def result_of(steps: Sequence[RoundStep]) -> RoundResult:
    """Return what the steps of a decided round came to."""
    details = {step.state: step.details for step in steps}
    plan, last = details[State.PLANNED], steps[-1]
    trained, extracted = details.get(State.TRAINED, {}), details.get(State.EXTRACTED, {})
    decision = msgspec.convert(last.details["decision"], Decision | None)
    difference = (details.get(State.MEASURED, {}).get("evidence") or {}).get("difference") or {}
    return RoundResult(
        learner=last.learner,
        round=last.round,
        state=last.state,
        reason=last.details["reason"],
        adapter=trained.get("adapter", ""),
        adapter_digest=trained.get("adapter_digest", ""),
        new_traces=len(plan["new_item_ids"]),
        traces=len(plan["item_ids"]),
        rows=extracted.get("rows", 0),
        gain=difference.get("rate"),
        gain_low=difference.get("low"),
        gain_high=difference.get("high"),
        detectable=decision.detectable if decision else None,
        look=plan["look"],
        folder=str(Path(plan["settings"]["loop"]["folder"]).absolute() / f"{last.round:03}"),
        payback=msgspec.convert(details.get(State.MEASURED, {}).get("cost", {}).get("payback"), Payback | None),
    )


def _measurement(measured: Measured, folder: Path) -> dict[str, Any]:
    """Return what ℛ keeps of a measurement: every figure that decides, and the evidence without its single pairs."""

    def short(evidence: Any) -> dict[str, Any]:
        said: dict[str, Any] = msgspec.to_builtins(evidence)
        del said["per_spec"]
        return said

    return {
        "figures": msgspec.to_builtins(measured.figures),
        "evidence": short(measured.evidence) if measured.evidence else None,
        "evidence_file": str(folder / report.EVIDENCE) if measured.evidence else "",
        "regressions": {name: short(each) for name, each in measured.regressions.items()},
        "forgetting": msgspec.to_builtins(measured.forgetting),
        "hidden": msgspec.to_builtins(measured.hidden),
        "checked": measured.checked,
        "unmeasured": measured.unmeasured,
    }


def _cost(measured: Measured, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the round cost, and after how many tasks its candidate has paid for it, were it live."""
    trained = float(training.get("seconds", 0.0))
    said: dict[str, Any] = {"trained_seconds": trained, "measured_seconds": measured.seconds, "payback": None}
    if measured.evidence is not None:
        spent = trained + sum(measured.seconds.values())
        said["payback"] = msgspec.to_builtins(pays_after(measured.evidence.costs, spent_seconds=spent))
    return said


def _last_round(dag: ArtifactDAG, learner: str) -> list[RoundStep]:
    return next(iter(reversed(rounds_of(dag, learner))), [])


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
