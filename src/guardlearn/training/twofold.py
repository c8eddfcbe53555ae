"""Batches of rows that have two completions of one prompt each: a preference, or a verdict beside another row's text.

Shapes: B rows, L tokens of the longest sequence. The prompt, which the two have in common, goes through the model once
(`sharing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from guardlearn.training.reference import log_probabilities
from guardlearn.training.rows import Collator

if TYPE_CHECKING:
    import torch

__all__ = ["both", "collate", "one", "part"]

_TENSORS = ("input_ids", "attention_mask", "position_ids", "labels")


def collate(collator: Collator, rows: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return token tensors (B, 2, L), `weights` (B,) and `rows` (B,).

    Args:
        collator: pads.
        rows: {"prompt", "weight", "row"} and a completion under the name of each side.
        sides: the two names, in the order of the tensors.
    """
    batch = collator([{**row, "completion": row[side]} for row in rows for side in sides])
    found = {name: batch[name].unflatten(0, (len(rows), 2)) for name in _TENSORS}
    return found | {name: batch[name][::2] for name in ("weights", "rows")}


def part(inputs: Mapping[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
    """Return the rows from `start` up to `stop`, without the columns that are padding in all of them."""
    chosen = {name: tensor[start:stop] for name, tensor in inputs.items()}
    return chosen | _trimmed({name: chosen[name] for name in _TENSORS})


def both(model: Any, inputs: Mapping[str, torch.Tensor], sides: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return log pi(completion | prompt) of both sides, float32 (B,) each, by name."""
    said = log_probabilities(model, {name: inputs[name].flatten(0, 1) for name in _TENSORS}, siblings=2)
    return {side: said[at::2] for at, side in enumerate(sides)}


def one(model: Any, inputs: Mapping[str, torch.Tensor], side: int) -> torch.Tensor:
    """Return log pi(completion | prompt) of the side at place 0 or 1, float32 (B,)."""
    return log_probabilities(model, _trimmed({name: inputs[name][:, side] for name in _TENSORS}))


def _trimmed(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors (…, L) without the columns on the left that are padding everywhere."""
    first = int(inputs["attention_mask"].flatten(0, -2).any(dim=0).nonzero()[0])
    return {name: tensor[..., first:] for name, tensor in inputs.items()}
