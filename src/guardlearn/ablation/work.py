"""One ablation under way: what its parts share, and the jobs that arms are trained from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from guardlearn.ablation.axes import Arm
from guardlearn.ablation.config import AblationSettings
from guardlearn.ablation.planning import Planned
from guardlearn.jobs import TrainingConfig, write_job
from guardlearn.loop.rounds import Bench
from guardlearn.training.methods import plan_for
from guardlearn.types import OnProgress

__all__ = ["Work", "rows_of", "shifted", "steps_a_pass", "steps_by_epochs"]

_STAGE_FILES = ("train.jsonl", "train.second.jsonl")


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


def shifted(on_progress: OnProgress, what: str, offset: int, total: int) -> OnProgress:
    """Return what reports the progress of a part that begins at `offset`."""
    return lambda done, _, note: on_progress(min(total, offset + done), total, f"{what}: {note}")
