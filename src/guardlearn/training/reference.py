"""What the model said before a stage: log-probabilities of all its rows, computed once and kept over a kill.

KTO and DPO measure how far the trained model moves from the one the stage found. That one is gone after the first step
(a stage may begin on adapters of its own), and it never changes, so its answers are computed before the first step and
lie in the stage's folder: a continued training reads the very same numbers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardlearn.digests import digest_json
from guardlearn.errors import JobError
from guardlearn.training import processes
from guardlearn.training.memory import parts
from guardlearn.training.objective import token_losses

if TYPE_CHECKING:
    import torch

    from guardlearn.training.trl import WeightedTrainer

__all__ = ["REFERENCE", "log_probabilities", "reference_of"]

REFERENCE = "reference.safetensors"
"""File of a stage's folder."""

Answers = Callable[[Any, Mapping[str, "torch.Tensor"]], Mapping[str, "torch.Tensor"]]
"""Takes the model and a batch; returns each column (B,)."""

_BATCH = 64  # rows sorted by length that are padded alike; the trainer's micro batch decides how many go in at once


def log_probabilities(model: Any, inputs: Mapping[str, torch.Tensor], siblings: int = 1) -> torch.Tensor:
    """Return log pi(completion | prompt) of each row, float32 (B,): the sum over its labelled tokens.

    Args:
        model: a causal language model.
        inputs: `input_ids`, `attention_mask`, `position_ids` and `labels` (B, L), padded on the left.
        siblings: neighbours that have one prompt, a divisor of B.
    """
    nll, at = token_losses(model, inputs, siblings)
    return nll.new_zeros(len(inputs["labels"])).index_add(0, at, -nll)


def reference_of(
    trainer: WeightedTrainer,
    rows: Sequence[Any],
    folder: Path,
    columns: Sequence[str],
    answers: Answers,
) -> dict[str, torch.Tensor]:
    """Return what the model says of rows before it is trained, float32 (number of rows,), by column.

    Computed as the trainer computes, under its autocast, but without dropout; where `folder` holds it already, read.

    Args:
        trainer: its model is as the stage found it, unless `folder` holds the answers.
        rows: all rows, in the order of their numbers.
        folder: the stage's.
        columns: names of what is kept.
        answers: what is asked of the model.

    Raises:
        JobError: what `folder` holds is of other rows.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / REFERENCE
    told = {"rows": digest_json([row.id for row in rows]), "columns": json.dumps(list(columns))}
    if processes.is_main() and not path.is_file():
        found = _computed(trainer, rows, columns, answers)
        folder.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f"{path.name}.new")
        save_file(found, staged, metadata=told)
        staged.replace(path)
    processes.wait()
    with safe_open(path, framework="pt") as file:
        if file.metadata() != told:
            raise JobError(f"{path} was computed for other rows than this job's; remove {folder} and train again")
        kept = {name: file.get_tensor(name) for name in columns}
    device: torch.device = trainer.accelerator.device
    return {name: tensor.to(device) for name, tensor in kept.items()}


def _computed(
    trainer: WeightedTrainer,
    rows: Sequence[Any],
    columns: Sequence[str],
    answers: Answers,
) -> dict[str, torch.Tensor]:
    import torch

    objective, model, device = trainer.objective, trainer.model, trainer.accelerator.device
    found = {name: torch.zeros(len(rows)) for name in columns}
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]), reverse=True)  # memory fails soon or never
    training = model.training
    model.eval()
    for start in range(0, len(order), _BATCH):
        numbers = order[start : start + _BATCH]
        batch = objective.collate([rows[number].columns(number) for number in numbers])
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        said = trainer.room.within(
            functools.partial(_said, trainer, inputs, columns, answers),
            len(numbers),
            "computing the reference",
            undo=lambda: None,
            gradients=False,
        )
        for name in columns:
            found[name][numbers] = said[name]
    model.train(training)
    return found


def _said(
    trainer: WeightedTrainer, inputs: Mapping[str, torch.Tensor], columns: Sequence[str], answers: Answers
) -> dict[str, torch.Tensor]:
    """Return what the model says of a batch, on the CPU."""
    import torch

    found: dict[str, list[torch.Tensor]] = {name: [] for name in columns}
    with torch.no_grad(), trainer.accelerator.autocast():
        for first, last in parts(0, len(inputs["rows"]), trainer.micro_batch_size):
            said = answers(trainer.model, trainer.objective.part(inputs, first, last))
            for name in columns:
                found[name].append(said[name].float().cpu())
    return {name: torch.cat(values) for name, values in found.items()}
