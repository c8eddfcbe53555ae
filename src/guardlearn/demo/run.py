"""The embedded default: the whole loop on a small real model, in minutes, on two CPU cores.

collect → extract → train → evaluate → report. Every step leaves its result in the demo's folder and is skipped or
continued when the command runs again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from guardlearn import adapters, jobs, report
from guardlearn.collect import CollectSummary, collect
from guardlearn.dag import ArtifactDAG
from guardlearn.demo.guard import house_style
from guardlearn.demo.model import demo_model
from guardlearn.demo.tasks import specifications
from guardlearn.evaluation import Evidence, evaluate
from guardlearn.generators import SamplingConfig, open_generator
from guardlearn.jobs import TrainingConfig
from guardlearn.prompts import Renderer
from guardlearn.traces import extract_traces
from guardlearn.types import Generator, OnProgress, Side, Specification

__all__ = ["DEMO_TRAINING", "LIMITS", "R_MAX", "SAMPLING", "DemoResult", "Stage", "place_sides", "run_demo"]

R_MAX = 4
SAMPLING = SamplingConfig(temperature=0.5, max_new_tokens=128, stop=("\n```\n",))
DEMO_TRAINING = TrainingConfig(
    base_model="demo", views=("first_attempt",), max_steps=25, batch_size=4, learning_rate=5e-4, max_length=512
)

LIMITS = (
    "The training and held-out families are kin: small Python functions of the same four kinds.",
    "A specification states the expression to return, so this shows a house style being learned, not coding.",
    "One base model, one guard, one training seed; your own repository decides what you gain.",
)
"""What the demo does not show; printed with its result."""

Stage = Callable[[str], AbstractContextManager[OnProgress]]
"""Opens a step's progress display by its name."""


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo left behind."""

    folder: str
    evidence: Evidence
    collected: CollectSummary
    traces: int
    rows: int
    dropped: dict[str, int]
    """Selected items that became no trace, by reason."""
    dropped_rows: dict[str, int]
    """Rows that did not come to be, by reason."""
    training: dict[str, Any]
    seconds: dict[str, float]
    """Wall seconds by step, summed over the runs it took."""


def run_demo(folder: Path, stage: Stage, *, swap_groups: bool = False) -> DemoResult:
    """Run the demo in `folder`, or continue it.

    Args:
        folder: gets runs.db, job/, adapter/, evaluation/, evidence.json and report.html.
        stage: opens the progress display of a step.
        swap_groups: exchange the training and the held-out families.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock(folder / "seconds.json")
    with stage("model") as progress, clock.step("model"):
        model = demo_model(progress)
        generator = open_generator("transformers", model, sampling=SAMPLING)
        renderer = Renderer(special_tokens=generator.special_tokens)
    with ArtifactDAG.open_or_create(str(folder / "runs.db")) as dag:
        with stage("collect") as progress, clock.step("collect"):
            collected = _collect(dag, generator, renderer, swap_groups, progress)
        with stage("extract") as progress, clock.step("extract"):
            extraction = extract_traces(dag, "refinement")
            summary = jobs.write_job(folder / "job", extraction, model, DEMO_TRAINING, on_progress=progress)
        with stage("train") as progress, clock.step("train"):
            trained = jobs.run_job(folder / "job", model, on_progress=progress)
            adapter = adapters.publish(folder / "job", folder / "adapter")
        with stage("evaluate") as progress, clock.step("evaluate"):
            specs = specifications(Side.HELD_OUT, swap=swap_groups)
            evidence = evaluate(
                specs,
                generator,
                house_style,
                adapter=adapter,
                renderer=renderer,
                r_max=R_MAX,
                folder=folder / "evaluation",
                manifest=adapters.read_manifest(adapter),
                on_progress=progress,
            )
            dag.record_reading(adapters.adapter_digest(adapter), dag.sides_digest(), len(specs), "demo")
        with stage("report") as progress, clock.step("report"):
            story = report.story(dag, folder / "job", model, dropped=extraction.dropped, on_progress=progress)
            report.write(folder, evidence, story=story, limits=LIMITS)
    return DemoResult(
        folder=str(folder),
        evidence=evidence,
        collected=collected,
        traces=len(extraction.traces),
        rows=summary.rows,
        dropped=extraction.dropped,
        dropped_rows=summary.dropped,
        training=trained.result,
        seconds=clock.seconds,
    )


def place_sides(dag: ArtifactDAG, swap_groups: bool = False) -> dict[Side, list[Specification]]:
    """Give the demo's families their sides in ℛ; return the specifications by side."""
    by_side = {side: specifications(side, swap=swap_groups) for side in (Side.TRAIN, Side.VALIDATION, Side.HELD_OUT)}
    for side, specs in by_side.items():
        for group in sorted({spec.group for spec in specs if spec.group}):
            dag.assign_side(group, side)
    dag.register([spec for specs in by_side.values() for spec in specs])
    return by_side


def _collect(
    dag: ArtifactDAG, generator: Generator, renderer: Renderer, swap_groups: bool, progress: OnProgress
) -> CollectSummary:
    by_side = place_sides(dag, swap_groups)
    specs = by_side[Side.TRAIN] + by_side[Side.VALIDATION]
    return collect(dag, specs, generator, house_style, renderer=renderer, r_max=R_MAX, on_progress=progress)


class _Clock:
    """Wall time by step, kept in a file so that an interrupted demo adds up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = self.seconds.get(name, 0.0) + time.perf_counter() - started
            self.seconds[name] = round(spent, 1)
            staged = self.path.with_suffix(".new")
            staged.write_text(json.dumps(self.seconds), encoding="utf-8")
            staged.replace(self.path)
