"""ℛ only grows: the database refuses changes, and `verify` names what was changed behind its back."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from guardlearn.dag import ArtifactDAG, checkpoints
from guardlearn.dag.tables import metadata
from guardlearn.predicates import redacted
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem

SECRET = "the secret of artifact one"


def attempt(item_id: str, parent: str | None, state: str, **fields) -> RepositoryItem:
    content = {
        "id": item_id,
        "parent_id": parent,
        "status": ArtifactStatus(state),
        "artifact": f"artifact {item_id}",
        "feedback": "no",
        "specification": f"spec {item_id[0]}",
        "group": item_id[0],
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "metadata": {"k": 1},
    }
    return RepositoryItem(**{**content, **fields})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ℛ with chains, a missing parent, a stored history, events, pins, readings and training checkpoints."""
    seen = (FeedbackEntry(artifact=SECRET, feedback="no", item_id="a1"),)
    target = tmp_path_factory.mktemp("promises") / "runs.db"
    with ArtifactDAG.create(target) as dag:
        dag.assign_side("z", "train")
        dag.append_many(
            [
                attempt("a1", None, "rejected", artifact=SECRET),
                attempt("a2", "a1", "rejected"),
                attempt("a3", "a2", "accepted"),
                attempt("b1", "gone", "accepted", seen_history=seen),
                attempt("c1", None, "accepted"),
            ]
        )
        dag.append_event("a2", "review", actor="me", reason="looked", value="v")
        dag.append_event("c1", "status", value="superseded")
        dag.record_reading("adapter", dag.sides_digest(), 2, "demo")
        dag.record_reading("adapter", dag.sides_digest(), 2, "evaluate")
        about = {"seq": 5, "adapter": "out/1", "adapter_digest": "d1", "parent_adapter": ""}
        with dag.writing() as connection:
            checkpoints.append(connection, "me", {"a3": b"x"}, about | {"traces_processed": 1})
            checkpoints.append(connection, "me", {"c1": b"y"}, about | {"traces_processed": 2})
        assert dag.verify().problems == []
    return target


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(template, tmp_path))


def problems(path: Path) -> list[str]:
    with ArtifactDAG.load(path) as dag:
        return dag.verify().problems


IMMUTABLE = "items events bodies texts specifications pinned_groups readings checkpoints trained meta".split()


@pytest.mark.parametrize("table", IMMUTABLE)
def test_the_database_refuses_every_change(path: Path, table: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    keys = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[5]]
    key, unique = keys[0], ", ".join(keys)
    first = connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    values = ", ".join("?" * len(columns))
    changed = columns[1] if table != "specifications" else "side"
    statements = [
        (f"UPDATE {table} SET {changed} = 'x'", ()),
        (f"UPDATE OR REPLACE {table} SET {key} = {key}, {changed} = 'x'", ()),
        (f"DELETE FROM {table}", ()),
        (f"INSERT INTO {table} VALUES ({values})", first),
        (f"INSERT OR REPLACE INTO {table} VALUES ({values})", first),
        (f"REPLACE INTO {table} VALUES ({values})", first),
        (
            f"INSERT INTO {table} VALUES ({values}) "
            f"ON CONFLICT ({unique}) DO UPDATE SET {changed} = excluded.{changed}",
            first,
        ),
    ]
    if table in ("items", "texts"):  # a second unique key must not open the back door
        statements.append((f"REPLACE INTO {table} VALUES ({values})", (10_000, *first[1:])))
    for statement, parameters in statements:
        with pytest.raises(sqlite3.IntegrityError, match=f"append-only: {table}"):
            connection.execute(statement, parameters)
    connection.close()
    assert problems(path) == []


def test_bodies_are_blanked_by_redact_only(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.IntegrityError, match="only redact blanks"):
        connection.execute("UPDATE bodies SET artifact = x''")
    connection.close()
    with ArtifactDAG.load(path) as dag:
        dag.redact("a1", "me", "a password")
        assert dag.get_item("a1").artifact == dag.get_item("a1").feedback == ""
        assert dag.get_item("a3").history[0].artifact == ""
        assert dag.get_item("b1").history == ()  # its stored history quoted the text
        assert dag.get_item("b1").artifact == "artifact b1"
        assert {item.id for item in dag.extract(redacted())} == {"a1", "b1"}
        report = dag.verify()
        assert (report.problems, report.redacted) == ([], 1)
    assert SECRET.encode() not in path.read_bytes()
    connection = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.IntegrityError, match="only redact blanks"):
        connection.execute("UPDATE bodies SET artifact = 'forged' WHERE seq = 1")
    connection.close()


def tamper(path: Path, change: Callable[[sqlite3.Connection], None]) -> list[str]:
    """Change the file as somebody with the triggers out of the way could, and verify."""
    connection = sqlite3.connect(path, isolation_level=None)
    kept = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in kept:
        connection.execute(f"DROP TRIGGER {name}")
    change(connection)
    for _, statement in kept:
        connection.execute(statement)
    connection.close()
    return problems(path)


UNCHECKED = {"cluster", "signature"}  # may be relabelled and recomputed
CELLS = [
    (table.name, column.name)
    for table in metadata.sorted_tables
    if not table.name.startswith("side_") and table.name != "meta"  # whose damage is refused on opening
    for column in table.columns
    if column.name not in UNCHECKED
]


@pytest.mark.parametrize(("table", "column"), CELLS, ids=[".".join(cell) for cell in CELLS])
def test_an_altered_cell_is_found(path: Path, table: str, column: str) -> None:
    def change(connection: sqlite3.Connection) -> None:
        (old,) = connection.execute(f"SELECT {column} FROM {table} ORDER BY rowid LIMIT 1").fetchone()
        if isinstance(old, bytes):
            new: object = bytes([old[0] ^ 1]) + old[1:] if old else b"[]"
        else:
            new = 1 - old if old in (0, 1) else old + 1 if isinstance(old, int) else f"{old}x"
            new = 77 if column in ("seq", "key", "number") else new
        rowid = connection.execute(f"SELECT rowid FROM {table} ORDER BY rowid LIMIT 1").fetchone()[0]
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, rowid))

    assert tamper(path, change)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)", "rows were written but the last one"),
        ("DELETE FROM items WHERE id = 'c1'", "is missing"),
        ("DELETE FROM items WHERE id LIKE 'a%'", "seq 1 to 3 is missing"),
        ("DELETE FROM bodies WHERE seq = 2", "its texts are missing"),
        ("DELETE FROM facts WHERE seq = 2", "has no derived row"),
        ("DELETE FROM readings WHERE number = 2", "2 readings were noted but 1 are here"),
        ("DELETE FROM specifications WHERE spec_group = 'c'", "sides were assigned but"),
        ("DELETE FROM pinned_groups", "sides were assigned but"),
        ("UPDATE meta SET value = 'other' WHERE name = 'side_salt'", "running digest"),
        ("UPDATE items SET parent_id = 'c1' WHERE id = 'a2'", "item 'a2' (seq 2): its row or its parent was altered"),
    ],
)
def test_what_is_missing_or_moved_is_named(path: Path, statement: str, says: str) -> None:
    found = tamper(path, lambda connection: connection.execute(statement))
    assert any(says in problem for problem in found), found


def test_missing_triggers_are_named(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER items_refuse_delete")
    connection.commit()
    connection.close()
    assert problems(path) == ["database: trigger items_refuse_delete is missing or altered"]


def test_facts_are_rebuilt_whatever_happened_to_them(path: Path) -> None:
    with ArtifactDAG.load(path) as dag:
        before = list(dag.extract())
    found = tamper(path, lambda c: c.execute("UPDATE facts SET rejected_ancestors = 7, root_seq = 1, broken = 1"))
    assert any("rebuild_facts()" in problem for problem in found)
    with ArtifactDAG.load(path) as dag:
        dag.rebuild_facts()
        assert list(dag.extract()) == before
        assert dag.verify().problems == []


def test_damaged_pages_are_reported_not_raised(path: Path) -> None:
    size = path.stat().st_size
    content = bytearray(path.read_bytes())
    for position in range(16384, size, 1000):
        content[position] ^= 0xFF
    path.write_bytes(content)
    assert problems(path)
