"""`python -m guardlearn.training JOB --model PATH [--parent ADAPTER]`: trains a job folder.

JSON progress lines go to stdout, one line of error to stderr, everything the libraries say to JOB/train.log.
Exit codes: 0 done, 1 failed or refused, 2 wrong usage.
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
from guardlearn.training.saving import free_space


def main(arguments: list[str] | None = None) -> int:
    """Train; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m guardlearn.training", description="Train a guardlearn job folder.")
    parser.add_argument("job", type=Path, help="folder with job.toml, train.jsonl, validation.jsonl, manifest.json")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--parent", type=Path, help="folder of the adapter that the job was written to go on from")
    parser.add_argument("--backend", default="auto", help="auto | trl | unsloth; auto: as the job says")
    parser.add_argument("--attached", action="store_true", help="end as soon as stdin is closed")
    options = parser.parse_args(arguments)
    if options.attached:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out, os.fdopen(os.dup(2), "w", encoding="utf-8") as err:
        try:
            return _train(options, out)
        except Exception as error:  # whatever a library raises becomes one line, and a traceback in the log
            line, code = _failure(error, options.job)
        print("error:", " ".join(line.split()), file=err)
        return code


def _failure(error: Exception, job: Path) -> tuple[str, int]:
    """Return the one line for the user and the exit code; a library's traceback goes to the log."""
    reason = write_failure(error)
    if isinstance(error, GuardlearnError) and reason is None:
        return str(error), error.exit_code
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        traceback.print_exc()
    if reason is None:
        return f"training failed ({type(error).__name__}: {error}); {job}/train.log says more", 1
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)  # what waits in their buffers would fail at exit too
    free = free_space(job)
    return f"{job} cannot be written ({reason}; {free} free there); make room, then the same command continues", 1


def _train(options: argparse.Namespace, out: TextIO) -> int:
    if not (options.job / "manifest.json").is_file():
        raise JobError(f"{options.job} is no job folder (no manifest.json); `guardlearn train` writes one")
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

    train_job(options.job, options.model, backend=options.backend, parent=options.parent, say=say)
    return 0


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
