"""Rows as tokens, their order, and the batches the model sees: labels on completion tokens only, EOS included.

Batches are padded on the left, so that completions end together and the model's head is computed on the last columns
only. Shapes: B rows of a batch, L tokens of its longest row. Definition 24; errata 27, 29, 32-34 and 39.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from guardlearn.errors import JobError
from guardlearn.prompts import as_messages, encode_completion, encode_prompt, special_tokens

__all__ = ["IGNORED", "Collator", "TokenRow", "plan", "tokenise"]

IGNORED = -100
"""Label of a token without loss."""
_WINDOW = 4  # batches among which rows are grouped by length: less padding, order still random


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One training row."""

    id: str
    prompt: list[int]
    completion: list[int]
    """Tokens that carry loss, EOS last; empty where there is nothing to learn."""
    weight: float

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def sequences(self) -> tuple[tuple[int, int], ...]:
        """(tokens, completion tokens) of each sequence that goes through the model for this row."""
        return ((len(self), len(self.completion)),)

    def columns(self, number: int) -> dict[str, Any]:
        """Return what the collator takes; `number` is the row's among all rows of the training."""
        return {"prompt": self.prompt, "completion": self.completion, "weight": self.weight, "row": number}


def tokenise(rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int | None) -> list[TokenRow]:
    """Return rows as tokens; nothing is cut and nothing is left out.

    Args:
        rows: `prompt` (messages, or a text for one user message) and `completion`; `id` and `weight` if they have one.
        tokenizer: the base model's.
        max_length: most tokens of a row; None: no limit.

    Raises:
        JobError: no row, a malformed or too long one, or every label masked.
    """
    if tokenizer.eos_token_id is None:
        raise JobError("the tokenizer names no end token (eos_token), so the model would never learn to stop")
    if not rows:
        raise JobError("there is no training row; extract with another policy, or shape other views")
    special = special_tokens(tokenizer)
    tokens = [_row(row, f"row {number}", tokenizer, special) for number, row in enumerate(rows, start=1)]
    for row in tokens:
        if max_length is not None and len(row) > max_length:
            raise JobError(
                f"row {row.id} has {len(row)} tokens, more than max_length {max_length}, and nothing is ever cut: "
                "raise max_length or leave the row out"
            )
    if not any(row.completion for row in tokens):
        raise JobError(
            f"every label is masked: none of the {len(tokens)} rows has a completion to learn; nothing to train"
        )
    empty = next((row.id for row in tokens if not row.completion), None)
    if empty is not None:
        raise JobError(f"row {empty} has an empty completion: it would teach silence; leave it out")
    return tokens


def _row(row: Mapping[str, Any], name: str, tokenizer: Any, special: Sequence[str]) -> TokenRow:
    identity, weight = str(row.get("id", name)), row.get("weight", 1.0)
    prompt, completion = row.get("prompt"), row.get("completion")
    if not prompt or not isinstance(prompt, str | list) or not isinstance(completion, str):
        raise JobError(f"{identity} needs a prompt (text or messages) and a completion (text); it has {sorted(row)}")
    if not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
        raise JobError(f"{identity} weighs {weight!r}; a weight is a number above 0")
    return TokenRow(
        id=identity,
        prompt=encode_prompt(tokenizer, as_messages(prompt, special)),
        completion=encode_completion(tokenizer, completion) if completion else [],
        weight=float(weight),
    )


def plan(
    lengths: Sequence[int], batch_size: int, *, epochs: float, max_steps: int | None, seed: int, least: int = 1
) -> list[list[int]]:
    """Return every step's row numbers: each pass takes every row exactly once, in a seeded order.

    Args:
        lengths: tokens of each row; rows of like length share batches, among a few batches' worth at a time.
        batch_size: most rows a step; the steps of a pass share its rows evenly.
        epochs: passes; a part of a pass is a part of its steps, rounded up.
        max_steps: exactly so many steps instead; None: by epochs.
        seed: equal seeds give equal plans.
        least: fewest rows a step, where there are so many; it may put a step above `batch_size`.
    """
    per_pass = max(1, min(math.ceil(len(lengths) / batch_size), len(lengths) // least))
    steps = max_steps if max_steps is not None else max(1, math.ceil(round(epochs * per_pass, 6)))
    chance = random.Random(seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        batches += _one_pass(lengths, per_pass, chance)
    return batches[:steps]


def _one_pass(lengths: Sequence[int], count: int, chance: random.Random) -> list[list[int]]:
    order = list(range(len(lengths)))
    chance.shuffle(order)
    # sizes differ by one at most: each step is a mean of its own, and a small last step would weigh its rows more
    bounds = [len(order) * batch // count for batch in range(count + 1)]
    batches: list[list[int]] = []
    for first in range(0, count, _WINDOW):
        last = min(first + _WINDOW, count)
        alike = sorted(order[bounds[first] : bounds[last]], key=lambda row: lengths[row])
        batches += [
            alike[bounds[batch] - bounds[first] : bounds[batch + 1] - bounds[first]] for batch in range(first, last)
        ]
    chance.shuffle(batches)
    return batches


class Collator:
    """Turns rows of {"prompt", "completion", "weight", "row"} into a batch of tensors."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask`, `position_ids`, `labels` (B, L), `weights` (B), `rows` (B)."""
        import torch

        length = max(len(row["prompt"]) + len(row["completion"]) for row in rows)
        input_ids = torch.full((len(rows), length), self.pad_token_id)
        labels = torch.full((len(rows), length), IGNORED)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for at, row in enumerate(rows):
            ids = torch.tensor([*row["prompt"], *row["completion"]])
            input_ids[at, -len(ids) :] = ids
            mask[at, -len(ids) :] = 1
            labels[at, -len(row["completion"]) :] = ids[-len(row["completion"]) :]
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "labels": labels,
            "weights": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
            "rows": torch.tensor([row["row"] for row in rows]),
        }
