"""The stages of a job, one after the other: SFT, KTO or DPO, or SFT and then one of the others.

Each stage lies in a folder of its own in the job's work folder, with its plan, metrics, references, weights checkpoints
and, once it is done, its weights and what is to say of it. The second begins at the first's weights with a fresh
optimiser. So a kill anywhere leaves one stage to go on with, and what lies there decides every number that follows.

Loaded after the backend was opened: Unsloth must be imported before transformers, trl and peft.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_json
from guardlearn.errors import JobError
from guardlearn.training import methods, processes, trl
from guardlearn.training.ceiling import Meter
from guardlearn.training.checks import check_maskable
from guardlearn.training.failures import TrainingStopped, write_account
from guardlearn.training.progress import METRICS, Progress
from guardlearn.training.settings import Job, Settings, Stage
from guardlearn.training.sft import given_back, save_interval
from guardlearn.training.watching import Best, Watcher, check_looks
from guardlearn.training.weights import adapter_weights, put_adapter_weights

__all__ = ["Course", "planned", "published_metrics", "steps_done", "train_stages"]

_PLAN, _FINISHED, _WEIGHTS, _ACCOUNT = "plan.json", "finished", "weights.safetensors", "stage.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A stage, planned."""

    stage: Stage
    number: int
    """From 1."""
    folder: Path
    rows: list[Any]
    validation: list[Any]
    """Empty where the job has no validation side."""
    batches: list[list[int]]
    """Every step's row numbers."""
    first: int
    """Steps of the stages before it."""
    tokens: list[int]
    """Of every step's rows."""


def planned(job: Job, tokenizer: Any, work: Path) -> list[Course]:
    """Tokenise the rows of all stages and plan their steps; nothing is loaded or written.

    A stage that was begun goes on as it was planned then, whatever would be planned today.

    Args:
        job: its rows are looked at before anything is loaded.
        tokenizer: the base model's.
        work: the job's work folder.

    Raises:
        JobError: rows that cannot be trained on, a chat template that cannot be masked, settings that ask to look at
            validation rows where there are none, or a stage that was begun with other rows.
    """
    settings, courses, first = job.settings, list[Course](), 0
    for number, stage in enumerate(job.stages, start=1):
        check_maskable([*stage.train, *stage.validation], tokenizer)
        check_looks(settings, stage)
        rows = methods.rows_for(stage.method, stage.train, tokenizer, settings.max_length)
        validation = _validation_rows(stage, tokenizer, settings.max_length)
        folder = work / f"stage-{number}"
        batches = _begun_plan(folder, rows) or methods.plan_for(
            stage.method,
            rows,
            settings.batch_size,
            epochs=stage.epochs,
            max_steps=settings.max_steps,
            seed=settings.seed,
        )
        course = Course(
            stage=stage,
            number=number,
            folder=folder,
            rows=rows,
            validation=validation,
            batches=batches,
            first=first,
            tokens=[sum(len(rows[row]) for row in batch) for batch in batches],
        )
        courses.append(course)
        first += len(batches)
    return courses


def train_stages(
    settings: Settings, courses: Sequence[Course], model: Any, tokenizer: Any, progress: Progress
) -> list[dict[str, Any]]:
    """Train every stage that is not done yet; leave the last one's weights in `model`.

    Args:
        settings: the job's.
        courses: what `planned` returned.
        model: the base with the adapters that the first stage begins at.
        tokenizer: the base model's.
        progress: is told of every step.

    Returns:
        What there is to say of each stage.

    Raises:
        TrainingStopped: losses or gradients were no numbers, or the losses ran away; what was good is kept.
        JobError: memory for one row is not there, or what an earlier process left is not whole.
    """
    from safetensors.torch import load_file

    accounts = []
    for course in courses:
        finished = course.folder / _FINISHED
        if not processes.from_main(finished.is_dir()):
            with given_back(model):
                account = _train(settings, course, model, tokenizer, progress)
            if processes.is_main():
                _finish(course, model, account)
            processes.wait()
        put_adapter_weights(model, load_file(finished / _WEIGHTS))
        accounts.append(json.loads((finished / _ACCOUNT).read_text(encoding="utf-8")))
    return accounts


def steps_done(courses: Sequence[Course]) -> int:
    """Return the steps, over all stages, that need not be done again."""
    for course in courses:
        if not (course.folder / _FINISHED).is_dir():
            return course.first + _checkpoint_steps(course)
    return courses[-1].first + len(courses[-1].batches)


def published_metrics(courses: Sequence[Course]) -> str:
    """Return the lines of all finished stages."""
    return "".join((course.folder / METRICS).read_text(encoding="utf-8") for course in courses)


def _train(settings: Settings, course: Course, model: Any, tokenizer: Any, progress: Progress) -> dict[str, Any]:
    """Train one stage from whatever state it is in; leave the weights it ends with in the model."""
    folder, before = course.folder, adapter_weights(model)
    done = processes.from_main(_begin(course) if processes.is_main() else 0)
    history = processes.from_main(progress.begin(course, folder / METRICS, done))
    if len(history) < done:
        raise JobError(f"{folder / METRICS} lacks lines of steps that are done; remove {folder.parent} to start over")
    watcher = Watcher(settings, course, progress, history)
    watcher.trainer = trainer = _trainer(settings, course, model, tokenizer, progress, watcher)
    try:
        trainer.objective.begin(trainer, [*course.rows, *course.validation], folder)
        progress.measure(Meter(trainer.model, _precision(trainer)))
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{done}") if done else None)
        kept = watcher.put_back(trainer.model)
        validation_loss = _validation_loss(trainer, course, settings.batch_size, before, progress)
    except TrainingStopped as stop:
        raise _stopped(settings, course, stop) from None
    finally:
        progress.end()
    return {
        "method": course.stage.method,
        "steps": trainer.state.global_step,
        "planned_steps": len(course.batches),
        "rows": len(course.rows),
        "resumed_at_step": done,
        "loss": _ends(folder / METRICS) if processes.is_main() else None,
        "validation_loss": validation_loss,
        "validation_rows": len(course.validation),
        "evaluations": {str(step): loss for step, loss in watcher.looks.losses.items()},
        "kept_step": kept,
        "stopped_early": trainer.state.global_step < len(course.batches),
        **_made_with(trainer),
        **_pace(progress),
    }


def _trainer(
    settings: Settings, course: Course, model: Any, tokenizer: Any, progress: Progress, watcher: Watcher
) -> trl.WeightedTrainer:
    return trl.build(
        model,
        tokenizer,
        course.rows,
        course.batches,
        course.folder,
        _options(settings, course),
        watcher.take,
        objective=methods.objective_for(course.stage.method, settings, tokenizer.pad_token_id, course.rows),
        on_note=progress.note,
        callbacks=[watcher],
    )


def _begin(course: Course) -> int:
    """Make a stage's folder ready; return the steps that its newest weights checkpoint has."""
    course.folder.mkdir(exist_ok=True)
    if not (course.folder / _PLAN).is_file():
        plan = {"rows": _rows_digest(course.rows), "batches": course.batches}
        write_account(course.folder / _PLAN, plan, indent=None)
    return _checkpoint_steps(course)


def _checkpoint_steps(course: Course) -> int:
    checkpoint = trl.last_checkpoint(course.folder)
    return int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0


def _begun_plan(folder: Path, rows: Sequence[Any]) -> list[list[int]] | None:
    """Return the plan of a stage that was begun, or None."""
    if not (folder / _PLAN).is_file():
        return None
    plan = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
    if plan["rows"] != _rows_digest(rows):
        raise JobError(
            f"{folder} was begun with other rows than this guardlearn makes of the job; continue with the version that "
            f"began it, or remove {folder.parent} to start over"
        )
    return [list(batch) for batch in plan["batches"]]


def _rows_digest(rows: Sequence[Any]) -> str:
    return digest_json([[row.id, len(row)] for row in rows])


def _finish(course: Course, model: Any, account: dict[str, Any]) -> None:
    """Keep what a stage leaves, whole or not at all, and let go of the rest."""
    from safetensors.torch import save_file

    staged = course.folder / f"{_FINISHED}.new"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    save_file({name: weight.cpu().contiguous() for name, weight in adapter_weights(model).items()}, staged / _WEIGHTS)
    write_account(staged / _ACCOUNT, account)
    staged.rename(course.folder / _FINISHED)
    trl.forget_checkpoints(course.folder)
    Best(course.folder).forget_but(None)


def _stopped(settings: Settings, course: Course, stop: TrainingStopped) -> TrainingStopped:
    """Return what to say of a training that came to nothing; only good weights checkpoints are left."""
    kept = None
    if processes.is_main():
        for path in course.folder.glob("checkpoint-*"):
            if int(path.name.removeprefix("checkpoint-")) > stop.good:
                shutil.rmtree(path)
        kept = trl.last_checkpoint(course.folder)
    work, rate = course.folder.parent, course.stage.learning_rate
    name = "learning_rate" if course.number == 1 else "second_learning_rate"
    stage = f" of {course.stage.method}" if len(settings.methods) > 1 else ""
    last = f"the last good weights are in {kept}" if kept else "no weights checkpoint was written before"
    tried = (
        f"write the job with a {name} below {rate:g}"
        if stop.step > 1
        else "nothing was learned before it, so look at the base model and its precision"
    )
    return TrainingStopped(
        f"training stopped at step {stop.step} of {len(course.batches)}{stage}: {stop.reason}; {last}; {tried}; this "
        f"job would stop there again and is not continued (it starts over once {work} is removed)",
        course.first + stop.step,
        method=course.stage.method,
    )


def _validation_loss(
    trainer: trl.WeightedTrainer, course: Course, size: int, before: dict[str, Any], progress: Progress
) -> dict[str, float] | None:
    """Return the loss on the validation rows of the base, or of what a second stage began at, and as trained."""
    if not course.validation:
        return None
    progress.note(f"validation loss on {len(course.validation)} rows")
    first = len(course.rows)
    trained = trl.mean_loss(trainer, course.validation, size, first=first)
    if not math.isfinite(trained):
        step = trainer.state.global_step
        raise TrainingStopped(f"the validation loss is {trained}", step, good=step - 1)
    if course.number == 1:
        with trainer.model.disable_adapter():
            return {"base": trl.mean_loss(trainer, course.validation, size, first=first), "trained": trained}
    after = adapter_weights(trainer.model)
    put_adapter_weights(trainer.model, before)
    began = trl.mean_loss(trainer, course.validation, size, first=first)
    put_adapter_weights(trainer.model, after)
    return {"before": began, "trained": trained}


def _validation_rows(stage: Stage, tokenizer: Any, max_length: int) -> list[Any]:
    return methods.rows_for(stage.method, stage.validation, tokenizer, max_length) if stage.validation else []


def _options(settings: Settings, course: Course) -> trl.Options:
    return trl.Options(
        learning_rate=course.stage.learning_rate,
        warmup_ratio=settings.warmup_ratio,
        seed=settings.seed,
        save_steps=save_interval(settings.save_steps, len(course.batches)),
        gradient_checkpointing=settings.gradient_checkpointing,
        micro_batch_size=settings.micro_batch_size,
    )


def _precision(trainer: trl.WeightedTrainer) -> str:
    return "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32"


def _made_with(trainer: trl.WeightedTrainer) -> dict[str, Any]:
    """Return what the trainer really used, which is not all in the job."""
    return {
        "trainable_parameters": sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        "precision": _precision(trainer),
        "load_in_4bit": bool(getattr(trainer.model, "is_loaded_in_4bit", False)),
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "micro_batch_size": trainer.micro_batch_size,
        "notes": list(trainer.notes),
        "processes": processes.count(),
    }


def _pace(progress: Progress) -> dict[str, float | None]:
    speed = progress.speed
    return {
        "seconds_a_step": progress.seconds_a_step,
        "tokens_per_second": round(speed.tokens_per_second, 1) if speed else None,
        "completion_tokens_per_second": round(speed.completion_tokens_per_second, 1) if speed else None,
        "share_of_ceiling": round(speed.share_of_ceiling, 4) if speed else None,
    }


def _ends(metrics: Path) -> dict[str, float]:
    losses = [json.loads(line)["loss"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    return {"first": losses[0], "last": losses[-1]}
