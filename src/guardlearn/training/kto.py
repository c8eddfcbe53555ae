"""Kahneman-Tversky optimisation on judged attempts: each by its own verdict, R_sparse (Definition 23), no pair needed.

    z = max(0, mean over a batch of log pi(y'|x)/ref(y'|x)),  y' the completion of another row
    l = 1 - sigmoid( beta (log pi(y|x)/ref(y|x) - z))     accepted
    l = 1 - sigmoid(-beta (log pi(y|x)/ref(y|x) - z))     rejected

Ethayarajh et al. 2024, equations 6 to 8. z is what the model moved on texts that do not answer their prompts, so it is
taken over a whole batch, without gradient, and a batch has at least 2 rows. Each row's y' is chosen once, so that the
reference's answers on it are computed once. Where verdicts are unequally many, the lesser side's losses are multiplied
so that both sides weigh the same in total: the paper's equation 8 with the ratio at 1, the lower end of its [1, 4/3].
Erratum 20.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardlearn.errors import JobError
from guardlearn.training import twofold
from guardlearn.training.reference import reference_of
from guardlearn.training.rows import Collator, TokenRow, tokenise

if TYPE_CHECKING:
    import torch

    from guardlearn.training.trl import WeightedTrainer

__all__ = ["Kto", "VerdictRow", "class_weights", "verdict_rows"]

_COLUMNS = ("completion", "mismatched")
_OWN, _OTHER = range(2)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """A completion and its verdict."""

    row: TokenRow
    label: bool
    """Whether it was accepted."""
    mismatched: list[int]
    """Tokens of another row's completion."""

    @property
    def id(self) -> str:
        """Of the row."""
        return self.row.id

    @property
    def weight(self) -> float:
        """Above 0."""
        return self.row.weight

    @property
    def sequences(self) -> tuple[tuple[int, int], ...]:
        """(Tokens, completion tokens) of what goes forth and back through the model; y' only goes forth."""
        return ((len(self.row), len(self.row.completion)),)

    def __len__(self) -> int:
        return len(self.row)

    def columns(self, number: int) -> dict[str, Any]:
        """Return what `Kto.collate` takes; `number` is the row's among all rows of the training."""
        return {
            "prompt": self.row.prompt,
            "completion": self.row.completion,
            "mismatched": self.mismatched,
            "label": self.label,
            "weight": self.weight,
            "row": number,
        }


def verdict_rows(data: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int | None) -> list[VerdictRow]:
    """Return judged attempts as tokens; nothing is cut and nothing is left out.

    Args:
        data: `prompt` (messages or text), `completion` (text) and `label` (whether it was accepted); `id` and `weight`
            if they have one.
        tokenizer: the base model's.
        max_length: most tokens of a row; None: no limit.

    Raises:
        JobError: no row, a malformed or too long one.
    """
    rows = tokenise(data, tokenizer, max_length)
    labels = [given.get("label") for given in data]
    for row, label in zip(rows, labels, strict=True):
        if not isinstance(label, bool):
            raise JobError(f"{row.id} has the label {label!r}; kto needs true (accepted) or false (rejected)")
    others = _mismatched(rows)
    return [
        VerdictRow(row=row, label=bool(label), mismatched=other.completion)
        for row, label, other in zip(rows, labels, others, strict=True)
    ]


def _mismatched(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Return for each row the one whose completion it is given: the nearest before it that answers another prompt.

    One that would be longer than every row is passed over while there is another; where all prompts are the same, the
    row before it; a row alone, itself.
    """
    longest = max(len(row) for row in rows)
    found: list[TokenRow] = []
    for at, row in enumerate(rows):
        before = [rows[at - back] for back in range(1, len(rows))] or [row]
        strange = [other for other in before if other.prompt != row.prompt]
        fits = (other for other in strange if len(row.prompt) + len(other.completion) <= longest)
        shortest = min(strange, key=lambda other: len(other.completion), default=before[0])
        found.append(next(fits, shortest))
    return found


def class_weights(rows: Sequence[VerdictRow]) -> tuple[float, float]:
    """Return what losses of accepted and of rejected rows are multiplied by, at least 1 each.

    Raises:
        JobError: the rows are all of one verdict.
    """
    totals = {label: sum(row.weight for row in rows if row.label is label) for label in (True, False)}
    for label, verdict in ((True, "accepted"), (False, "rejected")):
        if not totals[label]:
            raise JobError(
                f"kto learns from both verdicts, and none of the {len(rows)} rows was {verdict}; choose a policy that "
                "selects both, or train with sft"
            )
    most = max(totals.values())
    return most / totals[True], most / totals[False]


class Kto:
    """Verdicts one by one; the loss of a batch is sum_r w_r v_r l_r / sum_r w_r, v_r the weight of r's verdict."""

    name = "kto"

    def __init__(self, pad_token_id: int, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> None:
        """Take the settings.

        Args:
            pad_token_id: fills rows up; it carries no loss.
            beta: above 0; see the module.
            desirable: what losses of accepted rows are multiplied by, above 0.
            undesirable: likewise, of rejected rows.
        """
        self.beta, self.desirable, self.undesirable = beta, desirable, undesirable
        self._collator = Collator(pad_token_id)
        self._reference: dict[str, torch.Tensor] = {}
        self._trainer: WeightedTrainer | None = None

    def begin(self, trainer: WeightedTrainer, rows: Sequence[VerdictRow], folder: Path) -> None:
        """Compute the reference of every row, with its own and its other completion, or read it; see `reference_of`."""
        self._trainer = trainer
        self._reference = reference_of(trainer, rows, folder, _COLUMNS, self.log_probabilities)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return token tensors (B, 2, L), the own completion first, `desirable`, `weights` and `rows` (B,)."""
        import torch

        labels = torch.tensor([bool(row["label"]) for row in rows])
        return twofold.collate(self._collator, rows, _COLUMNS) | {"desirable": labels}

    def part(self, inputs: Mapping[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
        """Return the rows from `start` up to `stop`; see `Objective.part`."""
        return twofold.part(inputs, start, stop)

    def weight(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return sum_r w_r."""
        return inputs["weights"].sum()

    def whole(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return z as `z_ref`, a scalar."""
        import torch

        size = self._trainer.micro_batch_size if self._trainer else len(inputs["rows"])
        moved = inputs["weights"].new_zeros(2)  # sum, count
        with torch.no_grad():
            for start in range(0, len(inputs["rows"]), size):
                part = self.part(inputs, start, start + size)
                said = twofold.one(model, part, _OTHER)
                moved += torch.stack(
                    [(said - self._reference["mismatched"][part["rows"]]).sum(), said.new_tensor(len(said))]
                )
        return {"z_ref": (moved[0] / moved[1]).clamp(min=0)}

    def total(self, model: Any, inputs: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return sum_r w_r v_r l_r."""
        import torch

        said = twofold.one(model, inputs, _OWN)
        moved = self.beta * (said - self._reference["completion"][inputs["rows"]] - whole["z_ref"])
        good = inputs["desirable"]
        losses = 1 - torch.sigmoid(torch.where(good, moved, -moved))
        verdicts = torch.where(good, self.desirable, self.undesirable)
        return (inputs["weights"] * verdicts * losses).sum()

    def tokens(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Return the tokens that are no padding, those of the other completions' rows too."""
        return int(inputs["attention_mask"].sum())

    def log_probabilities(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return log pi of each row's own and of its other completion (B,)."""
        return twofold.both(model, inputs, _COLUMNS)
