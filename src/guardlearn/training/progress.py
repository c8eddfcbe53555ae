"""What a training says while it runs: lines of metrics.jsonl, progress events, and figures for a tracker if asked."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from guardlearn.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from guardlearn.training.ceiling import Meter, Speed
    from guardlearn.training.stages import Course
    from guardlearn.training.trl import StepRecord

__all__ = ["METRICS", "TRACKERS", "Progress", "Say", "Tracker", "check_tracker", "open_tracker"]

Say = Callable[[dict[str, Any]], None]
"""Takes one progress event."""

METRICS = "metrics.jsonl"
"""File of a stage's folder, and of the job's once it is published."""


class Tracker(Protocol):
    """Where figures are shown beside our own: TensorBoard or trackio."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step, counted over all stages."""

    def close(self) -> None:
        """Take no more."""


class Progress:
    """The steps of all stages as they are done, and how long the rest will take."""

    def __init__(
        self, courses: Sequence[Course], say: Say, tracker: Tracker | None = None, *, writes: bool = True
    ) -> None:
        """Begin.

        Args:
            courses: all stages, as planned.
            say: takes events.
            tracker: takes figures too.
            writes: False for a process that leaves that to the main one.
        """
        self._courses, self._say, self._tracker, self._writes = courses, say, tracker, writes
        self._meter: Meter | None = None
        self._course = courses[0]
        self._file: TextIO | None = None
        self._began, self._seconds, self._new = 0.0, 0.0, 0
        self.step: int | None = None
        """The last step that was done, over all stages; None: no stage was begun."""

    @property
    def method(self) -> str | None:
        """Of the stage that is trained; None: none was begun."""
        return None if self.step is None else self._course.stage.method

    @property
    def steps(self) -> int:
        """Of all stages, as planned."""
        return sum(len(course.batches) for course in self._courses)

    @property
    def seconds_a_step(self) -> float | None:
        """Mean over this process's steps of the stage; None before the first."""
        return round(self._seconds / self._new, 3) if self._new else None

    @property
    def speed(self) -> Speed | None:
        """Of this process's steps of the stage; None before the first."""
        return None if self._meter is None else self._meter.total

    def begin(self, course: Course, path: Path, done: int) -> list[dict[str, Any]]:
        """Begin a stage, or go on with it where a weights checkpoint stands.

        Args:
            course: the stage's.
            path: its metrics.jsonl.
            done: steps that the weights checkpoint has.

        Returns:
            The lines of those steps; later ones are forgotten, for their steps are done again.
        """
        lines = path.read_text(encoding="utf-8").splitlines()[:done] if done and self._writes else []
        if self._writes:
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")
        self._course, self._meter = course, None
        self._seconds, self._new = 0.0, 0
        self.step = course.first + done
        several = len(self._courses) > 1
        stage = f"stage {course.number} of {len(self._courses)}, {course.stage.method}: " if several else ""
        self.note(f"{stage}{len(course.rows)} rows" + (f", from step {done}" if done else ""))
        return [json.loads(line) for line in lines]

    def measure(self, meter: Meter) -> None:
        """Take what tells how fast the stage's steps are; they begin now."""
        self._meter, self._began = meter, time.perf_counter()

    def note(self, text: str) -> None:
        """Say a sentence."""
        self._say({"step": self.step, "steps": self.steps, **self._place(), "note": text})

    def record(self, step: StepRecord, validation_loss: float | None) -> None:
        """Write a step's line and say it; a line holds nothing that differs between equal runs."""
        course = self._course
        fields = dataclasses.asdict(step) | {"rows": [course.rows[row].id for row in step.rows]}
        seconds = fields.pop("seconds")
        self.step = fields["step"] = course.first + step.step
        looked = {} if validation_loss is None else {"validation_loss": validation_loss}
        place = {name: number for name, number in self._place().items() if name == "stage"}
        if self._file is not None:
            self._file.write(json.dumps(fields | place | looked) + "\n")
            self._file.flush()
        self._seconds, self._new = self._seconds + seconds, self._new + 1
        figures = {"loss": step.loss, **self._speed(step, seconds), **looked}
        self._say({"step": self.step, "steps": self.steps, **self._place(), **figures, "eta_seconds": self._eta(step)})
        if self._tracker is not None:
            self._tracker.log(self.step, {**figures, "learning_rate": step.learning_rate})

    def end(self) -> None:
        """End the stage's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _place(self) -> dict[str, int]:
        if len(self._courses) == 1:
            return {}
        return {"stage": self._course.number, "stages": len(self._courses)}

    def _speed(self, step: StepRecord, seconds: float) -> dict[str, float]:
        if self._meter is None:
            return {"tokens_per_second": round(step.tokens / seconds, 1)}
        rows = self._course.rows
        speed = self._meter.count([pair for row in step.rows for pair in rows[row].sequences], seconds)
        return {
            "tokens_per_second": round(step.tokens / seconds, 1),
            "completion_tokens_per_second": round(speed.completion_tokens_per_second, 1),
            "share_of_ceiling": round(speed.share_of_ceiling, 4),
        }

    def _eta(self, step: StepRecord) -> float:
        """Return the seconds left of all stages: by tokens, at this one's pace so far, looks and saves included."""
        later = [course.tokens for course in self._courses if course.number > self._course.number]
        left = sum(self._course.tokens[step.step :]) + sum(sum(tokens) for tokens in later)
        done = sum(self._course.tokens[step.step - self._new : step.step])
        return round((time.perf_counter() - self._began) * left / done, 1)


class _TensorBoard:
    """Event files in JOB/tensorboard; a training that continues takes the place of what it does again."""

    def __init__(self, folder: Path, done: int) -> None:
        writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=done + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write them."""
        for name, value in figures.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class _Trackio:
    """A run of the project `guardlearn`, named as the job's folder; a training that continues goes on with it."""

    def __init__(self, folder: Path, done: int) -> None:
        self._trackio: Any = importlib.import_module("trackio")
        self._trackio.init(project="guardlearn", name=folder.resolve().name, resume="allow")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Hand them on."""
        self._trackio.log(dict(figures), step=step)

    def close(self) -> None:
        """End the run."""
        self._trackio.finish()


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {"tensorboard": _TensorBoard, "trackio": _Trackio}
"""What may be asked for, each a package of its own that guardlearn never requires."""


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is unknown or not installed; None asks for none.

    Raises:
        UsageError: no such tracker.
        BackendUnavailable: it is not installed.
    """
    if name is None:
        return
    if name not in TRACKERS:
        raise UsageError(f"--log-to {name!r} is unknown; choose {' or '.join(TRACKERS)}, or leave it out")
    if find_spec(name) is None:
        raise BackendUnavailable(f"--log-to {name} needs {name}; run: pip install {name}, or leave it out")


def open_tracker(name: str | None, folder: Path, done: int) -> Tracker | None:
    """Return where figures go beside metrics.jsonl, or None.

    Args:
        name: a key of `TRACKERS`, checked; None: nowhere.
        folder: the job's.
        done: steps over all stages that are not done again.
    """
    return None if name is None else TRACKERS[name](folder, done)
