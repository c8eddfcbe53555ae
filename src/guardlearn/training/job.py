"""Training a job folder from whatever state it is in: fresh, killed in the middle, stopped for good, or finished.

What a kill leaves lies in `.training/`: a folder a stage (`stages`). The finished adapter is put together there and
moved into place last, so `adapter/` exists only when everything does. A training that fails leaves `failure.json`.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import json
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardlearn.digests import digest_file
from guardlearn.errors import JobError, ModelError
from guardlearn.training import backends, processes
from guardlearn.training.checks import check_base, check_positions, check_template
from guardlearn.training.failures import TrainingStopped, forget_failure, record_failure, write_account
from guardlearn.training.model import check_folder, load_tokenizer, save_trained_model
from guardlearn.training.parent import check_parent, start_from
from guardlearn.training.progress import METRICS, Progress, Say, check_tracker, open_tracker
from guardlearn.training.saving import WEIGHTS, versions
from guardlearn.training.settings import Job, read_job

if TYPE_CHECKING:
    from guardlearn.training.stages import Course

__all__ = ["train_job"]

_WORK = ".training"
_PUBLISHED = (METRICS, "result.json", "adapter")  # in this order: the adapter comes last
_BEGUN = "backend"  # file of the work folder that says which backend its weights checkpoints are of
_STOPPED = "stopped.json"  # file of the work folder that says why its training is not continued
_LIBRARIES = ("guardlearn", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
_GPU_LIBRARIES = ("unsloth", "unsloth_zoo", "bitsandbytes", "triton")
_LOCK_SECONDS = 10.0  # a killed parent's trainer needs a moment to notice


def train_job(
    folder: Path,
    model_path: Path,
    *,
    backend: str = "auto",
    parent: Path | None = None,
    log_to: str | None = None,
    say: Say = lambda event: None,
) -> None:
    """Train the job in `folder`, continue it, or find it finished.

    Where a launcher started several processes, all call it; the main one writes and says.

    Args:
        folder: a job folder.
        model_path: the base model's folder.
        backend: one of `backends.CHOICES`; "auto" leaves the choice to the job, and a job's "auto" to the machine.
        parent: folder of the adapter that the job was written to go on from; None: it starts from the base.
        log_to: a tracker of `progress.TRACKERS` that also gets the figures; None: none does.
        say: called with {"step", "steps", "loss", "tokens_per_second", "eta_seconds"} after every step, over all
            stages.

    Raises:
        JobError: the folder is incomplete or altered, is being trained already, or its rows cannot be trained on; or
            the training stopped, now or before, because it would come to nothing (`watching.TrainingStopped`).
        ModelError: another base model, tokenizer, template or parent than the job was written for, or no weights.
        UsageError: no such backend or tracker.
        BackendUnavailable: the backend, 4 bit or the tracker is not possible on this machine; nothing was begun.
    """
    processes.join()
    run = _Run(folder=folder, model_path=model_path, backend=backend, parent=parent, log_to=log_to, say=say)
    if not processes.is_main():
        run.say = lambda event: None
        _train_or_find(run)
        return
    if not folder.is_dir():
        read_job(folder)  # says what is missing
    with _locked(folder):
        try:
            _train_or_find(run)
        except Exception as error:
            record_failure(folder, error, *_where(run, error))
            raise
        forget_failure(folder)


@dataclasses.dataclass(kw_only=True)
class _Run:
    """One call of `train_job`."""

    folder: Path
    model_path: Path
    backend: str
    parent: Path | None
    log_to: str | None
    say: Say
    started: datetime.datetime = dataclasses.field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    clock: float = dataclasses.field(default_factory=time.perf_counter)
    resumed_at: int = 0
    """Steps, over all stages, that an earlier call did and this one does not do again."""
    progress: Progress | None = None
    """From when the stages are planned."""

    @property
    def work(self) -> Path:
        """What is not finished."""
        return self.folder / _WORK


def _train_or_find(run: _Run) -> None:
    job = read_job(run.folder)
    asked = job.settings.backend if run.backend == "auto" else backends.known(run.backend)
    check_tracker(run.log_to)
    if processes.from_main(_is_finished(run.folder) if processes.is_main() else False):
        return
    _check_work(run.work)
    check_parent(job, run.parent)
    check_folder(run.model_path)
    check_base(job, run.model_path)
    check_positions(job, run.model_path)
    chosen = _backend(asked, run.work)
    if job.settings.load_in_4bit:
        backends.require_4bit()
    _train(run, job, chosen)
    processes.wait()
    if processes.is_main():
        _publish(run.folder)


def _where(run: _Run, error: Exception) -> tuple[int | None, str | None]:
    """Return the step, over all stages, and the method at which a training failed; None: it had not begun."""
    if isinstance(error, TrainingStopped):
        return error.step, error.method
    return (run.progress.step, run.progress.method) if run.progress else (None, None)


def _is_finished(folder: Path) -> bool:
    """Whether the adapter is there; what a kill left between the last moves is done."""
    work = folder / _WORK
    if (work / "finished").is_dir():
        _publish(folder)
    if not (folder / "adapter").is_dir():
        return False
    shutil.rmtree(work, ignore_errors=True)  # a kill may have come between the last move and the cleaning up
    return True


def _check_work(work: Path) -> None:
    """Refuse to go on with what comes to nothing, or with what another version left."""
    if (work / _STOPPED).is_file():
        raise TrainingStopped(**json.loads((work / _STOPPED).read_text(encoding="utf-8")))
    if any(work.glob("checkpoint-*")):
        raise JobError(
            f"{work} was begun by an older guardlearn, which orders rows otherwise; finish it with that version, or "
            f"remove {work} to start over"
        )


def _backend(asked: str, work: Path) -> str:
    """Return the backend to train with: the one a killed training began with, for its weights checkpoints are of it."""
    begun = work / _BEGUN
    if not begun.is_file():
        return backends.choose(asked)
    name = begun.read_text(encoding="utf-8")
    if asked not in ("auto", name):
        raise JobError(f"{work.parent} was begun with the {name} backend; continue with it, or remove {work} first")
    return backends.choose(name)


def _train(run: _Run, job: Job, chosen: str) -> None:
    settings, main = job.settings, processes.is_main()
    backend = backends.open_backend(chosen)  # before anything that imports transformers
    from guardlearn.training import stages

    # rows are looked at before the model is loaded
    tokenizer = load_tokenizer(str(run.model_path), settings.max_length)
    check_template(job, tokenizer)
    courses = stages.planned(job, tokenizer, run.work)
    model = backend.load_base(str(run.model_path), settings.max_length, settings.load_in_4bit)
    model = _adapted(backend, model, job)
    if run.parent is not None:
        start_from(model, run.parent)  # after a kill too: a weights checkpoint takes the place of it
    if main:
        run.work.mkdir(exist_ok=True)
        (run.work / _BEGUN).write_text(chosen, encoding="utf-8")
    processes.wait()
    run.resumed_at = processes.from_main(stages.steps_done(courses) if main else 0)
    tracker = open_tracker(run.log_to, run.folder, run.resumed_at) if main else None
    run.progress = Progress(courses, run.say, tracker, writes=main)
    try:
        accounts = stages.train_stages(settings, courses, model, tokenizer, run.progress)
    except TrainingStopped as stop:
        if main:
            told = {"reason": stop.reason, "step": stop.step, "method": stop.method}
            write_account(run.work / _STOPPED, told)
        raise
    finally:
        if tracker is not None:
            tracker.close()
    if main:
        _stage_results(run, job, model, tokenizer, courses, {"backend": chosen}, accounts)


def _adapted(backend: backends.Backend, model: Any, job: Job) -> Any:
    """Return the base with fresh adapters."""
    settings = job.settings
    try:
        return backend.add_adapters(model, settings.lora_r, settings.lora_alpha, settings.seed)
    except ValueError as error:  # PEFT's, where no module of the model is one of the targets
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{settings.base_model} has no layer for the adapters to sit on ({said}); train a model with linear layers"
        ) from error


def _stage_results(
    run: _Run,
    job: Job,
    model: Any,
    tokenizer: Any,
    courses: Sequence[Course],
    about: dict[str, Any],
    accounts: Sequence[dict[str, Any]],
) -> None:
    """Put the adapter, the metrics and the account of the training together, to be published."""
    from guardlearn.training.stages import published_metrics

    staged = run.work / "finished.new"
    shutil.rmtree(staged, ignore_errors=True)
    save_trained_model(model, tokenizer, str(staged / "adapter"))
    _tidy(staged / "adapter", job.settings.base_model)
    (staged / METRICS).write_text(published_metrics(courses), encoding="utf-8")
    result = about | {
        "base_model": job.settings.base_model,
        "parent_adapter": job.manifest.get("parent_adapter"),
        **accounts[-1],
        **{name: sum(account[name] for account in accounts) for name in ("steps", "planned_steps", "rows")},
        "method": job.settings.method,
        "resumed_at_step": run.resumed_at,
        "notes": [note for account in accounts for note in account["notes"]],
        "stages": list(accounts),
        "adapter_digest": digest_file(staged / "adapter" / WEIGHTS),
        "manifest_digest": job.manifest_digest,
        "started_at": run.started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - run.clock, 1),
        "versions": _versions(),
        "host": _host(),
    }
    write_account(staged / "result.json", result)
    staged.rename(run.work / "finished")


def _publish(folder: Path) -> None:
    finished = folder / _WORK / "finished"
    for name in _PUBLISHED:
        if (finished / name).exists():
            (finished / name).replace(folder / name)
    shutil.rmtree(folder / _WORK)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        patience = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise JobError(f"{folder} is being trained by another process; wait for it, or end it") from None
                time.sleep(0.1)
        yield


def _tidy(adapter: Path, base_model: str) -> None:
    (adapter / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model  # PEFT writes the folder, which means nothing elsewhere
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    extra = {name: version for name, version in versions(*_GPU_LIBRARIES).items() if version != "not installed"}
    return versions(*_LIBRARIES) | extra


def _host() -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
    }
