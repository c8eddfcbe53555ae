"""Supervised fine-tuning on accepted artifacts: L(θ) = −E_τ[log π_θ(a | Ψ, H)] (Definition 24; the guide's section 5).

A method decides rows and order; a backend (`trl`) optimises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardlearn.training.trl import StepRecord, WeightedTrainer

__all__ = ["given_back", "save_interval", "train_on_traces"]


def train_on_traces(
    model: Any,
    tokenizer: Any,
    training_data: Sequence[Mapping[str, Any]],
    output_dir: str = "outputs",
    max_steps: int = 100,
    batch_size: int = 2,
    learning_rate: float = 2e-4,
    *,
    seed: int = 42,
    warmup_ratio: float = 0.05,
    save_steps: int | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> WeightedTrainer:
    """Train the adapters of `model` on traces; return the trainer that did.

    Loss falls on completion tokens only, the end token included; nothing is ever cut. Where memory runs out, less goes
    through the model at once; the losses stay the same. Several processes share each batch where a launcher started
    them (`accelerate launch`).

    Args:
        model: what `add_lora_adapters` returned.
        tokenizer: the base model's; a row longer than its `model_max_length` is refused.
        training_data: rows with `prompt` (messages or text) and `completion`; other keys but `id` and `weight` are
            ignored.
        output_dir: gets weights checkpoints; those of an earlier training there are removed.
        max_steps: optimiser steps.
        batch_size: rows a step.
        learning_rate: peak; it rises for `warmup_ratio` of the steps and then falls linearly to 0.
        seed: decides the order of the rows.
        warmup_ratio: in [0, 1).
        save_steps: steps between weights checkpoints; None: a tenth of the steps.
        on_step: called after every step.

    Raises:
        JobError: no row, a malformed or too long one, every label masked, a chat template that writes answered prompts
            otherwise, or too little memory for one row.
    """
    from guardlearn.training.methods import train_on_rows

    return train_on_rows(
        model,
        tokenizer,
        training_data,
        "sft",
        Path(output_dir),
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        warmup_ratio=warmup_ratio,
        save_steps=save_steps,
        on_step=on_step,
    )


@contextlib.contextmanager
def given_back(model: Any) -> Iterator[None]:
    """Leave a model as it came, so that the next trainer that is built on it is like the first."""
    from accelerate.utils import extract_model_from_parallel

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = getattr(base.config, "_attn_implementation", None)
    recomputes = getattr(base, "is_gradient_checkpointing", False)
    try:
        yield
    finally:
        # accelerate prepares a model once and for all: a second trainer would silently train in another precision
        extract_model_from_parallel(model, keep_fp32_wrapper=False)
        vars(model).pop("_is_accelerate_prepared", None)
        if attention is not None and attention != base.config._attn_implementation:
            base.set_attn_implementation(attention)
        if getattr(base, "is_gradient_checkpointing", False) and not recomputes:  # memory ran out
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()


def save_interval(asked: int | None, steps: int) -> int:
    """Return the steps between weights checkpoints: as asked, or a tenth of the steps, 100 at most."""
    return asked or min(100, max(1, steps // 10))
