"""What an ablation leaves in its folder, each file whole or not at all: the plan, costs, trainings, records.

    plan.json                what decides everything that follows
    costs/ARM.json           what a step of an arm costs, until all are known
    time.json                the wall time of a training, and the steps of each arm that it holds
    trained/ARM-SEED/job/    a training; trained/ARM-SEED.json once it is done
    records/ARM-SEED.json    what chains of the trained model came to

A record says which plan and which steps it is of, and holds nothing that differs between equal runs: no time, no host.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from guardlearn.ablation.timing import Cost
from guardlearn.digests import digest_json, digest_text
from guardlearn.errors import DataError, UsageError
from guardlearn.evidence import Outcome

__all__ = [
    "FORMAT",
    "Allotment",
    "ChainOutcome",
    "Record",
    "Trained",
    "begun_plan",
    "check_same",
    "file_name",
    "keep_plan",
    "read_kept",
    "record_of",
    "write_kept",
]

FORMAT = 1
"""Of the plan; another one is refused."""

_PLAN = "plan.json"
_NAME_LETTERS = 40
_T = TypeVar("_T")


class ChainOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one chain went."""

    spec: str
    sample: int
    group: str
    outcome: Outcome


class Allotment(msgspec.Struct, frozen=True, kw_only=True):
    """What each training gets."""

    of: str
    """Digest of the plan."""
    seconds: float
    """Wall time, start included."""
    steps: dict[str, list[int]]
    """Of each stage, by arm."""
    costs: dict[str, Cost]
    """By arm."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What one training of an arm, or the untrained model, came to."""

    of: str
    """Digest of plan, arm, seed and steps."""
    steps: list[int]
    """Of each stage; [] for the untrained model."""
    pairing: str
    """What its chains share with those of other records: "common random numbers", or "specification"."""
    chains: list[ChainOutcome]


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What a training left beside its adapter."""

    of: str
    steps: list[int]
    rows: list[int]
    """Of each stage."""
    passes: list[float]
    """Over them."""
    wall_seconds: float | None
    """None: it was interrupted, so no clock saw the whole of it."""
    loss: dict[str, float] | None


def record_of(plan_digest: str, arm: str, seed: int | None, steps: list[int]) -> str:
    """Return what a record is bound to."""
    return digest_json([plan_digest, arm, seed, steps])


def file_name(arm: str, seed: int | None = None) -> str:
    """Return the name that an arm's files go by: readable, and its own whatever stands in it."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", arm).strip("_")[:_NAME_LETTERS]
    own = "" if readable == arm.lower() else f"-{digest_text(arm)[:8]}"  # some file systems know no upper case
    return f"{readable}{own}" if seed is None else f"{readable}{own}-{seed}"


def read_kept(path: Path, kind: type[_T], of: str | None = None) -> _T | None:
    """Return what a file holds, None where there is none.

    Args:
        path: the file.
        kind: a struct.
        of: what it must be bound to; None: anything.

    Raises:
        DataError: it holds something else.
        UsageError: it is of another ablation.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not what an ablation left ({error}); remove it, then it is made again") from None
    if of is not None and getattr(found, "of", None) != of:
        raise UsageError(f"{path} is of another ablation; choose another folder with -o, or remove {path.parent}")
    return found


def write_kept(path: Path, content: Any) -> None:
    """Write a struct or a mapping as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(msgspec.to_builtins(content), indent=1, sort_keys=True)  # msgspec refuses lone surrogates
    staged.write_text(text + "\n", encoding="ascii")
    staged.replace(path)


def begun_plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan of the ablation that was begun in a folder, None where none was.

    Raises:
        DataError: a plan that this guardlearn cannot go on with.
    """
    path = folder / _PLAN
    if not path.is_file():
        return None
    try:
        begun: dict[str, Any] = json.loads(path.read_bytes())
        if begun["format"] == FORMAT and int(begun["seq"]) >= 0 and datetime.fromisoformat(begun["now"]).tzinfo:
            return begun
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path} is no plan of an ablation that this guardlearn can go on with; choose another folder")


def check_same(folder: Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with another plan than an ablation was begun with.

    Raises:
        UsageError: naming what differs.
    """
    differ = [key for key in sorted(begun.keys() | now.keys()) if begun.get(key) != now.get(key)]
    if differ:
        shown = ", ".join(_difference(key, begun.get(key), now.get(key)) for key in differ)
        raise UsageError(f"{folder} holds another ablation ({shown}); choose another folder with -o, or remove it")


def keep_plan(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the plan of a new ablation."""
    write_kept(folder / _PLAN, content)


def _difference(key: str, there: Any, here: Any) -> str:
    """Return how two plans differ in a key, down to the first value that does."""
    while isinstance(there, dict) and isinstance(here, dict):
        inner = next(name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name))
        key, there, here = f"{key}: {inner}", there.get(inner), here.get(inner)
    return f"{key} {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
