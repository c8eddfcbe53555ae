"""The second step of an ablation: what a step of each arm costs, and so how many of them the common time holds.

The first seed's traces of each arm are trained for a few steps and timed from outside, and what a step takes is put
down to the letters in its rows; every seed gets the steps that this gives. Costs differ from call to call, so what was
found is kept: the trainings that follow are the same whenever they are continued.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

from guardlearn.ablation.axes import Arm
from guardlearn.ablation.keeping import Allotment, file_name, read_kept, write_kept
from guardlearn.ablation.timing import Cost, cost_of, levelled, seconds_for, steps_within
from guardlearn.ablation.work import Work, shifted, step_sizes, steps_by_epochs
from guardlearn.jobs import run_job
from guardlearn.types import OnProgress

__all__ = ["allot"]

_TIME = "time.json"


def allot(work: Work, on_progress: OnProgress) -> Allotment:
    """Return the wall time of each training and the steps that it holds of each arm; what was found is kept.

    Args:
        work: the ablation.
        on_progress: called with (steps of short trainings done, all of them, note).

    Raises:
        NoTracesError: an arm has no row to train on.
        JobError: a short training failed.
        UsageError: the time holds no step of an arm.
    """
    planned, config = work.planned, work.settings.ablation
    found = read_kept(work.folder / _TIME, Allotment, planned.digest)
    if found is not None:
        return found
    costs = levelled(_costs(work, on_progress), [arm.name for arm in planned.arms if arm.training.method == "sft"])
    reference = next(arm for arm in planned.arms if arm.name == planned.reference)
    seconds = _as_set(work, reference, costs[reference.name]) if config.minutes is None else 60 * config.minutes
    steps = {name: steps_within(name, cost, seconds, config.first_stage) for name, cost in costs.items()}
    made = Allotment(of=planned.digest, seconds=round(seconds, 2), steps=steps, costs=costs)
    write_kept(work.folder / _TIME, made)
    return made


def _costs(work: Work, on_progress: OnProgress) -> dict[str, Cost]:
    arms, count = work.planned.arms, work.settings.ablation.calibration_steps
    places = {arm.name: work.folder / "costs" / f"{file_name(arm.name)}.json" for arm in arms}
    costs = {name: cost for name, place in places.items() if (cost := read_kept(place, Cost)) is not None}
    todo = [arm for arm in arms if arm.name not in costs]
    sizes = {arm.name: count * len(arm.training.methods) for arm in arms}
    done, total = sum(sizes[name] for name in costs), sum(sizes.values())
    on_progress(done, total, "writing the jobs of short trainings")
    jobs = {arm.name: _short_job(work, arm, count) for arm in todo}  # what cannot be trained is said before any is
    for arm in todo:
        costs[arm.name] = _timed(work, arm, jobs[arm.name], shifted(on_progress, arm.name, done, total))
        write_kept(places[arm.name], costs[arm.name])
        done += sizes[arm.name]
    shutil.rmtree(work.folder / "short", ignore_errors=True)
    on_progress(total, total, "")
    return {arm.name: costs[arm.name] for arm in arms}


def _short_job(work: Work, arm: Arm, steps: int) -> Path:
    job = _fresh(work, file_name(arm.name))  # a training that was cut off would not be timed as a whole
    # one weights checkpoint at the end: in the trainings themselves they are rare
    training = dataclasses.replace(arm.training, max_steps=steps, save_steps=arm.training.save_steps or steps)
    work.write(arm, work.settings.ablation.seeds[0], job, training)
    return job


def _timed(work: Work, arm: Arm, job: Path, on_progress: OnProgress) -> Cost:
    arrivals: dict[int, float] = {}
    started = time.perf_counter()

    def arrived(step: int, steps: int, note: str) -> None:
        arrivals.setdefault(step, time.perf_counter() - started)
        on_progress(step, steps, note)

    run_job(job, work.bench.model_folder, python=work.bench.python, on_progress=arrived)
    return cost_of(arrivals, time.perf_counter() - started, step_sizes(job, arm.training))


def _as_set(work: Work, reference: Arm, cost: Cost) -> float:
    """Return the wall seconds that the reference takes for the steps that [training] gives it."""
    training = reference.training
    if training.max_steps is not None:
        return seconds_for(cost, [training.max_steps] * len(training.methods))
    job = _fresh(work, "reference")
    work.write(reference, work.settings.ablation.seeds[0], job, training)  # how long a pass is depends on its rows
    seconds = seconds_for(cost, steps_by_epochs(job, training))
    shutil.rmtree(work.folder / "short", ignore_errors=True)
    return seconds


def _fresh(work: Work, name: str) -> Path:
    folder = work.folder / "short" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder
