"""Direct preference optimisation on pairs of one chain: the accepted artifact before a rejected attempt at it.

    l = -log sigmoid(beta (log pi(c|x)/ref(c|x) - log pi(r|x)/ref(r|x))) + sft_term * mean_t -log pi(c_t|x, c_<t)

Rafailov et al. 2023, equation 7, with the supervised term of Pang et al. 2024 (iterative reasoning preference
optimisation, equation 1), which keeps the accepted artifact's own probability up: the first part alone is content when
both fall and the rejected one falls faster. Erratum 20.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardlearn.errors import JobError
from guardlearn.training import twofold
from guardlearn.training.reference import reference_of
from guardlearn.training.rows import IGNORED, Collator, TokenRow, tokenise

if TYPE_CHECKING:
    import torch

    from guardlearn.training.trl import WeightedTrainer

__all__ = ["Dpo", "PairRow", "pair_rows"]

_SIDES = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairRow:
    """Two completions of one prompt."""

    chosen: TokenRow
    rejected: TokenRow

    @property
    def id(self) -> str:
        """Of the pair."""
        return self.chosen.id

    @property
    def weight(self) -> float:
        """Above 0."""
        return self.chosen.weight

    @property
    def sequences(self) -> tuple[tuple[int, int], ...]:
        """(Tokens, completion tokens) of what goes through the model."""
        return tuple((len(row), len(row.completion)) for row in (self.chosen, self.rejected))

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)

    def columns(self, number: int) -> dict[str, Any]:
        """Return what `Dpo.collate` takes; `number` is the row's among all rows of the training."""
        return {
            "prompt": self.chosen.prompt,
            "chosen": self.chosen.completion,
            "rejected": self.rejected.completion,
            "weight": self.weight,
            "row": number,
        }


def pair_rows(data: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int | None) -> list[PairRow]:
    """Return pairs as tokens; nothing is cut and nothing is left out.

    Args:
        data: `prompt` (messages or text), `chosen` and `rejected` (texts); `id` and `weight` if they have one.
        tokenizer: the base model's.
        max_length: most tokens of the prompt with either completion; None: no limit.

    Raises:
        JobError: no pair, a malformed or too long one, or one whose two sides are the same.
    """
    sides = {
        side: tokenise([{**row, "completion": row.get(side)} for row in data], tokenizer, max_length) for side in _SIDES
    }
    pairs = [PairRow(chosen=one, rejected=other) for one, other in zip(sides["chosen"], sides["rejected"], strict=True)]
    for pair in pairs:
        if pair.chosen.completion == pair.rejected.completion:
            raise JobError(f"pair {pair.id} prefers a text to itself; leave it out")
    return pairs


class Dpo:
    """Preference over pairs; the loss of a batch is sum_r w_r l_r / sum_r w_r over its pairs r."""

    name = "dpo"

    def __init__(self, pad_token_id: int, beta: float = 0.1, sft_term: float = 1.0) -> None:
        """Take the settings.

        Args:
            pad_token_id: fills rows up; it carries no loss.
            beta: above 0; see the module.
            sft_term: 0 or more; see the module.
        """
        self.beta, self.sft_term = beta, sft_term
        self._collator = Collator(pad_token_id)
        self._reference: dict[str, torch.Tensor] = {}

    def begin(self, trainer: WeightedTrainer, rows: Sequence[PairRow], folder: Path) -> None:
        """Compute the reference of every pair, or read it; see `reference_of`."""
        self._reference = reference_of(trainer, rows, folder, _SIDES, self.log_probabilities)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return token tensors (B, 2, L), the accepted side first, `weights` (B,) and `rows` (B,)."""
        return twofold.collate(self._collator, rows, _SIDES)

    def part(self, inputs: Mapping[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
        """Return the pairs from `start` up to `stop`; see `Objective.part`."""
        return twofold.part(inputs, start, stop)

    def weight(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return sum_r w_r."""
        return inputs["weights"].sum()

    def whole(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return {}: pairs know nothing of each other."""
        return {}

    def total(self, model: Any, inputs: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return sum_r w_r l_r."""
        import torch

        said, rows = self.log_probabilities(model, inputs), inputs["rows"]
        moved = {side: said[side] - self._reference[side][rows] for side in _SIDES}
        losses = -torch.nn.functional.logsigmoid(self.beta * (moved["chosen"] - moved["rejected"]))
        if self.sft_term:
            length = (inputs["labels"][:, 0] != IGNORED).sum(dim=1)
            losses = losses - self.sft_term * said["chosen"] / length
        return (inputs["weights"] * losses).sum()

    def tokens(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Return the tokens of both sides that are no padding."""
        return int(inputs["attention_mask"].sum())

    def log_probabilities(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return log pi(completion | prompt) of each pair's sides (B,)."""
        return twofold.both(model, inputs, _SIDES)
