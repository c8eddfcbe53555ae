"""One ablation under way: what its parts share, and the jobs that arms are trained from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.ablation.axes import Arm
from guardlearn.ablation.config import AblationSettings
from guardlearn.ablation.planning import Planned
from guardlearn.jobs import TrainingConfig, write_job
from guardlearn.loop.rounds import Bench
from guardlearn.training.methods import plan_for
from guardlearn.training.progress import METRICS
from guardlearn.types import OnProgress

__all__ = ["Work", "rows_of", "shifted", "step_sizes", "steps_a_pass", "steps_by_epochs"]

_STAGE_FILES = ("train.jsonl", "train.second.jsonl")
_ANSWERS = ("completion", "chosen", "rejected")


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the parts of an ablation share."""

    settings: AblationSettings
    bench: Bench
    folder: Path
    planned: Planned

    def write(self, arm: Arm, seed: int, job: Path, training: TrainingConfig) -> None:
        """Write the job of an arm's traces into a folder, or find it there."""
        write_job(job, self.planned.extractions[arm.name, seed], self.bench.model_folder, training)


def rows_of(job: Path, training: TrainingConfig) -> list[int]:
    """Return how many rows each stage of a job has."""
    files = _STAGE_FILES[: len(training.methods)]
    return [len((job / name).read_bytes().splitlines()) for name in files]


def steps_a_pass(job: Path, training: TrainingConfig) -> list[int]:
    """Return the steps that each stage of a job takes for a pass over its rows."""
    return [
        len(plan_for(method, [()] * rows, training.batch_size, epochs=1.0, max_steps=None, seed=training.seed))
        for method, rows in zip(training.methods, rows_of(job, training), strict=True)
    ]


def steps_by_epochs(job: Path, training: TrainingConfig) -> list[int]:
    """Return the steps that each stage of a job takes for the passes that its settings ask for."""
    epochs: Sequence[float] = (training.epochs, training.second_epochs)
    passes = steps_a_pass(job, training)
    # as the trainer counts: a part of a pass is a part of its steps, rounded up
    return [max(1, math.ceil(round(each * of, 6))) for each, of in zip(epochs, passes, strict=False)]


def step_sizes(job: Path, training: TrainingConfig) -> list[list[float]]:
    """Return how large each step of a finished job was, stage by stage; 1 is the mean step of the stage's rows.

    Counted are letters, without what all prompts of the stage begin with: that goes through the model once a batch.
    """
    steps = [json.loads(line)["rows"] for line in (job / METRICS).read_bytes().splitlines()]
    count = len(steps) // len(training.methods)
    found = []
    for stage, (name, a_pass) in enumerate(zip(_STAGE_FILES, steps_a_pass(job, training), strict=False)):
        letters = _letters([json.loads(line) for line in (job / name).read_bytes().splitlines()])
        mean = sum(letters.values()) / a_pass
        found.append([sum(letters[row] for row in step) / mean for step in steps[stage * count : (stage + 1) * count]])
    return found


def _letters(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the letters of each row by its id, without what all prompts begin with."""
    prompts = [json.dumps(row["prompt"], ensure_ascii=False) for row in rows]
    first, last = min(prompts), max(prompts)  # extremes in order agree: all do
    begun = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return {
        row["id"]: len(prompt) - begun + sum(len(row.get(name) or "") for name in _ANSWERS)
        for row, prompt in zip(rows, prompts, strict=True)
    }


def shifted(on_progress: OnProgress, what: str, offset: int, total: int) -> OnProgress:
    """Return what reports the progress of a part that begins at `offset`."""
    return lambda done, _, note: on_progress(min(total, offset + done), total, f"{what}: {note}")
