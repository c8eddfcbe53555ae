"""Runs an ablation to its end, or goes on with one: plan, calibrate, train, measure.

All trainings come before all measurements, so that the model that measures and the one that trains are never in memory
together. Every part leaves a file, and the same call after a kill goes on with the parts that have none; equal plans
and costs give equal records. Measured is on the validation side alone, with the same sampling noise for every arm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from guardlearn.ablation.axes import arms_of
from guardlearn.ablation.calibrating import allot
from guardlearn.ablation.config import AblationSettings
from guardlearn.ablation.measuring import measure_arms
from guardlearn.ablation.planning import plan_ablation
from guardlearn.ablation.summary import summarise
from guardlearn.ablation.trainings import train_arms
from guardlearn.ablation.work import Work
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import UsageError
from guardlearn.loop.rounds import Bench, Stage
from guardlearn.report.ablation import Ablation

__all__ = ["ablate"]

_GENERATORS = ("transformers", "replay")


def ablate(
    dag: ArtifactDAG,
    settings: AblationSettings,
    bench: Bench,
    over: str,
    names: Sequence[str] = (),
    reference: str | None = None,
    *,
    folder: Path,
    stage: Stage,
) -> Ablation:
    """Train every arm of an axis for the same wall time, measure all on the validation side; return what came out.

    The same call after a crash continues.

    Args:
        dag: ℛ; it is only read.
        settings: what all arms share.
        bench: base model, guard, specifications, and what opens the generator.
        over: a key of `AXES`.
        names: arms; none: the axis's usual ones.
        reference: the arm that the others are held against; None: the one that is set.
        folder: of this ablation; made if missing.
        stage: opens the progress display of a step.

    Raises:
        UsageError: as `plan_ablation`; a generator that takes no adapter folders; a time that holds no step of an arm;
            another process is at it.
        DataError: as `plan_ablation`.
        NoTracesError: an arm has no trace, or none that gives it a row.
        JobError: a training failed; the same call goes on with it.
    """
    if settings.loop.generator not in _GENERATORS:
        raise UsageError(
            f"generator {settings.loop.generator!r} cannot switch to the adapters of an ablation; choose "
            f"{' or '.join(_GENERATORS)} in [loop]"
        )
    arms_of(over, settings.training, settings.loop.select, names, reference)  # a typo leaves nothing behind
    with _alone(folder):
        with stage("plan") as progress:
            progress(0, 1, "looking for the traces of each arm")
            planned = plan_ablation(dag, settings, bench, over, names, reference, folder=folder)
            progress(1, 1, f"{len(planned.arms)} arms, {len(planned.specs)} specifications")
        work = Work(settings=settings, bench=bench, folder=folder, planned=planned)
        with stage("calibrate") as progress:
            allotted = allot(work, progress)
        with stage("train") as progress:
            trained = train_arms(work, allotted.steps, progress)
        with stage("measure") as progress:
            records = measure_arms(work, allotted.steps, progress)
    return summarise(work, allotted, trained, records)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".ablation.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(f"another process is at the ablation in {folder}; wait for it, or choose another") from None
    try:
        yield
    finally:
        lock.release()
