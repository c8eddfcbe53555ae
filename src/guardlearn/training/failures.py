"""What a training that failed leaves: JOB/failure.json with the reason, and the one line on stderr.

A killed process leaves neither; the process that started it says by which signal it ended.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from pathlib import Path
from typing import Any

from guardlearn.errors import GuardlearnError, JobError, write_failure
from guardlearn.training.saving import free_space

__all__ = [
    "FAILURE",
    "TrainingStopped",
    "forget_failure",
    "one_line",
    "record_failure",
    "write_account",
]

FAILURE = "failure.json"
"""File of a job folder that says why its training failed; not there while nothing has, or once it succeeded."""


class TrainingStopped(JobError):
    """A training that would come to nothing was ended; it is not continued, for it would end there again."""

    def __init__(self, reason: str, step: int, *, good: int | None = None, method: str | None = None) -> None:
        """Say it.

        Args:
            reason: what was seen, as in "the loss is nan".
            step: at which, 1-based.
            good: the newest step whose weights may be kept; None: all that were written.
            method: of the stage; None where it is known already.
        """
        super().__init__(reason)
        self.reason, self.step, self.method = reason, step, method
        self.good = step if good is None else good


def one_line(error: Exception, job: Path) -> str:
    """Return what went wrong, for a person, in one line."""
    if (reason := write_failure(error)) is not None:
        return (
            f"{job} cannot be written ({reason}; {free_space(job)} free there); make room, then the same command "
            "continues"
        )
    if isinstance(error, GuardlearnError):
        return " ".join(str(error).split())
    said = " ".join(str(error).split())
    return f"training failed ({type(error).__name__}: {said}); {job}/train.log says more"


def write_account(path: Path, account: dict[str, Any], *, indent: int | None = 1) -> None:
    """Write a JSON file, whole or not at all, with the disk before it is there."""
    staged = path.with_name(f"{path.name}.new")
    try:
        with staged.open("w", encoding="utf-8") as file:
            file.write(json.dumps(account, indent=indent) + "\n")
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise


def record_failure(job: Path, error: Exception, step: int | None, stage: str | None) -> None:
    """Leave the reason in the job folder, if the disk takes it.

    Args:
        job: the folder.
        error: what ended the training.
        step: the last step that was done, over all stages; None: none was begun.
        stage: the method that was being trained; None: none was begun.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    account = {"reason": one_line(error, job), "kind": type(error).__name__, "stage": stage, "step": step, "at": now}
    with contextlib.suppress(OSError):  # the disk may be full; the line on stderr says so
        write_account(job / FAILURE, account)


def forget_failure(job: Path) -> None:
    """Remove the reason of an earlier failure."""
    (job / FAILURE).unlink(missing_ok=True)
