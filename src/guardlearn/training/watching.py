"""Looking after a training: losses and gradients that are no numbers, divergence, validation loss, best weights.

What is decided here follows from the steps' losses and the looks at the validation loss alone, and both stand in
metrics.jsonl: a killed training that continues decides as if nothing had happened.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState

from guardlearn.errors import JobError
from guardlearn.training import processes, trl
from guardlearn.training.failures import TrainingStopped
from guardlearn.training.sft import save_interval
from guardlearn.training.weights import adapter_weights, put_adapter_weights

if TYPE_CHECKING:
    from guardlearn.training.progress import Progress
    from guardlearn.training.settings import Settings, Stage
    from guardlearn.training.stages import Course

__all__ = ["Best", "Divergence", "Looks", "Watcher", "check_looks"]

_FACTOR = 3.0
_MARGIN = 2.0
_WINDOW = (4, 8)


class Divergence:
    """Says when losses have run away from where they began.

    They began at the first loss, which no update has touched, or at the mean of the first `window` losses where that is
    lower. They have run away after `window` steps in a row at which the mean of the last `window` losses was above both
    three times the beginning and the beginning plus 2. `window` is a fifth of the steps, 4 at least and 8 at most; a
    training of fewer than twice as many steps ends before it can be told.
    """

    def __init__(self, steps: int) -> None:
        least, most = _WINDOW
        self.window = min(most, max(least, steps // 5))
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=self.window)
        self._above = 0

    @property
    def suspicious(self) -> bool:
        """Whether the last step's mean was above the limit: such weights are not kept."""
        return self._above > 0

    @property
    def limit(self) -> float:
        """What a mean must stay below; infinity before `window` steps."""
        if len(self._first) < self.window:
            return math.inf
        return max(_FACTOR * self._beginning, self._beginning + _MARGIN)

    @property
    def _beginning(self) -> float:
        return min(self._first[0], sum(self._first) / len(self._first))

    def add(self, loss: float, step: int) -> None:
        """Take the next step's loss.

        Raises:
            TrainingStopped: it is no number, or the losses have run away.
        """
        if not math.isfinite(loss):
            raise TrainingStopped(f"the loss is {loss}", step, good=step - 2)
        if len(self._first) < self.window:
            self._first.append(loss)
        self._last.append(loss)
        mean = sum(self._last) / len(self._last)
        self._above = self._above + 1 if mean > self.limit else 0
        if self._above >= self.window:
            raise TrainingStopped(
                f"the loss diverged: its mean over {self.window} steps is {mean:.3g}, it began "
                f"at {self._beginning:.3g}",
                step,
            )


class Looks:
    """The validation losses of a stage, by step."""

    def __init__(self, patience: int) -> None:
        """Begin.

        Args:
            patience: looks in a row without a lower loss after which the stage ends; 0: it never ends early.
        """
        self.patience = patience
        self.losses: dict[int, float] = {}

    @property
    def best(self) -> int | None:
        """Step of the lowest loss, the earliest of equal ones; None before the first look."""
        return min(self.losses, key=lambda step: (self.losses[step], step), default=None)

    @property
    def exhausted(self) -> bool:
        """Whether so many looks in a row gave no lower loss than before."""
        best = self.best
        return bool(self.patience) and best is not None and sum(step > best for step in self.losses) >= self.patience

    def add(self, step: int, loss: float) -> None:
        """Take a look's result.

        Raises:
            TrainingStopped: it is no number.
        """
        if not math.isfinite(loss):
            raise TrainingStopped(f"the validation loss is {loss}", step, good=step - 1)
        self.losses[step] = loss


class Best:
    """Weights of looked-at steps on disk, until a whole weights checkpoint stands behind better ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, step: int) -> Path:
        """Return where the weights of a step are."""
        return self._folder / f"best-{step}.safetensors"

    def save(self, model: Any, step: int) -> None:
        """Keep a model's adapter weights, whole or not at all."""
        staged = self._folder / "best.new"
        save_file({name: weight.cpu().contiguous() for name, weight in adapter_weights(model).items()}, staged)
        staged.replace(self.path(step))

    def put(self, model: Any, step: int) -> None:
        """Put the weights of a step back.

        Raises:
            JobError: they are gone.
        """
        if not self.path(step).is_file():
            raise JobError(
                f"{self.path(step)} is gone, the weights with the least validation loss; remove {self._folder.parent} "
                "to train again from the start"
            )
        put_adapter_weights(model, load_file(self.path(step)))

    def forget_but(self, step: int | None) -> None:
        """Remove the weights of all other steps."""
        for path in self._folder.glob("best-*.safetensors"):
            if step is None or path != self.path(step):
                path.unlink()


class Watcher(TrainerCallback):
    """Looks after a stage while it trains; every process decides the same."""

    def __init__(
        self, settings: Settings, course: Course, progress: Progress, history: Sequence[dict[str, Any]]
    ) -> None:
        """Begin.

        Args:
            settings: the job's.
            course: the stage's.
            progress: is told of every step.
            history: lines of metrics.jsonl of the steps that are done already.
        """
        steps = len(course.batches)
        self.trainer: trl.WeightedTrainer | None = None
        """Set before it trains."""
        self.looks = Looks(settings.early_stopping)
        """What was seen of the validation loss."""
        self._settings, self._course, self._progress = settings, course, progress
        self._divergence, self._best = Divergence(steps), Best(course.folder)
        self._every = _looks_every(settings, steps)
        self._record: trl.StepRecord | None = None
        for step, line in enumerate(history, start=1):
            self._divergence.add(line["loss"], step)
            if "validation_loss" in line:
                self.looks.add(step, line["validation_loss"])

    def take(self, record: trl.StepRecord) -> None:
        """Take the step that was just done."""
        self._record = record

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let no update be made from what is no number."""
        assert self.trainer is not None and self.trainer.last_batch is not None
        step, loss = state.global_step + 1, self.trainer.last_batch[0].item()
        if not math.isfinite(loss):
            raise TrainingStopped(f"the loss is {loss}", step, good=step - 2)
        if args.fp16:
            return  # its scaled gradients may overflow: the scaler skips such a step and goes on with a lesser scale
        gradients = [weight.grad for weight in kwargs["model"].parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm):
            raise TrainingStopped("a gradient is no number", step, good=step - 1)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the step's loss and, where it is due, at the validation loss."""
        assert self.trainer is not None and self._record is not None
        step, course = state.global_step, self._course
        self._divergence.add(self._record.loss, step)
        loss = None
        if self._every and (step % self._every == 0 or step == len(course.batches)):
            loss = trl.mean_loss(self.trainer, course.validation, self._settings.batch_size, first=len(course.rows))
            self.looks.add(step, loss)
            if self._settings.keep == "best" and self.looks.best == step and processes.is_main():
                self._best.save(self.trainer.model, step)
        self._progress.record(self._record, loss)
        if self.looks.exhausted:
            control.should_training_stop = True
        if self.looks.exhausted or self._divergence.suspicious:
            control.should_save = False  # what continues must come to the same end, and what is kept must be good

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forget the weights that no continued training would ask for any more."""
        if processes.is_main() and self._settings.keep == "best":
            self._best.forget_but(self.looks.best)

    def put_back(self, model: Any) -> int:
        """Put the weights to keep into the model; return their step."""
        assert self.trainer is not None
        last = self.trainer.state.global_step
        if self._settings.keep != "best" or self.looks.best in (None, last):
            return last
        processes.wait()  # the main one has written them
        best = self.looks.best
        assert best is not None
        self._best.put(model, best)
        return best


def check_looks(settings: Settings, stage: Stage) -> None:
    """Refuse settings that ask for the validation loss of a stage without validation rows.

    Raises:
        JobError: naming them.
    """
    asked = {
        "eval_steps": settings.eval_steps is not None,
        "early_stopping": bool(settings.early_stopping),
        "keep": settings.keep == "best",
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    if names and not stage.validation:
        raise JobError(
            f"{' and '.join(names)} ask for the validation loss, and {stage.method} has no validation row; give "
            "specifications of the validation side, or leave them at their defaults"
        )


def _looks_every(settings: Settings, steps: int) -> int | None:
    if settings.eval_steps is not None:
        return settings.eval_steps
    return save_interval(None, steps) if settings.early_stopping or settings.keep == "best" else None
