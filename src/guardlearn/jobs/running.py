"""Trains a job folder in a process of its own, which ends when this one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.errors import JobError
from guardlearn.types import OnProgress

__all__ = ["JobResult", "run_job"]

_READ_SECONDS = 5.0  # the last words of an ended process are in its pipe; another may hold that open
_ENVIRONMENT = {
    # glibc hands large freed blocks back to the system at once, and each training step pays for them again
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "TOKENIZERS_PARALLELISM": "false",
    # waiting threads that spin long starve each other when anything else runs; this costs a tenth when nothing does
    "GOMP_SPINCOUNT": "5000",
}


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished training left."""

    adapter: Path
    result: dict[str, Any]
    """`result.json`: steps, losses, seconds, versions, host."""


def run_job(
    folder: Path,
    model_path: Path,
    *,
    parent: Path | None = None,
    python: str | None = None,
    log_to: str | None = None,
    on_progress: OnProgress | None = None,
) -> JobResult:
    """Train a job in a process of its own; a finished job returns at once, a crashed one continues.

    The process ends when this one does, however it ends.

    Args:
        folder: what `write_job` wrote, on this machine or another.
        model_path: the base model's folder.
        parent: folder of the adapter that the job was written to go on from; None: it starts from the base.
        python: interpreter with guardlearn and the training libraries; None: this one.
        log_to: "tensorboard" or "trackio", where it is installed there: it gets the figures too; None: nothing does.
        on_progress: called with (step, steps, note), over all stages.

    Raises:
        JobError: the folder is incomplete or altered, or the training failed; one line says why, and `failure.json` in
            the folder says the same.
    """
    folder = folder.resolve()
    command = [python or sys.executable, "-m", "guardlearn.training", str(folder), "--model", str(model_path.resolve())]
    command += ["--parent", str(parent.resolve())] if parent is not None else []
    command += ["--log-to", log_to] if log_to is not None else []
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
    on_progress(event["step"], event["steps"], event.get("note") or _said(event))


def _said(event: dict[str, Any]) -> str:
    """Return a step's figures for people."""
    loss, speed, share = event["loss"], event["tokens_per_second"], event.get("share_of_ceiling")
    ceiling = "" if share is None else f" ({share:.0%} of this machine's ceiling)"
    looked = f", validation {event['validation_loss']:.3f}" if "validation_loss" in event else ""
    stage = f"stage {event['stage']} of {event['stages']}, " if "stage" in event else ""
    return f"{stage}loss {loss:.3f}{looked}, {speed:.0f} tokens/s{ceiling}"


def _failure(errors: list[str], code: int, folder: Path) -> str:
    lines = [line.strip() for line in errors if line.strip()]
    if code < 0:
        return f"the training process was killed by signal {-code}; the same command continues from its last checkpoint"
    if lines:
        return lines[-1].removeprefix("error: ")
    return f"the training process failed ({code}); {folder}/failure.json or {folder}/train.log says why"
