"""`guardlearn demo --rounds N`: the loop closed on the small real model: collect with what is live, learn, decide.

Every round collects on its own share of the training families with the adapter that is live, then learns from all that
was accepted so far and is measured against what is live on the held-out families.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from guardlearn import forgetting
from guardlearn.collect import collect
from guardlearn.dag import ArtifactDAG
from guardlearn.demo.guard import house_style
from guardlearn.demo.model import demo_model
from guardlearn.demo.run import DEMO_TRAINING, R_MAX, SAMPLING, Stage, place_sides
from guardlearn.demo.tasks import specifications
from guardlearn.errors import UsageError
from guardlearn.gate import GateConfig
from guardlearn.generators import open_generator
from guardlearn.lineage import live_adapter
from guardlearn.loop.config import LoopConfig, LoopSettings
from guardlearn.loop.history import write_history
from guardlearn.loop.planning import Waiting, rounds_of
from guardlearn.loop.results import RoundResult, result_of
from guardlearn.loop.rounds import Bench, run_round
from guardlearn.prompts import Renderer
from guardlearn.types import Side, Specification

__all__ = ["LEARNER", "RoundsResult", "run_rounds"]

LEARNER = "demo"
MOST_ROUNDS = 10
_LEAST_TRACES = 8


class RoundsResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the rounds left behind."""

    folder: str
    rounds: list[RoundResult]
    first_attempts: list[float | None]
    """Of each round's collection: share that passed at once with what was live."""
    waiting: str
    """Why a round did not begin; "" where all did."""
    report: str


def run_rounds(folder: Path, stage: Stage, rounds: int) -> RoundsResult:
    """Run so many rounds in `folder`, or continue them.

    Args:
        folder: gets runs.db and rounds/.
        stage: opens the progress display of a step.
        rounds: from 1 to 10.

    Raises:
        UsageError: too many rounds, or none.
    """
    if not 1 <= rounds <= MOST_ROUNDS:
        raise UsageError(f"--rounds is {rounds}; the demo has families for 1 to {MOST_ROUNDS}")
    folder.mkdir(parents=True, exist_ok=True)
    settings = LoopSettings(
        loop=LoopConfig(
            learner=LEARNER,
            model="demo",
            guard="guardlearn.demo:house_style",
            folder=str(folder / "rounds"),
            select="all",
            min_new_traces=_LEAST_TRACES,
            r_max=R_MAX,
            temperature=SAMPLING.temperature,
            max_new_tokens=SAMPLING.max_new_tokens,
            stop=SAMPLING.stop,
        ),
        training=DEMO_TRAINING,
        promotion=GateConfig(),
    )
    with stage("model") as progress:
        model = demo_model(progress)
        generator = open_generator("transformers", model, sampling=SAMPLING)
        renderer = Renderer(special_tokens=generator.special_tokens)
    sides = (Side.TRAIN, Side.VALIDATION, Side.HELD_OUT)
    bench = Bench(
        model_folder=model,
        guard=house_style,
        specs=[spec for side in sides for spec in specifications(side)],
        open_generator=lambda config, manifest: (generator, None),
        texts=forgetting.default_texts(),
    )
    waiting = ""
    firsts: list[float | None] = []
    with ArtifactDAG.open_or_create(str(folder / "runs.db")) as dag:
        place_sides(dag)
        for number in range(1, rounds + 1):
            firsts.append(_collect(dag, generator, renderer, number, rounds, stage))
            if not _decided(dag, number):
                outcome = run_round(dag, settings, bench, stage, "demo")
                if isinstance(outcome, Waiting):
                    waiting = outcome.reason
                    break
        done = [result_of(steps) for steps in rounds_of(dag, LEARNER) if steps[-1].state.decided]
        page = write_history(dag, settings.loop, settings.promotion.min_gain)
    return RoundsResult(folder=str(folder), rounds=done, first_attempts=firsts, waiting=waiting, report=str(page))


def _decided(dag: ArtifactDAG, number: int) -> bool:
    found = rounds_of(dag, LEARNER)
    return len(found) >= number and found[number - 1][-1].state.decided


def _collect(
    dag: ArtifactDAG, generator: Any, renderer: Renderer, number: int, rounds: int, stage: Stage
) -> float | None:
    """Collect on the families of a round with what is live; return the share of first attempts that passed."""
    folder, digest = _answering(dag, number)
    with stage(f"collect {number}") as progress:
        generator.use_adapter(folder)
        try:
            summary = collect(
                dag,
                _share(number, rounds),
                generator,
                house_style,
                renderer=renderer,
                adapter=digest,
                r_max=R_MAX,
                seed=number,
                on_progress=progress,
            )
        finally:
            generator.use_adapter(None)
    made, passed = summary.attempts_by_position[:1], summary.accepted_by_position[:1]
    return passed[0] / made[0] if made and made[0] else None


def _answering(dag: ArtifactDAG, number: int) -> tuple[str | None, str]:
    """Return folder and digest of what was, or is, live when a round collects; a round that was planned says it."""
    found = rounds_of(dag, LEARNER)
    if len(found) >= number:
        incumbent = found[number - 1][0].details["incumbent"]
        return (incumbent["adapter"], incumbent["digest"]) if incumbent else (None, "")
    live = live_adapter(dag, LEARNER)
    return (str(live.folder), live.digest) if live else (None, "")


def _share(number: int, rounds: int) -> list[Specification]:
    """Return the specifications of every `rounds`-th training family, and with the first round those of validation."""
    groups: dict[str, list[Specification]] = {}
    for spec in specifications(Side.TRAIN):
        groups.setdefault(str(spec.group), []).append(spec)
    own = [spec for place, name in enumerate(sorted(groups)) if place % rounds == number - 1 for spec in groups[name]]
    return own + (specifications(Side.VALIDATION) if number == 1 else [])
