"""Training rows as the trainer sees them: tokens, and which of them carry loss (Definition 24, errata 27, 32, 33).

Tokens come from the trainer's own `tokenise`, labels and weights from its `Collator`; only the texts of the tokens are
looked up here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from guardlearn.training.rows import IGNORED, Collator, tokenise

__all__ = ["MaskedRow", "MaskedToken", "masked_rows"]

_INCOMPLETE = "\ufffd"  # what a tokenizer makes of a part of a character


class MaskedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token, or the few tokens that only together give a character."""

    text: str
    tokens: int
    loss: bool
    """Whether the model is trained to say it."""
    special: bool
    """A control token of the tokenizer, not the characters of its name."""
    end: bool
    """The end token, which the model is trained to stop with."""


class MaskedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One training row with its loss mask; its texts, joined, are the row as the model reads it."""

    id: str
    view: str
    weight: float
    """Factor of the row's loss."""
    tokens: tuple[MaskedToken, ...]

    @property
    def prompt_tokens(self) -> int:
        """Tokens without loss."""
        return sum(token.tokens for token in self.tokens if not token.loss)

    @property
    def loss_tokens(self) -> int:
        """Tokens with loss, the end token included."""
        return sum(token.tokens for token in self.tokens if token.loss)


def masked_rows(rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int) -> list[MaskedRow]:
    """Return rows of a job's `train.jsonl` as the training turns them into tokens and labels.

    Args:
        rows: with `id`, `view`, `prompt`, `completion` and `weight`.
        tokenizer: the base model's, as the training loads it.
        max_length: the job's.

    Raises:
        JobError: the training would refuse a row.
    """
    collate = Collator(tokenizer.pad_token_id)
    shown = []
    for number, (row, tokens) in enumerate(zip(rows, tokenise(rows, tokenizer, max_length), strict=True)):
        columns = {"prompt": tokens.prompt, "completion": tokens.completion, "weight": tokens.weight, "row": number}
        batch = collate([columns])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        shown.append(
            MaskedRow(
                id=tokens.id,
                view=str(row.get("view", "")),
                weight=batch["weights"][0].item(),
                tokens=tuple(_tokens(ids, [label != IGNORED for label in labels], tokenizer)),
            )
        )
    return shown


def _tokens(ids: Sequence[int], carries: Sequence[bool], tokenizer: Any) -> Iterator[MaskedToken]:
    """Yield the row in stretches: a special token is one, and no stretch crosses the mask's edge."""
    added = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = {*tokenizer.all_special_ids} | added
    start = 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and carries[end] == carries[start] and not {ids[end - 1], ids[end]} & special:
            continue
        stretch, control = ids[start:end], ids[start] in special
        for text, count in _spoken(stretch, tokenizer):
            closes = carries[start] and end == len(ids) and stretch == [tokenizer.eos_token_id]
            yield MaskedToken(text=text, tokens=count, loss=carries[start], special=control, end=closes)
        start = end


def _spoken(ids: Sequence[int], tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Yield (text, tokens) whose texts, joined, are `ids` decoded; each in the context of the one before."""
    context = done = 0
    known = ""  # ids[context:done], decoded
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[context:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith(_INCOMPLETE) and end < len(ids):
            continue
        yield text[len(known) :], end - done
        context, done = done, end
        known = tokenizer.decode(ids[context:done], skip_special_tokens=False, clean_up_tokenization_spaces=False)
