"""Training a job folder from whatever state it is in: fresh, killed in the middle, or finished.

What a kill leaves lies in `.training/`: weights checkpoints and the metrics so far. The finished adapter is put
together there and moved into place last, so `adapter/` exists only when everything does.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_file, digest_model
from guardlearn.errors import JobError, ModelError
from guardlearn.prompts import PromptConfig, Renderer, template_digest
from guardlearn.training import backends
from guardlearn.training.model import check_folder, load_tokenizer, save_trained_model
from guardlearn.training.parent import check_parent, start_from
from guardlearn.training.rows import TokenRow, plan, tokenise
from guardlearn.training.saving import WEIGHTS, versions
from guardlearn.training.settings import Job, read_job
from guardlearn.training.sft import save_interval

__all__ = ["train_job"]

_WORK = ".training"
_PUBLISHED = ("metrics.jsonl", "result.json", "adapter")  # in this order: the adapter comes last
_BEGUN = "backend"  # file of the work folder that says which backend its weights checkpoints are of
_LIBRARIES = ("guardlearn", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
_GPU_LIBRARIES = ("unsloth", "unsloth_zoo", "bitsandbytes", "triton")
_LOCK_SECONDS = 10.0  # a killed parent's trainer needs a moment to notice

Say = Callable[[dict[str, Any]], None]
"""Takes one progress event."""


def train_job(
    folder: Path,
    model_path: Path,
    *,
    backend: str = "auto",
    parent: Path | None = None,
    say: Say = lambda event: None,
) -> None:
    """Train the job in `folder`, continue it, or find it finished.

    Args:
        folder: a job folder.
        model_path: the base model's folder.
        backend: one of `backends.CHOICES`; "auto" leaves the choice to the job, and a job's "auto" to the machine.
        parent: folder of the adapter that the job was written to go on from; None: it starts from the base.
        say: called with {"step", "steps", "loss", "tokens_per_second", "eta_seconds"} after every step.

    Raises:
        JobError: the folder is incomplete or altered, is being trained already, or its rows cannot be trained on.
        ModelError: another base model, tokenizer, template or parent than the job was written for, or no weights.
        UsageError: no such backend.
        BackendUnavailable: the backend, or 4 bit, is not possible on this machine; nothing was begun.
    """
    job = read_job(folder)
    asked = job.settings.backend if backend == "auto" else backends.known(backend)
    with _locked(folder):
        work = folder / _WORK
        if (work / "finished").is_dir():
            _publish(folder)
        if (folder / "adapter").is_dir():
            shutil.rmtree(work, ignore_errors=True)  # a kill may have come between the last move and the cleaning up
            return
        check_parent(job, parent)
        check_folder(model_path)
        _check_base(job, model_path)
        chosen = _backend(asked, work)
        if job.settings.load_in_4bit:
            backends.require_4bit()
        _train(job, model_path, parent, chosen, work, say)
        _publish(folder)


def _backend(asked: str, work: Path) -> str:
    """Return the backend to train with: the one a killed training began with, for its weights checkpoints are of it."""
    begun = work / _BEGUN
    if not begun.is_file():
        return backends.choose(asked)
    name = begun.read_text(encoding="utf-8")
    if asked not in ("auto", name):
        raise JobError(f"{work.parent} was begun with the {name} backend; continue with it, or remove {work} first")
    return backends.choose(name)


def _train(job: Job, model_path: Path, parent: Path | None, chosen: str, work: Path, say: Say) -> None:
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    settings = job.settings
    backend = backends.open_backend(chosen)  # before anything that imports transformers
    tokenizer = load_tokenizer(str(model_path), settings.max_length)  # rows are looked at before the model is loaded
    _check_template(job, tokenizer)
    rows = tokenise(job.train, tokenizer, settings.max_length)
    validation = tokenise(job.validation, tokenizer, settings.max_length) if job.validation else []
    lengths = [len(row) for row in rows]
    batches = plan(
        lengths, settings.batch_size, epochs=settings.epochs, max_steps=settings.max_steps, seed=settings.seed
    )
    model = backend.load_base(str(model_path), settings.max_length, settings.load_in_4bit)
    model = backend.add_adapters(model, settings.lora_r, settings.lora_alpha, settings.seed)
    if parent is not None:
        start_from(model, parent)  # after a kill too: a weights checkpoint takes the place of it
    work.mkdir(exist_ok=True)
    (work / _BEGUN).write_text(chosen, encoding="utf-8")

    from guardlearn.training import trl

    options = trl.Options(
        learning_rate=settings.learning_rate,
        warmup_ratio=settings.warmup_ratio,
        seed=settings.seed,
        save_steps=save_interval(settings.save_steps, len(batches)),
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    checkpoint = trl.last_checkpoint(work)
    done = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    with _Metrics(work / "metrics.jsonl", rows, len(batches), done, say) as metrics:
        trainer = trl.build(model, tokenizer, rows, batches, work, options, metrics.record)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if validation:
        say({"step": len(batches), "steps": len(batches), "note": f"validation loss on {len(validation)} rows"})
    validation_loss = _validation_loss(trainer, validation, settings.batch_size) if validation else None
    staged = work / "finished.new"
    shutil.rmtree(staged, ignore_errors=True)
    save_trained_model(trainer.model, tokenizer, str(staged / "adapter"))
    _tidy(staged / "adapter", settings.base_model)
    shutil.copyfile(work / "metrics.jsonl", staged / "metrics.jsonl")
    result = {
        "backend": chosen,
        "base_model": settings.base_model,
        "parent_adapter": job.manifest.get("parent_adapter"),
        "steps": len(batches),
        "rows": len(rows),
        "resumed_at_step": done,
        "loss": _ends(staged / "metrics.jsonl"),
        "validation_loss": validation_loss,
        "validation_rows": len(validation),
        **_made_with(trainer),
        "adapter_digest": digest_file(staged / "adapter" / WEIGHTS),
        "manifest_digest": job.manifest_digest,
        "started_at": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "seconds_a_step": metrics.seconds_a_step,
        "tokens_per_second": metrics.tokens_per_second,
        "versions": _versions(),
        "host": _host(),
    }
    (staged / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    staged.rename(work / "finished")


def _validation_loss(trainer: Any, rows: list[TokenRow], batch_size: int) -> dict[str, float]:
    from guardlearn.training.trl import mean_loss

    trained = mean_loss(trainer, rows, batch_size)
    with trainer.model.disable_adapter():
        return {"base": mean_loss(trainer, rows, batch_size), "trained": trained}


def _made_with(trainer: Any) -> dict[str, Any]:
    """Return what the trainer really used, which is not all in the job."""
    return {
        "trainable_parameters": sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        "precision": "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32",
        "load_in_4bit": bool(getattr(trainer.model, "is_loaded_in_4bit", False)),
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
    }


class _Metrics:
    """metrics.jsonl as it grows, and the progress events; continues where a weights checkpoint stands."""

    def __init__(self, path: Path, rows: list[TokenRow], steps: int, done: int, say: Say) -> None:
        self.rows, self.steps, self.done, self.say = rows, steps, done, say
        self.seconds, self.tokens, self.new = 0.0, 0, 0
        kept = path.read_text(encoding="utf-8").splitlines()[:done] if done else []
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        say({"step": done, "steps": steps, "note": f"{len(rows)} rows" + (f", from step {done}" if done else "")})

    def __enter__(self) -> _Metrics:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    @property
    def seconds_a_step(self) -> float | None:
        """Mean over this process's steps; None before the first."""
        return round(self.seconds / self.new, 3) if self.new else None

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over this process's steps; None before the first."""
        return round(self.tokens / self.seconds, 1) if self.seconds else None

    def record(self, step: Any) -> None:
        """Write a step's line and say it."""
        fields = dataclasses.asdict(step) | {"rows": [self.rows[row].id for row in step.rows]}
        seconds = fields.pop("seconds")  # lines hold nothing that differs between equal runs
        self.file.write(json.dumps(fields) + "\n")
        self.file.flush()
        self.seconds, self.tokens, self.new = self.seconds + seconds, self.tokens + step.tokens, self.new + 1
        self.say(
            {
                "step": step.step,
                "steps": self.steps,
                "loss": step.loss,
                "tokens_per_second": round(step.tokens / seconds, 1),
                "eta_seconds": round(self.seconds / self.new * (self.steps - step.step), 1),
            }
        )


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


def _check_base(job: Job, model_path: Path) -> None:
    found = digest_model(model_path)
    written = job.manifest.get("base_model_digest")
    if found != written:
        raise ModelError(
            f"{model_path} is not the base model the job was written for ({job.settings.base_model}): its digest is "
            f"{found}, the manifest says {written}; give --model that one, or write the job again"
        )


def _check_template(job: Job, tokenizer: Any) -> None:
    said = job.manifest.get("prompts", {}) | {"retry": job.settings.retry, "layout": job.settings.layout}
    found = template_digest(tokenizer, Renderer(config=PromptConfig(**said)))
    written = job.manifest.get("template_digest")
    if found != written:
        raise ModelError(
            f"tokenizer, chat template or renderer differ from those the job was written with: digest {found}, the "
            f"manifest says {written}; write the job again with this model and this guardlearn"
        )


def _tidy(adapter: Path, base_model: str) -> None:
    (adapter / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model  # PEFT writes the folder, which means nothing elsewhere
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _ends(metrics: Path) -> dict[str, float]:
    losses = [json.loads(line)["loss"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    return {"first": losses[0], "last": losses[-1]}


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
