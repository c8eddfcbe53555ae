"""The demo's specifications as they were chosen and committed: tasks.jsonl, and families.jsonl, which records how.

Families are split by what the base model can code when the style rule is off, and by a seed; never by an adapter's
result. benchmarks/select_families.py made both files, once.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import msgspec

from guardlearn.errors import UsageError
from guardlearn.types import Side, Specification

__all__ = ["FAMILIES_FILE", "TASKS_FILE", "selection_record", "specifications"]

FAMILIES_FILE = "families.jsonl"
"""First line: how the choice was made; then one line a candidate family with its rate and its side."""
TASKS_FILE = "tasks.jsonl"
"""The chosen families' specifications, one a line, as `guardlearn collect` reads them."""

_SWAPPED = {Side.TRAIN: Side.HELD_OUT, Side.HELD_OUT: Side.TRAIN}


def specifications(side: Side | str, swap: bool = False) -> list[Specification]:
    """Return the demo's specifications of one side, grouped by family.

    Args:
        side: train, validation or held_out.
        swap: exchange the training and the held-out families.

    Raises:
        UsageError: no such side.
    """
    try:
        wanted = Side(side)
    except ValueError:
        wanted = Side.SET_ASIDE
    if wanted is Side.SET_ASIDE:
        raise UsageError(f"the demo has no side {str(side)!r}; allowed: train, validation, held_out")
    if swap:
        wanted = _SWAPPED.get(wanted, wanted)
    _, families = selection_record()
    groups = {family["family"] for family in families if family["side"] == wanted.value}
    decoder = msgspec.json.Decoder(Specification)
    tasks = [decoder.decode(line) for line in _lines(TASKS_FILE)]
    return [task for task in tasks if task.group in groups]


def selection_record() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return how the families were chosen, and each candidate: {"family", "category", "passed", "sampled", "side"}."""
    record, *families = [json.loads(line) for line in _lines(FAMILIES_FILE)]
    return record, families


def _lines(name: str) -> list[str]:
    return (resources.files(__package__) / name).read_text(encoding="utf-8").splitlines()
