"""The third step of an ablation: every arm trained with every seed, for the same wall time."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from guardlearn.ablation.axes import Arm
from guardlearn.ablation.keeping import Trained, file_name, read_kept, record_of, write_kept
from guardlearn.ablation.work import Work, rows_of, shifted, steps_a_pass
from guardlearn.jobs import TrainingConfig, run_job
from guardlearn.types import OnProgress

__all__ = ["job_of", "train_arms"]


def train_arms(work: Work, steps: Mapping[str, list[int]], on_progress: OnProgress) -> dict[tuple[str, int], Trained]:
    """Train what is not trained yet; return what there is to say of each training, by arm and seed.

    A training that was cut off goes on from its last weights checkpoint; its wall time is then not known.

    Args:
        work: the ablation.
        steps: of each stage, by arm.
        on_progress: called with (steps done, all steps, note).

    Raises:
        JobError: a training failed.
    """
    keys = [(arm, seed) for arm in work.planned.arms for seed in work.settings.ablation.seeds]
    total, done = sum(sum(steps[arm.name]) for arm, _ in keys), 0
    trainings: dict[tuple[str, int], Trained] = {}
    for arm, seed in keys:
        who = f"{arm.name}, seed {seed}"
        trainings[arm.name, seed] = _trained(work, arm, seed, steps[arm.name], shifted(on_progress, who, done, total))
        done += sum(steps[arm.name])
        on_progress(done, total, who)
    return trainings


def job_of(work: Work, arm: str, seed: int) -> Path:
    """Return the folder of a training's job."""
    return _folder(work, arm, seed) / "job"


def _folder(work: Work, arm: str, seed: int) -> Path:
    return work.folder / "trained" / file_name(arm, seed)


def _trained(work: Work, arm: Arm, seed: int, steps: list[int], on_progress: OnProgress) -> Trained:
    folder = _folder(work, arm.name, seed)
    kept, of = folder.with_name(f"{folder.name}.json"), record_of(work.planned.digest, arm.name, seed, steps)
    found = read_kept(kept, Trained, of)
    if found is not None:
        return found
    job, begun = folder / "job", folder / "begun"
    interrupted = begun.exists()
    training = dataclasses.replace(arm.training, seed=seed)
    work.write(arm, seed, job, _lasting(work, arm, seed, training, steps))
    begun.touch()
    started = time.perf_counter()
    trained = run_job(job, work.bench.model_folder, python=work.bench.python, on_progress=on_progress)
    wall = time.perf_counter() - started
    made = Trained(
        of=of,
        steps=steps,
        rows=rows_of(job, training),
        passes=[round(n / of_pass, 3) for n, of_pass in zip(steps, steps_a_pass(job, training), strict=True)],
        wall_seconds=None if interrupted else round(wall, 2),
        loss=trained.result.get("loss"),
    )
    write_kept(kept, made)
    return made


def _lasting(work: Work, arm: Arm, seed: int, training: TrainingConfig, steps: list[int]) -> TrainingConfig:
    """Return how to train for so many steps; stages of different lengths are said in passes over their rows."""
    if len(steps) == 1:
        return dataclasses.replace(training, max_steps=steps[0])
    probe = _folder(work, arm.name, seed) / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    work.write(arm, seed, probe, training)
    first, second = (n / of_pass for n, of_pass in zip(steps, steps_a_pass(probe, training), strict=True))
    shutil.rmtree(probe)
    return dataclasses.replace(training, max_steps=None, epochs=first, second_epochs=second)
