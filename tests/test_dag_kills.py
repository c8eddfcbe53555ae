"""kill -9 at twenty seeded moments: ℛ opens, is whole, holds what was acknowledged, and importing again completes it.

`prove/kills.py` does it more than two hundred times.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import killing
from databases import Place

STORE = Path(__file__).parent / "data" / "stores" / "fs_2_39_1"


@pytest.fixture(scope="module")
def nursery() -> Iterator[killing.Nursery]:
    with killing.nursery() as made:
        yield made


def test_a_killed_writer_loses_nothing_acknowledged(installed: Place, nursery: killing.Nursery, tmp_path: Path) -> None:
    seen = killing.kill_writers(nursery, installed.target, tmp_path, seed=1, kills=5, seconds=0.4)
    assert seen["killed"] == 5
    assert seen["acknowledged"] > 0


@pytest.mark.parametrize(("kind", "grown"), [("log", True), ("store", False)])
def test_a_killed_import_leaves_all_or_nothing_and_goes_through_again(
    nursery: killing.Nursery, tmp_path: Path, kind: str, grown: bool
) -> None:
    part, whole = killing.log_import(tmp_path, 600) if kind == "log" else killing.store_import(tmp_path, STORE)
    chance = random.Random(2)
    killed = killing.Import(nursery, tmp_path / "import", part if grown else [], whole)
    seen = Counter[str]()
    while seen["killed"] < 5:
        seen += killed.kill(str(seen.total()), chance)
