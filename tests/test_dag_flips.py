"""A flipped byte in a closed repository file is refused, reported, or carries no meaning: it never differs silently.

`prove/flips.py` flips thousands. Seeded: the same bytes every time.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

import flipping
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import RepositoryError

HEADER, CELLS = 18, 42


@pytest.fixture(scope="module")
def flips(tmp_path_factory: pytest.TempPathFactory) -> flipping.Flipping:
    path = tmp_path_factory.mktemp("flips") / "runs.db"
    flipping.fill(path, items=80)
    return flipping.Flipping(path)


@pytest.mark.slow
def test_a_flipped_byte_is_found_or_means_nothing(flips: flipping.Flipping) -> None:
    chance = random.Random(11)
    every = list(flipping.places(flips.content, chance, by_page=4))
    by_kind: dict[str, list[int]] = {}
    for kind, offset in every:
        by_kind.setdefault(kind, []).append(offset)
    assert by_kind.keys() >= {"header", "schema page", "table leaf", "index leaf", "overflow", "table interior"}
    assert by_kind.keys() >= {"index interior", "free trunk", "free leaf"}
    chosen = [("header", offset) for offset in chance.sample(by_kind.pop("header"), HEADER)]
    while len(chosen) < HEADER + CELLS:
        chosen += [(kind, chance.choice(offsets)) for kind, offsets in by_kind.items() if not kind.startswith("free")]
    seen = Counter[str]()
    for kind, offset in chosen:
        outcome, said = flips.outcome(offset, flipping.flipped(flips.content[offset], chance))
        assert outcome != flipping.SILENT, (kind, offset, said)
        seen[outcome] += 1
    assert seen[flipping.REFUSED] >= 5
    assert seen[flipping.REPORTED] >= 20


def test_a_flipped_byte_in_any_index_is_reported(flips: flipping.Flipping) -> None:
    """The last byte of an index's page is part of its first entry, wherever it has one."""
    size = int.from_bytes(flips.content[16:18], "big")
    with contextlib.closing(sqlite3.connect(flips.path)) as connection:
        query = "SELECT name, rootpage FROM sqlite_master WHERE type = 'index' ORDER BY name"
        pages = dict(connection.execute(query).fetchall())
    leaves = {name: page for name, page in pages.items() if flips.content[(page - 1) * size] == 10}
    used = {name: page for name, page in leaves.items() if flips.content[page * size - 1]}
    assert used.keys() >= {"facts_root", "facts_selection", "events_item", "items_created_at", "specifications_group"}
    for name, page in used.items():
        offset = page * size - 1
        outcome, said = flips.outcome(offset, flips.content[offset] ^ 1)
        assert outcome == flipping.REPORTED, (name, outcome, said)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"UPDATE ON checkpoints BEGIN", b"UPD\xf4TE ON checkpoints BEGIN"),  # no UTF-8, which the driver expects
        (b"CREATE TABLE items", b"CREATE TABLE itemz"),
        (b"SQLite format 3", b"SQLite format 4"),
    ],
)
def test_damage_to_the_schema_is_found(flips: flipping.Flipping, tmp_path: Path, before: bytes, after: bytes) -> None:
    assert before in flips.content
    path = tmp_path / "runs.db"
    path.write_bytes(flips.content.replace(before, after[: len(before)], 1))
    try:
        with ArtifactDAG.load(path) as dag:
            assert dag.verify().problems
    except RepositoryError as error:
        assert "damaged" in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("table", "change"),
    [("items", "fatal = 3 * fatal"), ("bodies", "artifact = CAST(artifact AS TEXT)")],
)
def test_a_value_of_another_kind_is_reported(flips: flipping.Flipping, tmp_path: Path, table: str, change: str) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(flips.content)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"DROP TRIGGER IF EXISTS {table}_refuse_update")
        connection.execute(f"UPDATE {table} SET {change}")
    with ArtifactDAG.load(path) as dag:
        found = dag.verify().problems
    assert any(f"table {table}: " in line and "not of its column's kind" in line for line in found), found


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE specifications SET cluster = '~0123456789ab' WHERE spec_group = ''", "the cluster of specification"),
        ("UPDATE specifications SET cluster = 'g0' WHERE spec_group = 'g1'", "the cluster of specification"),
        ("UPDATE specifications SET signature = zeroblob(512) WHERE key = 1", "signature of specification 1 was"),
        ("UPDATE specifications SET signature = NULL WHERE spec_group = ''", "signature of specification 1 was"),
        ("UPDATE side_bands SET value = value + 1 WHERE band = 7 AND key = 2", "index is wrong about specification 2"),
        ("DELETE FROM side_bands WHERE band = 41 AND key = 3", "index lacks specification 3"),
        ("INSERT INTO side_bands VALUES (42, 1, 1)", "a band that is none"),
        ("UPDATE side_index SET common = x'01020304'", "signature of specification"),
        ("UPDATE side_index SET scheme = 'another'", "the scheme of the near-duplicate index was altered"),
        ("UPDATE side_index SET specs = 1000000", "the settings of the near-duplicate index were altered"),
        ("DELETE FROM side_index", "the settings of the near-duplicate index are missing"),
    ],
)
def test_what_decides_the_sides_to_come_is_checked(
    flips: flipping.Flipping, tmp_path: Path, statement: str, says: str
) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(flips.content)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)
    with ArtifactDAG.load(path) as dag:
        found = dag.verify().problems
    assert any(says in line for line in found), found
