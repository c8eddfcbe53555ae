"""What a training step makes smaller: an objective says what its rows look like as tensors and what they lose.

The trainer (`trl`) knows no method. It splits a step's batch into micro batches, divides each one's total by the weight
of the whole batch and adds the gradients up, so a step's loss and gradient depend neither on the micro batch nor on how
many processes share the batch. Shapes: B rows of a batch, L tokens of its longest row. Definition 24; errata 31-38.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from guardlearn.training.rows import IGNORED, Collator
from guardlearn.training.sharing import last_logits

if TYPE_CHECKING:
    import torch

    from guardlearn.training.trl import WeightedTrainer

__all__ = ["Objective", "Row", "Sft", "token_losses"]

_PADDED = ("input_ids", "attention_mask", "position_ids", "labels")


class Row(Protocol):
    """A row as tokens; `rows.TokenRow` is SFT's."""

    @property
    def id(self) -> str:
        """Names the row in metrics and messages."""

    @property
    def weight(self) -> float:
        """Above 0."""

    def __len__(self) -> int:
        """Tokens that go through the model."""

    def columns(self, number: int) -> dict[str, Any]:
        """Return what the objective's `collate` takes; `number` is the row's among all rows of the training."""


class Objective(Protocol):
    """One method's loss over batches of its rows; the loss of a batch is `total` / `weight`."""

    @property
    def name(self) -> str:
        """The method's."""

    def begin(self, trainer: WeightedTrainer, rows: Sequence[Any], folder: Path) -> None:
        """Make ready, once before `trainer.train()`, on every process.

        Args:
            trainer: what `trl.build` returned.
            rows: training rows, then validation rows; a row's number is its place here.
            folder: what is kept here a continued training reads again.
        """

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of what the rows' `columns` gave: tensors of which each has the B rows first.

        `rows` (B,) holds their numbers.
        """

    def part(self, inputs: Mapping[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
        """Return the rows from `start` up to `stop` of a batch, without the columns that are padding in all of them."""

    def weight(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what the total over these rows is divided by, a scalar above 0."""

    def whole(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what single rows must know of their whole batch, without gradients; {} for nothing.

        Runs before the batch is split, under autocast; goes through the model in parts of the trainer's
        `micro_batch_size` rows.
        """

    def total(self, model: Any, inputs: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of the weighted losses of these rows, a scalar with gradients; `whole` is of their batch."""

    def tokens(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Return the prompt and completion tokens of these rows, padding apart."""


class Sft:
    """Supervised fine-tuning: sum_r w_r sum_t nll / sum_r w_r T_r over rows r and their T_r completion tokens.

    A row counts by its weight and its length.
    """

    name = "sft"

    def __init__(self, pad_token_id: int) -> None:
        self._collator = Collator(pad_token_id)

    def begin(self, trainer: WeightedTrainer, rows: Sequence[Any], folder: Path) -> None:
        """Nothing to make ready."""

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """See `Collator`."""
        return self._collator(rows)

    def part(self, inputs: Mapping[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
        """Return the rows from `start` up to `stop`; see `Objective.part`."""
        part = {name: tensor[start:stop] for name, tensor in inputs.items()}
        first = int(part["attention_mask"].any(dim=0).nonzero()[0])
        return part | {name: part[name][:, first:] for name in _PADDED}

    def weight(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return sum_r w_r T_r."""
        return (inputs["weights"] * (inputs["labels"] != IGNORED).sum(dim=1)).sum()

    def whole(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return {}: rows know nothing of each other."""
        return {}

    def total(self, model: Any, inputs: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return sum_r w_r sum_t nll."""
        nll, at = token_losses(model, inputs)
        return (inputs["weights"][at] * nll).sum()

    def tokens(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Return the tokens that are no padding."""
        return int(inputs["attention_mask"].sum())


def token_losses(
    model: Any, inputs: Mapping[str, torch.Tensor], siblings: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return -log pi of every labelled token, float32 (N,), and its row in the batch (N,), row after row.

    The output head is computed on completion columns only: with a small model and a large vocabulary it costs as much
    as the layers below. What the rows begin with goes through the model once (`sharing`). The model gets no labels:
    Unsloth's forward then returns real logits.

    Args:
        model: a causal language model, as the trainer hands it on.
        inputs: `input_ids`, `attention_mask`, `position_ids` and `labels` (B, L), padded on the left.
        siblings: neighbours that have one prompt, a divisor of B.
    """
    import torch

    labels = inputs["labels"]
    carries = labels != IGNORED
    first = int(carries.any(dim=0).nonzero()[0])
    keep = labels.shape[1] - first + 1  # the token before the first label predicts it
    logits = last_logits(model, inputs, keep if _slices(model) else None, siblings)
    carries = carries[:, -keep + 1 :]
    logits = logits[:, -keep:-1][carries].float()
    nll = torch.nn.functional.cross_entropy(logits, labels[:, -keep + 1 :][carries], reduction="none")
    return nll, carries.nonzero()[:, 0]


def _slices(model: Any) -> bool:
    """Whether the model can compute the logits of the last columns alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
