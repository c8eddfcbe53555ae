"""Running out of memory while training: what it looks like, and what is done about it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from guardlearn.errors import JobError

__all__ = ["Room", "parts", "ran_out"]

_SAID = (
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # the same on Windows
    "out of memory",  # the GPUs' libraries
    "bad_alloc",  # C++
    "bad allocation",
    "could not create a memory",  # oneDNN
    "cublas_status_alloc_failed",
)

T = TypeVar("T")


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that there was no memory left, on a GPU or on the CPU."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def parts(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of as few parts of at most `size` rows as there can be, of like sizes."""
    count = -(-(stop - start) // size)
    for part in range(count):
        yield start + (stop - start) * part // count, start + (stop - start) * (part + 1) // count


class Room:
    """How much goes through the model at once; less after every time that memory ran out."""

    def __init__(self, model: Any, micro_batch_size: int, on_note: Callable[[str], None] | None) -> None:
        self.micro_batch_size = micro_batch_size
        """Most rows at once."""
        self.notes: list[str] = []
        """What was changed, in words."""
        self._model, self._on_note = model, on_note

    def within(
        self, work: Callable[[], T], rows: int, where: str, *, undo: Callable[[], None], gradients: bool = True
    ) -> T:
        """Return what `work` does, done again with less at once each time that it runs out of memory.

        Args:
            work: goes through the model in `parts` of `micro_batch_size` rows.
            rows: how many rows `work` has.
            where: names the work, as in "in step 3".
            undo: takes back what a `work` that broke off may have left.
            gradients: whether `work` computes any, so that checkpointing would help.

        Raises:
            JobError: one row alone is too much.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                said = " ".join(str(error).split())[:160] or type(error).__name__
            undo()  # after the handler: until then the traceback holds the tensors of the broken try
            _free()
            self._lessen(min(self.micro_batch_size, rows), where, said, gradients)

    def state(self) -> dict[str, Any]:
        """Return what a weights checkpoint keeps, so that a continued training does not run out again."""
        return {
            "micro_batch_size": self.micro_batch_size,
            "gradient_checkpointing": _checkpoints(self._model),
            "notes": self.notes,
        }

    def restore(self, path: Path) -> None:
        """Go on as `state` was, from the file it was written to; one without it changes nothing."""
        try:
            state: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8") or "{}")
        except FileNotFoundError:
            return
        self.micro_batch_size = min(self.micro_batch_size, state.get("micro_batch_size", self.micro_batch_size))
        self.notes = list(state.get("notes", []))
        if state.get("gradient_checkpointing") and not _checkpoints(self._model):
            _checkpoint(self._model)

    def _lessen(self, rows: int, where: str, said: str, gradients: bool) -> None:
        if rows > 1:
            self.micro_batch_size = rows // 2
            self._note(f"out of memory {where}: from here on at most {rows // 2} of a batch's rows at once, not {rows}")
        elif gradients and not _checkpoints(self._model) and _checkpoint(self._model):
            self._note(f"out of memory {where} with one row at once: gradient checkpointing from here on, it is slower")
        else:
            raise JobError(
                f"out of memory {where} with one row at once ({said}); free memory, or write the job with a smaller "
                "max_length (longer rows are left out), lora_r or base model"
            )

    def _note(self, text: str) -> None:
        self.notes.append(text)
        if self._on_note is not None:
            self._on_note(text)


def _checkpoints(model: Any) -> bool:
    """Whether the model already recomputes its activations; Unsloth's does so in a way of its own."""
    return bool(getattr(model, "is_gradient_checkpointing", False)) or hasattr(model, "_unsloth_gradient_checkpointing")


def _checkpoint(model: Any) -> bool:
    """Switch gradient checkpointing on; return whether the model has it."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        return False
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()  # the embeddings are frozen, so without it there is nothing to go back to
    return True


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
