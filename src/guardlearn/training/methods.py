"""Methods by name: what rows they take, how those are ordered, and what is optimised on them.

`sft` imitates accepted artifacts, `dpo` prefers them to rejected attempts of their chains, `kto` takes every judged
attempt by its verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from guardlearn.errors import JobError
from guardlearn.training import processes
from guardlearn.training.checks import check_maskable
from guardlearn.training.dpo import Dpo, pair_rows
from guardlearn.training.kto import Kto, class_weights, verdict_rows
from guardlearn.training.objective import Objective, Sft
from guardlearn.training.rows import plan, tokenise

if TYPE_CHECKING:
    from guardlearn.training.trl import StepRecord, WeightedTrainer

__all__ = ["Strength", "objective_for", "plan_for", "rows_for", "train_on_rows"]


class Strength(Protocol):
    """How strongly rejections are learned from; a job's `Settings` say it."""

    @property
    def beta(self) -> float:
        """See `kto` and `dpo`."""

    @property
    def sft_term(self) -> float:
        """See `dpo`."""


_ROWS: dict[str, Callable[..., Sequence[Any]]] = {"sft": tokenise, "kto": verdict_rows, "dpo": pair_rows}
_LEAST = {"kto": 2}


def rows_for(method: str, data: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int | None) -> list[Any]:
    """Return a method's rows as tokens; nothing is cut and nothing is left out.

    Args:
        method: sft, kto or dpo.
        data: rows of one side, as the job's files hold them.
        tokenizer: the base model's.
        max_length: most tokens of a prompt with a completion; None: no limit.

    Raises:
        JobError: no row, a malformed or too long one.
    """
    return list(_ROWS[method](data, tokenizer, max_length))


def plan_for(
    method: str, rows: Sequence[Any], batch_size: int, *, epochs: float, max_steps: int | None, seed: int
) -> list[list[int]]:
    """Return every step's row numbers; see `rows.plan`.

    Raises:
        JobError: kto with a batch of one row: there its z would be of that row alone.
    """
    least = _LEAST.get(method, 1)
    if batch_size < least or len(rows) < least:
        raise JobError(
            f"{method} compares the rows of a batch with each other: {len(rows)} rows in batches of {batch_size} are "
            f"too few; it needs at least {least} of each"
        )
    lengths = [len(row) for row in rows]
    return plan(lengths, batch_size, epochs=epochs, max_steps=max_steps, seed=seed, least=least)


def objective_for(method: str, settings: Strength | None, pad_token_id: int, rows: Sequence[Any]) -> Objective:
    """Return what is optimised.

    Args:
        method: sft, kto or dpo.
        settings: the job's; `beta` and `sft_term` are read. None will do for sft.
        pad_token_id: the tokenizer's.
        rows: the stage's training rows; kto's class weights follow from them.

    Raises:
        JobError: kto, and the rows are all of one verdict.
    """
    if method == "sft":
        return Sft(pad_token_id)
    assert settings is not None, f"{method} needs its strength"
    if method == "dpo":
        return Dpo(pad_token_id, settings.beta, settings.sft_term)
    desirable, undesirable = class_weights(rows)
    return Kto(pad_token_id, settings.beta, desirable, undesirable)


def train_on_rows(
    model: Any,
    tokenizer: Any,
    data: Sequence[Mapping[str, Any]],
    method: str,
    folder: Path,
    strength: Strength | None = None,
    *,
    max_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    warmup_ratio: float = 0.05,
    save_steps: int | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> WeightedTrainer:
    """Train the adapters of `model` on a method's rows, in this process; `train_on_traces` is this for sft.

    Args:
        model: what `add_lora_adapters` returned; as it is now is the reference.
        tokenizer: the base model's; a row longer than its `model_max_length` is refused.
        data: rows, as a job's files hold them.
        method: sft, kto or dpo.
        folder: gets weights checkpoints and the reference; those of an earlier training there are removed.
        strength: how strongly rejections are learned from; None will do for sft.
        max_steps: optimiser steps.
        batch_size: rows a step.
        learning_rate: peak; it rises for `warmup_ratio` of the steps and then falls linearly to 0.
        seed: decides the order of the rows.
        warmup_ratio: in [0, 1).
        save_steps: steps between weights checkpoints; None: a tenth of the steps.
        on_step: called after every step.

    Raises:
        JobError: rows that cannot be trained on.
    """
    from guardlearn.training import trl
    from guardlearn.training.reference import REFERENCE
    from guardlearn.training.sft import given_back, save_interval

    check_maskable(data, tokenizer)
    rows = rows_for(method, data, tokenizer, tokenizer.model_max_length)
    batches = plan_for(method, rows, batch_size, epochs=1.0, max_steps=max_steps, seed=seed)
    objective = objective_for(method, strength, tokenizer.pad_token_id, rows)
    options = trl.Options(
        learning_rate=learning_rate,
        warmup_ratio=warmup_ratio,
        seed=seed,
        save_steps=save_interval(save_steps, max_steps),
    )
    if processes.is_main():
        trl.forget_checkpoints(folder)  # a finished training's would be counted against this one's
        (folder / REFERENCE).unlink(missing_ok=True)
    processes.wait()
    with given_back(model):
        trainer = trl.build(model, tokenizer, rows, batches, folder, options, on_step, objective=objective)
        objective.begin(trainer, rows, folder)
        trainer.train()
    return trainer
