"""Whether a candidate can answer differently at all, decided without sampling, and said exactly.

"Unchanged" is said in two cases only: every weight is the same bit for bit, or not one log-probability differs on any
of the prompts. A small difference is a difference: what it is worth, the sampled answers show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec

from guardlearn.digests import digest_files
from guardlearn.forgetting.scoring import Adapter, Row, Scorer, compared, obstacle
from guardlearn.generators.server import served
from guardlearn.prompts import encode_prompt
from guardlearn.training.saving import ADAPTER_CONFIG, WEIGHTS
from guardlearn.types import Generator

__all__ = ["Change", "compare_outputs"]

_LOOKED_AT = 8
"""Positions of a prompt whose distributions are compared, the last ones: each has seen all before it."""
_AT_FIRST = 4
"""Prompts that usually show a difference; the others are looked at only where these do not."""

Prompt = Sequence[Mapping[str, str]]
"""Chat messages."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a candidate differs from what is live."""

    changed: bool
    """True also where nothing could be compared."""
    checked: str
    """What was compared, and what was found."""


def compare_outputs(generator: Generator, incumbent: Adapter, candidate: Adapter, prompts: Sequence[Prompt]) -> Change:
    """Return whether the candidate's outputs can differ from the incumbent's; the bare base is left in use.

    Args:
        generator: one that gives probabilities; of another only the adapters' files are compared.
        incumbent: what is live; None: the bare base.
        candidate: the adapter in question.
        prompts: of the tasks it is for; no verdict is looked at.
    """
    what = "the base" if incumbent is None else "what is live"
    if _content(candidate) == _content(incumbent):
        added = "each of its LoRA products is zero" if _content(candidate) == "" else "its files are the same"
        return Change(changed=False, checked=f"{added}: it is {what}, bit for bit")
    if reason := obstacle(generator):
        return Change(changed=True, checked=f"not compared before sampling: {reason}")
    try:
        return _compare(cast(Scorer, generator), incumbent, candidate, prompts, what)
    finally:
        generator.use_adapter(None)


def _compare(generator: Scorer, incumbent: Adapter, candidate: Adapter, prompts: Sequence[Prompt], what: str) -> Change:
    generator.use_adapter(candidate)
    ours = generator.weights_digest()
    generator.use_adapter(incumbent)
    if ours == generator.weights_digest():
        return Change(changed=False, checked=f"merged, every weight is that of {what}, bit for bit")
    rows = [_row(generator, prompt) for prompt in prompts]
    if not rows:
        return Change(changed=True, checked=f"merged, its weights differ from those of {what}")
    for part in (rows[:_AT_FIRST], rows[_AT_FIRST:]):
        largest, differs = 0.0, False
        for pair in compared(generator, incumbent, candidate, part):
            if not bool((pair.first_TV == pair.second_TV).all()):
                differs = True
                largest = max(largest, float((pair.first_TV - pair.second_TV).abs().max()))
        if differs:
            found = f"log-probabilities of next tokens differ from those of {what} by up to {largest:.2g}"
            return Change(changed=True, checked=f"on {len(part)} prompts {found}")
    found = f"not one log-probability of a next token differs from those of {what}"
    return Change(changed=False, checked=f"its weights differ, yet on {len(rows)} prompts {found}")


def _row(generator: Scorer, prompt: Prompt) -> Row:
    tokens = encode_prompt(generator.tokenizer, prompt)[-generator.context :]
    return tokens, max(0, len(tokens) - _LOOKED_AT)


def _content(adapter: Adapter) -> str:
    """Return what an adapter adds to the base, as far as its files tell: "" for nothing."""
    if adapter is None:
        return ""
    name, folder = served(adapter)
    if folder is None or not (folder / WEIGHTS).is_file():
        return f"name {name}"
    return "" if _adds_nothing(folder) else digest_files(folder, WEIGHTS, ADAPTER_CONFIG)


def _adds_nothing(folder: Path) -> bool:
    """Whether an adapter is plain LoRA with A or B zero in every pair; False where its files cannot be read.

    Read without the libraries, for servers may be asked from machines that have none: the header of a safetensors file
    is 8 bytes of length and JSON.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
            return False
        if any(config.get(name) for name in ("use_dora", "modules_to_save", "lora_bias")):
            return False
        zero = _zero_tensors(folder / WEIGHTS)
        ends = (".lora_A.weight", ".lora_B.weight")
        modules = {name.removesuffix(end) for name in zero for end in ends if name.endswith(end)}
        whole = 2 * len(modules) == len(zero)  # nothing but pairs
        return whole and all(any(zero.get(module + end, False) for end in ends) for module in modules)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _zero_tensors(path: Path) -> dict[str, bool]:
    """Return, by name, whether every byte of a tensor is 0."""
    zero = {}
    whole = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(size, whole)))
        for name, about in header.items():
            if name == "__metadata__":
                continue
            begin, end = about["data_offsets"]
            if not 0 <= begin <= end <= whole - size - 8:
                raise ValueError(f"tensor {name} lies outside the file")
            file.seek(8 + size + begin)
            zero[name] = file.read(end - begin).count(0) == end - begin
    return zero
