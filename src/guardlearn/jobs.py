"""The job folder, the boundary between light and heavy: written here, trained by a process of its own.

    job.toml          resolved settings                 adapter/       LoRA weights, there only when finished
    train.jsonl       rows of the train side            metrics.jsonl  one line a step
    validation.jsonl  rows of the validation side       result.json    versions, host, times, losses
    manifest.json     what it came from, digests        train.log      what the libraries said

The four on the left hold no time, host, version or absolute path: the same extraction gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from guardlearn.digests import digest_bytes, digest_file, digest_files, digest_json, digest_model, digest_text
from guardlearn.errors import JobError, ModelError, NoTracesError, UsageError, missing_library
from guardlearn.formatting import Formatted, examples
from guardlearn.prompts import PromptConfig, Renderer, encode_completion, encode_prompt, special_tokens, template_digest
from guardlearn.traces import Extraction
from guardlearn.types import Example, OnProgress, Side, TrainingTrace, View

__all__ = ["JobResult", "JobSummary", "TrainingConfig", "provenance", "run_job", "write_job"]

_FORMAT = 2  # layout of the folder; the training process refuses another
_READ_SECONDS = 5.0  # the last words of an ended process are in its pipe; another may hold that open
_ENVIRONMENT = {
    # glibc hands large freed blocks back to the system at once, and each training step pays for them again
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "TOKENIZERS_PARALLELISM": "false",
    # waiting threads that spin long starve each other when anything else runs; this costs a tenth when nothing does
    "GOMP_SPINCOUNT": "5000",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How to train; written resolved into job.toml."""

    base_model: str = ""
    """Name of the base model as the job shows it; "" takes the model folder's name. Never a path."""
    views: tuple[str, ...] = (View.FIRST_ATTEMPT.value, View.REPAIR.value)
    """What each trace becomes."""
    retry: Literal["feedback", "artifact"] = "feedback"
    """A repair prompt shows the feedback only, or the rejected artifact too; as the traces were collected."""
    layout: Literal["plain", "guide"] = "plain"
    """How a prompt is laid out, as `PromptConfig.layout`; as the traces were collected."""
    max_length: int = 1024
    """Most tokens of a row, prompt and completion; longer ones are dropped and counted."""
    epochs: float = 3.0
    """Passes over the rows; a part of a pass is a part of its batches."""
    max_steps: int | None = None
    """Exactly this many steps, whatever `epochs` says; None: by epochs."""
    batch_size: int = 8
    """Rows a step."""
    learning_rate: float = 2e-4
    """Peak; it falls linearly to 0."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    lora_r: int = 16
    """Rank; the adapters sit on every linear layer but the output head."""
    lora_alpha: int = 16
    """Scale: the update is multiplied by lora_alpha / lora_r."""
    seed: int = 0
    """Decides the order of the rows and the start of the adapters."""
    save_steps: int | None = None
    """Steps between weights checkpoints, from which a killed training resumes; None: a tenth of the steps."""
    gradient_checkpointing: bool = False
    """True trades about a third of the speed for memory; for long rows on a GPU. Unsloth always uses its own."""
    load_in_4bit: bool = False
    """True quantises the frozen base weights while training, for memory; needs CUDA and bitsandbytes, else refused."""
    method: str = "sft"
    """Supervised fine-tuning on accepted artifacts."""
    backend: str = "auto"
    """"trl", "unsloth" (needs CUDA), or "auto": unsloth where it can run, else trl."""

    def __post_init__(self) -> None:
        positive = {"max_length", "epochs", "batch_size", "learning_rate", "lora_r", "lora_alpha"}
        for field in sorted(positive | {"max_steps", "save_steps"}):
            value = getattr(self, field)
            if (value is None and field in positive) or (value is not None and not value > 0):
                raise UsageError(f"{field} is {value!r}; it must be above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise UsageError(f"warmup_ratio is {self.warmup_ratio!r}; it must lie in [0, 1)")
        choices: dict[str, tuple[str, ...]] = {
            "method": ("sft",),
            "backend": ("auto", "trl", "unsloth"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise UsageError(f"{field} {getattr(self, field)!r} is unknown; choose {' or '.join(allowed)}")
        PromptConfig(retry=self.retry, layout=self.layout)  # refuses what it does not know
        if Path(self.base_model).is_absolute():
            raise UsageError(f"base_model {self.base_model!r} is a path; give a name, a job folder holds no path")


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `write_job` left."""

    folder: Path
    rows: int
    validation_rows: int
    dropped: dict[str, int]
    """Rows that did not come to be, by reason."""


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished training left."""

    adapter: Path
    result: dict[str, Any]
    """`result.json`: steps, losses, seconds, versions, host."""


def write_job(
    folder: Path,
    extraction: Extraction,
    model_path: Path,
    config: TrainingConfig | None = None,
    *,
    prompts: PromptConfig | None = None,
    dependencies: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> JobSummary:
    """Write the job folder, whole or not at all; a folder that already holds this very job is left as it is.

    Args:
        folder: made by this call, with its parents; must not hold anything else.
        extraction: traces of the train side, and of the validation side if there are any.
        model_path: the base model's folder; its tokenizer decides what fits.
        config: how to train.
        prompts: how prompts are asked; None: as `retry` and `layout` of `config` say.
        dependencies: contents of the artifacts that AtomicGuard items built on, see `Renderer`.
        on_progress: called with (traces shaped, traces, note).

    Raises:
        JobError: `folder` holds another job, or something that is no job.
        ModelError: no tokenizer or no weights in `model_path`.
        NoTracesError: not one row of the train side remains; the message says why.
    """
    config = config or TrainingConfig()
    config = dataclasses.replace(config, base_model=config.base_model or model_path.name)
    tokenizer = _tokenizer(model_path)
    prompts = prompts or PromptConfig(retry=config.retry, layout=config.layout)
    renderer = Renderer(config=prompts, special_tokens=special_tokens(tokenizer), dependencies=dict(dependencies or {}))
    shaped: dict[Side, Formatted] = {}
    for step, side in enumerate((Side.TRAIN, Side.VALIDATION)):
        traces = [trace for trace in extraction.traces if trace.side is side]
        shaped[side] = examples(
            traces,
            renderer,
            config.views,
            count_tokens=lambda messages: len(encode_prompt(tokenizer, messages)),
            count_completion=lambda text: len(encode_completion(tokenizer, text)),
            max_length=config.max_length,
        )
        if on_progress:
            on_progress(step + 1, 2, f"{len(shaped[side].examples)} {side} rows")
    train, validation = shaped[Side.TRAIN], shaped[Side.VALIDATION]
    if not train.examples:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in train.dropped.items()) or "no trace on that side"
        raise NoTracesError(f"no training row remains of {len(extraction.traces)} traces ({reasons})")
    files = {
        "job.toml": _toml(config, prompts).encode(),
        "train.jsonl": _lines(train.examples),
        "validation.jsonl": _lines(validation.examples),
    }
    manifest = _manifest(extraction, shaped, config) | {
        "prompts": renderer.settings(),
        **_unknown(renderer, extraction.traces),
        "template_digest": template_digest(tokenizer, renderer),
        "tokenizer_digest": digest_files(model_path, "tokenizer*", "vocab*", "merges.txt", "chat_template*"),
        "base_model_digest": digest_model(model_path),
        "files": {name: digest_bytes(data) for name, data in files.items()},
    }
    files["manifest.json"] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    _place(folder, files)
    dropped = Counter(train.dropped) + Counter(validation.dropped)
    return JobSummary(
        folder=folder, rows=len(train.examples), validation_rows=len(validation.examples), dropped=dict(dropped)
    )


def provenance(traces: Sequence[TrainingTrace]) -> dict[str, Any]:
    """Return what a manifest says of the traces that were trained; `evaluation.check_leakage` reads it."""
    ids = [trace.item.id for trace in traces]
    return {
        "item_ids": ids,
        "item_ids_digest": digest_json(ids),
        "specification_digests": sorted({digest_text(trace.item.specification) for trace in traces}),
        "groups": sorted({trace.group for trace in traces}),
    }


def run_job(
    folder: Path, model_path: Path, *, python: str | None = None, on_progress: OnProgress | None = None
) -> JobResult:
    """Train a job in a process of its own; a finished job returns at once, a crashed one continues.

    The process ends when this one does, however it ends.

    Args:
        folder: what `write_job` wrote, on this machine or another.
        model_path: the base model's folder.
        python: interpreter with guardlearn and the training libraries; None: this one.
        on_progress: called with (step, steps, note).

    Raises:
        JobError: the folder is incomplete or altered, or the training failed; one line says why.
    """
    folder = folder.resolve()
    command = [python or sys.executable, "-m", "guardlearn.training", str(folder), "--model", str(model_path.resolve())]
    errors: list[str] = []
    with _process([*command, "--attached"]) as process:
        assert process.stdout is not None and process.stderr is not None
        # read beside stdout, so that neither pipe fills; a file would be lost where the disk is full
        reader = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
        reader.start()
        for line in process.stdout:
            _relay(line, on_progress)
        code = process.wait()
        reader.join(_READ_SECONDS)
        if code != 0:
            raise JobError(_failure(errors, code, folder))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return JobResult(adapter=folder / "adapter", result=result)


def _tokenizer(model_path: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_library("transformers", "train", "writing a job") from None
    if not any(model_path.glob("*.safetensors")) and not any(model_path.glob("pytorch_model*.bin")):
        raise ModelError(f"{model_path} holds no weights (*.safetensors); copy them in or name another model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model_path} holds no usable tokenizer ({str(error).splitlines()[0][:160]})") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {model_path} names no end token (eos_token); training could not teach to stop"
        )
    return tokenizer


def _lines(rows: list[Example]) -> bytes:
    fields = [msgspec.structs.asdict(row) | {"view": row.view.value} for row in rows]
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in fields).encode()


def _toml(config: TrainingConfig, prompts: PromptConfig) -> str:
    said = {"retry": prompts.retry, "layout": prompts.layout}
    lines = ["# A guardlearn training job: python -m guardlearn.training FOLDER --model PATH", ""]
    for field in dataclasses.fields(config):
        value = said.get(field.name, getattr(config, field.name))
        if value is not None:  # TOML knows no null: an absent key is None
            lines.append(f"{field.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    return "\n".join(lines) + "\n"


def _manifest(extraction: Extraction, shaped: dict[Side, Formatted], config: TrainingConfig) -> dict[str, Any]:
    trained_ids = {row.trace_id for row in shaped[Side.TRAIN].examples}
    return {
        "format": _FORMAT,
        "predicate": extraction.predicate,
        "checkpoint": {"seq": extraction.checkpoint.seq, "item_id": extraction.checkpoint.item_id},
        "sides_digest": extraction.sides_digest,
        **provenance([trace for trace in extraction.traces if trace.item.id in trained_ids]),
        "rows": len(shaped[Side.TRAIN].examples),
        "validation_rows": len(shaped[Side.VALIDATION].examples),
        "left_out": [list(entry) for side in (Side.TRAIN, Side.VALIDATION) for entry in shaped[side].left_out],
        "base_model": config.base_model,
        "parent_adapter": None,  # training starts from the base
        "seed": config.seed,
    }


def _unknown(renderer: Renderer, traces: Sequence[TrainingTrace]) -> dict[str, Any]:
    """Return which traces' prompts lack an artifact that they held; nothing where none does."""
    lacking = [trace.item.id for trace in traces if renderer.unknown_dependencies(trace.item)]
    return {"unknown_dependencies": lacking} if lacking else {}


def _place(folder: Path, files: dict[str, bytes]) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "manifest.json").is_file():
            raise JobError(f"{folder} is not empty and holds no job; choose another folder")
        for name, data in files.items():
            path = folder / name
            if not path.is_file() or digest_file(path) != digest_bytes(data):
                raise JobError(
                    f"{folder} holds another job ({name} differs); choose another folder, or remove this one"
                )
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staged.chmod(0o755)  # mkdtemp's 0700 would shut out another user's trainer
        for name, data in files.items():
            (staged / name).write_bytes(data)
        staged.replace(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run the trainer with a pipe as its stdin: it ends when the pipe does, so it never outlives us."""
    environment = _ENVIRONMENT | dict(os.environ)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    except OSError as error:
        raise JobError(f"cannot start {command[0]} ({error.strerror}); give --python an interpreter") from error
    try:
        yield process
    finally:
        process.kill()  # nothing to kill after a wait
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        process.wait()


def _relay(line: str, on_progress: OnProgress | None) -> None:
    if on_progress is None:
        return
    try:
        event = json.loads(line)
    except ValueError:
        return  # another environment's libraries may talk on stdout
    if not isinstance(event, dict) or "step" not in event:
        return
    note = event.get("note") or "loss {loss:.3f}, {tokens_per_second:.0f} tokens/s".format(**event)
    on_progress(event["step"], event["steps"], note)


def _failure(errors: list[str], code: int, folder: Path) -> str:
    lines = [line.strip() for line in errors if line.strip()]
    if code < 0:
        return f"the training process was killed by signal {-code}; the same command continues from its last checkpoint"
    return (
        lines[-1].removeprefix("error: ") if lines else f"the training process failed ({code}); see {folder}/train.log"
    )
