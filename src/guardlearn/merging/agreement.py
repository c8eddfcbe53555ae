"""Whether two models answer alike: greedy continuations of probe prompts, and the logits along them.

One model is the reference: the others read its continuations, so that every position is compared under the same
context (teacher forcing) and a difference is never the echo of an earlier one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from guardlearn.errors import UsageError
from guardlearn.prompts import as_messages, encode_prompt, special_tokens

__all__ = [
    "PROBES",
    "Agreement",
    "Prompt",
    "Reference",
    "compare",
    "continuations",
    "encode_prompts",
    "largest_difference",
    "logits",
]

Prompt = str | Sequence[Mapping[str, str]]
"""A user's message, or a chat."""

Each = Callable[[str, Iterable[Any]], Iterable[Any]]
"""Hands values through and counts them under a note."""

_ROWS = 5  # continued at once: few enough to keep progress moving
_NEW_TOKENS = 32

_SYSTEM = "You are a Python programmer. Reply with code only."
PROBES: tuple[Prompt, ...] = (
    "Write a Python function that returns the sum of two integers, with type hints and a docstring.",
    "Write a Python function `is_even(n: int) -> bool`.",
    "Write a SQL query that counts the orders of each customer in 2024, largest first.",
    "Write a shell command that lists the ten largest files below the current folder.",
    "What does this do?\n\n```python\nprint(sorted({3, 1, 2})[-1])\n```",
    "Fix the bug:\n\n```python\ndef mean(values):\n    return sum(values) / len(value)\n```",
    'Complete this JSON so that it is valid: {"name": "Ada", "languages": ["English",',
    "Write a regular expression for a date such as 2024-03-09.",
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Summarise: The meeting moved to Tuesday because the room was taken. Bring the figures for March.",
    "Translate into German: Good morning, how are you today?",
    "List three uses of a paper clip.",
    "What is 17 times 23? Think step by step.",
    "Write a haiku about an old harbour in winter.",
    "Rewrite politely: Send me the report now.",
    [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": "Write the function `def largest(values: list[int]) -> int:`."},
    ],
    [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": "Write `slug(title: str) -> str`.\n\nThe docstring is missing."},
    ],
    [
        {"role": "user", "content": "My name is Ravi and I grow tomatoes."},
        {"role": "assistant", "content": "Nice to meet you, Ravi. How are the tomatoes doing?"},
        {"role": "user", "content": "The leaves turn yellow. What is my name, and what can I do?"},
    ],
    [
        {"role": "user", "content": "Give me a number between 1 and 10."},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "Double it and explain."},
    ],
)
"""Twenty prompts: code, text, chat."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How near a model is to base + adapter; differences are the largest absolute ones of float32 logits."""

    prompts: int
    positions: int
    """Tokens of base + adapter's greedy continuations, at most 32 a prompt."""
    adapter_difference: float
    """From base + adapter."""
    base_difference: float
    """From the bare base."""
    expected_difference: float
    """From what the model was to be."""
    identical_continuations: int
    """Prompts that it continues as base + adapter does, to the last token."""
    greedy_agreement: float
    """Share of positions at which its argmax is base + adapter's."""
    flips: int
    """Positions at which it is not."""
    largest_flipped_margin: float
    """Most by which base + adapter prefers a token that was flipped over its second; 0 without flips."""
    disagreements: int
    """Flips where that margin exceeds the largest difference expected at the position. The others lie within it: a
    difference of the expected size may tip them either way."""


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A model's own greedy answers."""

    prompts: list[list[int]]
    """Token ids."""
    continuations: list[list[int]]
    """Token ids, the end token included where one came."""
    logits: list[Any]
    """Of every continuation: (tokens, vocabulary), float32, in main memory."""


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return each prompt's token ids under the model's own chat template.

    Raises:
        UsageError: no prompt.
    """
    if isinstance(prompts, str) or not prompts:
        raise UsageError(f"prompts are {prompts!r:.40}; give a list of at least one text or chat")
    special = special_tokens(tokenizer)
    return [encode_prompt(tokenizer, as_messages(prompt, special)) for prompt in prompts]


def continuations(model: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> Iterator[list[int]]:
    """Yield, prompt by prompt, up to 32 greedy tokens, the end token included.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: token ids.
    """
    import torch

    ends = _end_tokens(model, tokenizer)
    for first in range(0, len(prompts), _ROWS):
        rows = prompts[first : first + _ROWS]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[ends[0]] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        with torch.inference_mode(), _greedy(model, ends):
            answers = model.generate(input_ids=ids, attention_mask=mask)[:, longest:].tolist()
        for answer in answers:
            end = next((place for place, token in enumerate(answer) if token in ends), len(answer) - 1)
            yield answer[: end + 1]


def logits(model: Any, prompts: Sequence[list[int]], after: Sequence[list[int]]) -> Iterator[Any]:
    """Yield, prompt by prompt, the logits that predict each token of its continuation.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids.
        after: each prompt's continuation.

    Yields:
        (tokens, vocabulary), float32, in main memory.
    """
    import torch

    for prompt, tokens in zip(prompts, after, strict=True):
        ids = torch.tensor([[*prompt, *tokens[:-1]]], device=model.device)
        with torch.inference_mode():
            rows = model(input_ids=ids, use_cache=False).logits[0, -len(tokens) :]
        yield rows.float().cpu()


def largest_difference(some: Sequence[Any], others: Sequence[Any]) -> float:
    """Return the largest absolute difference between two models' logits, prompt by prompt; NaN where either is."""
    import torch

    return float(torch.stack([(one - other).abs().max() for one, other in zip(some, others, strict=True)]).max())


def compare(
    model: Any, tokenizer: Any, reference: Reference, bare: Sequence[Any], expected: Sequence[Any], each: Each
) -> Agreement:
    """Compare a model with base + adapter.

    Args:
        model: a causal language model that computes in float32, in evaluation mode.
        tokenizer: its tokenizer.
        reference: base + adapter.
        bare: the bare base's logits along the reference.
        expected: the logits that the model was to have there.
        each: hands values through, for progress.
    """
    import torch

    flips, disagreements, margin = 0, 0, 0.0
    differences = []
    found = each("saved model", logits(model, reference.prompts, reference.continuations))
    for rows, own, plain, due in zip(found, reference.logits, bare, expected, strict=True):
        differences.append([largest_difference([rows], [other]) for other in (own, plain, due)])
        first, second = own.topk(2, dim=-1).values.unbind(-1)
        flipped = rows.argmax(-1) != own.argmax(-1)
        margins = (first - second)[flipped]
        flips += len(margins)
        margin = max([margin, *margins.tolist()])
        disagreements += int((margins > (due - own).abs().amax(-1)[flipped]).sum())
    after = each("saved model", continuations(model, tokenizer, reference.prompts))
    adapter, base, wanted = torch.tensor(differences).amax(0).tolist()  # unlike Python's max, it keeps a NaN
    positions = sum(len(tokens) for tokens in reference.continuations)
    return Agreement(
        prompts=len(reference.prompts),
        positions=positions,
        adapter_difference=adapter,
        base_difference=base,
        expected_difference=wanted,
        identical_continuations=sum(one == own for one, own in zip(after, reference.continuations, strict=True)),
        greedy_agreement=1 - flips / positions,
        flips=flips,
        largest_flipped_margin=margin,
        disagreements=disagreements,
    )


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return sorted({end for end in (*several, tokenizer.eos_token_id) if end is not None})


@contextlib.contextmanager
def _greedy(model: Any, ends: list[int]) -> Iterator[None]:
    """Set the model's own generation settings aside: they may hold penalties, which are not its argmax."""
    from transformers import GenerationConfig

    kept = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=_NEW_TOKENS, eos_token_id=ends, pad_token_id=ends[0]
    )
    try:
        yield
    finally:
        model.generation_config = kept
