"""`python -m guardlearn.training JOB --model PATH [--parent ADAPTER]`: trains a job folder.

JSON progress lines go to stdout, one line of error to stderr, everything the libraries say to JOB/train.log; a training
that failed leaves JOB/failure.json. Exit codes: 0 done, 1 failed or refused, 2 wrong usage. Under `torchrun` or
`accelerate launch` the main process alone says something.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from guardlearn.errors import GuardlearnError, JobError, write_failure
from guardlearn.training import processes
from guardlearn.training.failures import one_line


def main(arguments: list[str] | None = None) -> int:
    """Train; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m guardlearn.training", description="Train a guardlearn job folder.")
    parser.add_argument("job", type=Path, help="folder with job.toml, train.jsonl, validation.jsonl, manifest.json")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--parent", type=Path, help="folder of the adapter that the job was written to go on from")
    parser.add_argument("--backend", default="auto", help="auto | trl | unsloth; auto: as the job says")
    parser.add_argument("--log-to", help="tensorboard | trackio: shows the figures there too, where it is installed")
    parser.add_argument("--attached", action="store_true", help="end as soon as stdin is closed")
    options = parser.parse_args(arguments)
    if options.attached:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out, os.fdopen(os.dup(2), "w", encoding="utf-8") as err:
        try:
            return _train(options, out)
        except Exception as error:  # whatever a library raises becomes one line, and a traceback in the log
            line, code = one_line(error, options.job), _exit_code(error)
        if processes.is_main():
            print("error:", line, file=err)
        return code


def _exit_code(error: Exception) -> int:
    """Return it; a library's traceback goes to the log."""
    unwritten = write_failure(error) is not None
    if isinstance(error, GuardlearnError) and not unwritten:
        return error.exit_code
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        traceback.print_exc()
    if unwritten:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)  # what waits in their buffers would fail at exit too
    return 1


def _train(options: argparse.Namespace, out: TextIO) -> int:
    if not (options.job / "manifest.json").is_file():
        raise JobError(f"{options.job} is no job folder (no manifest.json); `guardlearn train` writes one")
    if processes.count() == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # transformers would split each batch over all GPUs itself
    with (options.job / "train.log").open("a", encoding="utf-8") as log:
        sys.stdout.flush()
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        from guardlearn.training.job import train_job
    except ImportError as error:
        raise JobError(f"training needs {error.name}; run: pip install 'guardlearn[train]'") from error

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=out, flush=True)

    train_job(
        options.job, options.model, backend=options.backend, parent=options.parent, log_to=options.log_to, say=say
    )
    return 0


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
