"""ℛ only grows: the database refuses changes, and `verify` names what was changed behind its back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from databases import Files, Place, Server
from guardlearn.dag import ArtifactDAG, checkpoints, imports, rounds
from guardlearn.dag.tables import bodies, head, metadata
from guardlearn.predicates import item, redacted
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
def template(databases: Files | Server) -> Iterator[Place]:
    """ℛ with chains, a missing parent, a stored history, events, pins, readings, checkpoints, rounds and an import."""
    seen = (FeedbackEntry(artifact=SECRET, feedback="no", item_id="a1"),)
    with databases.installed() as place:
        fill(place, seen)
        yield place


def fill(place: Place, seen: tuple[FeedbackEntry, ...]) -> None:
    with ArtifactDAG.load(place.target) as dag:
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
            learned(connection)
            imports.record(
                connection, "a store", imports.ImportReport(read=5, new=5, unchanged=0, faults=[], unknown={})
            )
        assert dag.verify().problems == []


def learned(connection: sa.Connection) -> None:
    """A round that was promoted, and one that was refused."""
    for state in ("planned", "extracted", "trained", "measured", "promoted"):
        rounds.append(connection, "me", 1, rounds.State(state), {"of": state})
    rounds.promote(
        connection, "me", action="promote", adapter="out/1", adapter_digest="d1", actor="me", reason="", round_=1
    )
    rounds.append(connection, "me", 2, rounds.State.PLANNED, {})
    rounds.append(connection, "me", 2, rounds.State.REFUSED, {"why": "nothing new"})
    rounds.promote(connection, "me", action="rollback", adapter="", adapter_digest="", actor="me", reason="slow")


@pytest.fixture
def filled(databases: Files | Server, template: Place) -> Iterator[Place]:
    with databases.copy(template) as place:
        yield place


def problems(place: Place) -> list[str]:
    with ArtifactDAG.load(place.target) as dag:
        return dag.verify().problems


IMMUTABLE = (
    "items events bodies texts specifications pinned_groups readings checkpoints trained rounds promotions imports meta"
).split()


@pytest.mark.slow
@pytest.mark.parametrize("name", IMMUTABLE)
def test_the_database_refuses_every_change(filled: Place, name: str) -> None:
    table = metadata.tables[name]
    column = table.c.side if name == "specifications" else list(table.columns)[1]
    changed = {column.name: another(column, None)}
    with filled.behind() as connection:
        first = dict(connection.execute(sa.select(table).limit(1)).mappings().one())
        statements: list[Any] = [
            sa.update(table).values(changed),
            sa.delete(table),
            sa.insert(table).values(first),
            upsert(connection, table)
            .values(first)
            .on_conflict_do_update(index_elements=table.primary_key, set_=changed),
        ]
        if filled.is_file:
            statements += [
                sa.update(table).prefix_with("OR REPLACE").values(changed),
                sa.insert(table).prefix_with("OR REPLACE").values(first),
            ]
            if name in ("items", "texts", "rounds"):  # a second unique key must not open the back door
                again = first | {column.name: 10_000 for column in table.primary_key}
                statements.append(sa.insert(table).prefix_with("OR REPLACE").values(again))
        else:
            statements += [sa.text(f"TRUNCATE {name}"), sa.text(f"TRUNCATE facts, {name} RESTART IDENTITY CASCADE")]
        for statement in statements:
            with pytest.raises(sa.exc.IntegrityError, match=f"append-only: {name}|duplicate key value"):
                connection.execute(statement)
    assert problems(filled) == []


def upsert(connection: sa.Connection, table: sa.Table) -> Any:
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def another(column: sa.Column[Any], old: Any) -> Any:
    """Return a value that a column does not hold."""
    if isinstance(column.type, sa.LargeBinary):
        return bytes([old[0] ^ 1]) + old[1:] if old else b"[]"
    if isinstance(column.type, sa.Boolean):
        return not old
    if isinstance(column.type, sa.BigInteger | sa.Integer):
        return 77 if column.name in ("seq", "key", "number") or old is None else 1 - old if old in (0, 1) else old + 1
    return f"{old}x"


def test_bodies_are_blanked_by_redact_only(filled: Place) -> None:
    def forge(**values: bytes) -> None:
        with (
            filled.behind() as connection,
            pytest.raises(sa.exc.IntegrityError, match="append-only: bodies only redact blanks"),
        ):
            connection.execute(sa.update(bodies).where(bodies.c.seq == 1).values(values))

    forge(artifact=b"")
    with ArtifactDAG.load(filled.target) as dag:
        dag.redact("a1", "me", "a password")
        assert dag.get_item("a1").artifact == dag.get_item("a1").feedback == ""
        assert dag.get_item("a3").history[0].artifact == ""
        assert dag.get_item("b1").history == ()  # its stored history quoted the text
        assert dag.get_item("b1").artifact == "artifact b1"
        assert {item.id for item in dag.extract(redacted())} == {"a1", "b1"}
        report = dag.verify()
        assert (report.problems, report.redacted) == ([], 1)
    if filled.is_file:
        assert SECRET.encode() not in Path(filled.target).read_bytes()
    forge(artifact=b"forged")


def test_heads_never_go_back(filled: Place) -> None:
    with filled.behind() as connection:
        for statement in (sa.update(head).values(seq=0), sa.update(head).values(name="x"), sa.delete(head)):
            with pytest.raises(sa.exc.IntegrityError, match="append-only: head"):
                connection.execute(statement)


def tamper(place: Place, *statements: Any) -> list[str]:
    """Change the database as somebody with the triggers out of the way could, and verify."""
    with place.without_triggers() as connection:
        for statement in statements:
            connection.execute(statement)
    return problems(place)


UNCHECKED = {"cluster", "signature"}  # may be relabelled and recomputed
CELLS = [
    (table.name, column.name)
    for table in metadata.sorted_tables
    if not table.name.startswith("side_") and table.name != "meta"  # whose damage is refused on opening
    for column in table.columns
    if column.name not in UNCHECKED
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "column"), CELLS, ids=[".".join(cell) for cell in CELLS])
def test_an_altered_cell_is_found(filled: Place, name: str, column: str) -> None:
    table = metadata.tables[name]
    keys = list(table.primary_key)
    with filled.behind() as connection:
        row = connection.execute(sa.select(table).order_by(*keys).limit(1)).mappings().one()
    change = sa.update(table).where(*(key == row[key.name] for key in keys))
    assert tamper(filled, change.values({column: another(table.c[column], row[column])}))


@pytest.mark.slow
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
        ("DELETE FROM imports", "imports: 1 imports were noted but 0 are here"),
        (sa.update(metadata.tables["imports"]).values(report=b"{}"), "imports: import 1 was altered"),
        ("UPDATE meta SET value = 'other' WHERE name = 'side_salt'", "running digest"),
        ("UPDATE items SET parent_id = 'c1' WHERE id = 'a2'", "item 'a2' (seq 2): its row or its parent was altered"),
    ],
)
def test_what_is_missing_or_moved_is_named(filled: Place, statement: Any, says: str) -> None:
    found = tamper(filled, sa.text(statement) if isinstance(statement, str) else statement)
    assert any(says in problem for problem in found), found


def test_a_deleted_leaf_and_a_deleted_chain_are_found(databases: Files | Server, template: Place) -> None:
    """Deleted from every table, so that no row that is left is wrong: the running digest misses them all the same."""
    said = {"rows were written but the last one here is", "seq 1 to 3 is missing"}
    for chosen in ("seq = (SELECT seq FROM items WHERE id = 'late')", "seq IN (1, 2, 3)"):
        with databases.copy(template) as place:
            with ArtifactDAG.load(place.target) as dag:
                dag.append(attempt("late", "c1", "rejected", specification="spec c"))
                (late,) = dag.extract(item("late"))
            about = f"seq = {late.seq}" if "late" in chosen else chosen
            gone = [f"DELETE FROM {name} WHERE {about}" for name in ("bodies", "facts", "trained")]
            gone.append(f"DELETE FROM events WHERE item_id IN (SELECT id FROM items WHERE {about})")
            found = tamper(place, *(sa.text(each) for each in [*gone, f"DELETE FROM items WHERE {about}"]))
            assert any(line in problem for problem in found for line in said), found


def test_missing_triggers_are_named(filled: Place) -> None:
    filled.drop_trigger("items_refuse_delete", "items")
    assert problems(filled) == ["database: trigger items_refuse_delete is missing or altered"]


def test_facts_are_rebuilt_whatever_happened_to_them(filled: Place) -> None:
    with ArtifactDAG.load(filled.target) as dag:
        before = list(dag.extract())
    found = tamper(filled, sa.text("UPDATE facts SET rejected_ancestors = 7, root_seq = 1, broken = true"))
    assert any("rebuild_facts()" in problem for problem in found)
    with ArtifactDAG.load(filled.target) as dag:
        dag.rebuild_facts()
        assert list(dag.extract()) == before
        assert dag.verify().problems == []


def test_damaged_pages_are_reported_not_raised(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with files.installed() as place:
        fill(place, ())
        path = Path(place.target)
        content = bytearray(path.read_bytes())
        for position in range(16384, len(content), 1000):
            content[position] ^= 0xFF
        path.write_bytes(content)
        assert problems(place)
