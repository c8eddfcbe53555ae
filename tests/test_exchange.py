"""`guardlearn export` of a repository and its import: nothing lost, in either direction between the databases."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from databases import Files, Server, law
from guardlearn.cli import app
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.exporting import export_items
from guardlearn.dag.importers.repository import import_repository
from guardlearn.dag.tables import events, head, items
from guardlearn.errors import DataError, UsageError
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side, Specification
from test_dag_law import repository, steps

attempt = partial(RepositoryItem, status=ArtifactStatus.REJECTED)
TWO_SURROGATES = "\ud83d" + "\ude00"  # not the one sign they would spell


def contents(dag: ArtifactDAG) -> list[Any]:
    """Everything that must survive: items with facts, row digests, events, heads of log and sides."""
    with dag.reading() as connection:
        return [
            list(dag.extract()),
            connection.execute(sa.select(items.c.seq, items.c.body_digest, items.c.digest).order_by("seq")).all(),
            connection.execute(sa.select(events).order_by("seq")).all(),
            connection.execute(sa.select(head).where(head.c.name.in_(["log", "sides"])).order_by("name")).all(),
        ]


def build(dag: ArtifactDAG) -> None:
    dag.assign_side("pinned", Side.HELD_OUT)
    dag.register([Specification(id="n", specification="never tried", group="family")])
    first = attempt(
        id="a",
        artifact=f"a\0b\ud800{TWO_SURROGATES}",
        specification=f"Ψ {TWO_SURROGATES}",
        constraints="Ω",
        feedback="no",
        created_at=datetime(2026, 1, 1, 1, 2, 3, 456789, tzinfo=UTC),
        sampling={"temperature": 0.7},
        metadata={"n": {"2": 1, "10": [1.5, None]}},
    )
    dag.append(first)
    dag.append(attempt(id="late", artifact="x", specification="held", parent_id="gone", group="pinned"))
    dag.append(
        attempt(
            id="b",
            artifact="fine",
            specification=f"Ψ {TWO_SURROGATES}",
            constraints="Ω",
            parent_id="a",
            seen_history=(FeedbackEntry(artifact="secret", feedback="f", item_id="s"),),
        )
    )
    dag.append(attempt(id="s", artifact="secret", specification="other", metadata={10: "ten", 2: "two"}))
    dag.append_event("b", "status", value="accepted", actor="me", reason="late")
    dag.redact("s", "me", "a key")
    dag.append_event("late", "exclude", actor="me")


@pytest.fixture
def source(databases: Files | Server, tmp_path: Path):
    with databases.repository() as dag:
        build(dag)
        export_items(dag, tmp_path / "runs.jsonl")
        yield dag


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_a_copy_on_either_database_is_the_same(source, target, tmp_path, request):
    file = tmp_path / "runs.jsonl"
    kind = Files(tmp_path) if target == "sqlite" else request.getfixturevalue("postgres")
    with kind.repository() as copy:
        report = import_repository(copy, file)
        assert (report.read, report.new, report.faults) == (4, 4, [])
        assert contents(copy) == contents(source)
        assert copy.sides_digest() == source.sides_digest()
        assert copy.verify().problems == []
        assert copy.get_item("s").artifact == ""
        export_items(copy, tmp_path / "again.jsonl")
        assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
        before = contents(copy)
        again = import_repository(copy, file)
        assert (again.read, again.new, again.unchanged, again.changed, again.faults) == (4, 0, 4, 0, [])
        assert contents(copy) == before
        assert [each.report.new for each in copy.imports()][:1] == [4]


@pytest.mark.slow
@law(steps, examples=30)
def test_the_round_trip_loses_nothing(databases: Files | Server, history: list[Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, repository(databases, history) as (dag, stored, _):
        one, two = Path(folder, "one.jsonl"), Path(folder, "two.jsonl")
        export_items(dag, one)
        with databases.repository() as copy:
            report = import_repository(copy, one)
            assert (report.new, report.faults) == (len(stored), [])
            assert contents(copy) == contents(dag)
            assert copy.verify().problems == []
            export_items(copy, two)
            assert two.read_bytes() == one.read_bytes()
            assert import_repository(copy, one).unchanged == len(stored)
            assert contents(copy) == contents(dag)


@pytest.mark.slow
def test_only_what_is_new_is_taken_and_a_clash_is_named(source, databases, tmp_path):
    with databases.repository() as other:
        import_repository(other, tmp_path / "runs.jsonl")
        source.append_event("b", "review", value="approved", actor="she")
        source.redact("a", "me", "another key")
        source.append(attempt(id="c", artifact="new", specification="other", parent_id="b"))
        source.append(attempt(id="d", artifact="theirs", specification="other"))
        other.append(attempt(id="d", artifact="ours", specification="other"))
        export_items(source, tmp_path / "later.jsonl")
        report = import_repository(other, tmp_path / "later.jsonl")
        assert (report.read, report.new, report.unchanged, report.changed, report.skipped) == (5, 1, 2, 2, 1)
        assert len(report.faults) == 1 and "'d' is already stored with another content" in report.faults[0]
        assert other.get_item("d").artifact == "ours"
        assert other.get_item("a").artifact == ""
        assert other.verify().problems == []
        again = import_repository(other, tmp_path / "later.jsonl")
        assert (again.new, again.changed, other.verify().problems) == (0, 0, [])


def test_sides_here_stay(source, databases, tmp_path):
    with databases.repository() as other:
        other.assign_side("pinned", Side.TRAIN)
        report = import_repository(other, tmp_path / "runs.jsonl")
        assert other.get_item("late").side is Side.TRAIN
        assert any("group 'pinned' is on side train already" in fault for fault in report.faults)
        assert any("its side is train here and held-out in the file" in f.replace("_", "-") for f in report.faults)
        assert other.verify().problems == []


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_what_is_near_another_side_here_is_set_aside(databases, tmp_path, same):
    task = "Write a function that reads a file of comma separated prices and returns their median, rounded to {} digits"
    with databases.repository() as dag:
        dag.append(attempt(id="near", artifact="x", specification=task.format("two")))
        dag.append(attempt(id="far", artifact="y", specification="Sort a list of words by their length"))
        sides = {name: dag.get_item(name).side for name in ("near", "far")}
        export_items(dag, tmp_path / "two.jsonl")
    with databases.repository() as other:
        here = sides["near"] if same else next(side for side in (Side.TRAIN, Side.HELD_OUT) if side != sides["near"])
        other.assign_side("family", here)
        other.register([Specification(id="s", specification=task.format("four"), group="family")])
        report = import_repository(other, tmp_path / "two.jsonl")
        assert other.get_item("near").side is (here if same else Side.SET_ASIDE)
        assert other.get_item("far").side is sides["far"]
        assert [fault for fault in report.faults if "set aside" in fault] == report.faults
        assert len(report.faults) == (0 if same else 1)
        assert other.verify().problems == []


@pytest.mark.slow
def test_an_edited_or_shortened_file_is_said_to_be_so(source, databases, tmp_path):
    lines = (tmp_path / "runs.jsonl").read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if b'"id":"b"' in line)
    edited = tmp_path / "edited.jsonl"
    edited.write_bytes(b"".join([*lines[:at], lines[at].replace(b"fine", b"mine"), *lines[at + 1 :]]))
    with databases.repository() as other:
        report = import_repository(other, edited)
        assert f"line {at + 1}: was altered since it was written; it is not taken" in report.faults
        assert f"line {len(lines)}: the file holds 3 of 4 items" in report.faults
        assert (report.new, other.count()) == (3, 3)
        assert other.verify().problems == []
    short = tmp_path / "short.jsonl"
    redaction = next(n for n, line in enumerate(lines) if b'"redact"' in line)
    short.write_bytes(b"".join(lines[:redaction]) + lines[redaction][:20])
    with databases.repository() as other:
        report = import_repository(other, short)
        assert f"line {redaction + 1}: is incomplete; it is not taken" in report.faults
        assert f"line {redaction + 1}: the file stops here, before its end line; it was cut off" in report.faults
        assert "s: its text is gone, and the event that says so is not in the file" in report.faults
        assert report.new == 4
        assert other.verify().problems == []


def test_lines_in_another_order_are_noticed(source, databases, tmp_path):
    lines = (tmp_path / "runs.jsonl").read_bytes().splitlines(keepends=True)
    lines[-3], lines[-2] = lines[-2], lines[-3]
    (tmp_path / "swapped.jsonl").write_bytes(b"".join(lines))
    with databases.repository() as other:
        faults = import_repository(other, tmp_path / "swapped.jsonl").faults
        assert len(faults) == 1 and "in another order" in faults[0]


@pytest.mark.slow
def test_the_commands(source, tmp_path, databases):
    with databases.new() as place:
        imported = CliRunner().invoke(app, ["import", str(tmp_path / "runs.jsonl"), "--into", place.target, "--json"])
        assert imported.exit_code == 0, imported.output
        assert json.loads(imported.stdout)["new"] == 4
        out = tmp_path / "out.jsonl"
        done = CliRunner().invoke(app, ["export", place.target, "-o", str(out), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["report"]["items"] == 4
        assert out.read_bytes() == (tmp_path / "runs.jsonl").read_bytes()
        with ArtifactDAG.load(place.target) as dag, pytest.raises(DataError, match="exists already"):
            export_items(dag, out)
        assert not list(tmp_path.glob(".*"))


def test_a_salt_of_its_own_is_kept(tmp_path):
    with ArtifactDAG.create(tmp_path / "one.db", side_salt=uuid.UUID(int=7).hex) as dag:
        build(dag)
        expected = contents(dag)
        export_items(dag, tmp_path / "one.jsonl")
    done = CliRunner().invoke(app, ["import", str(tmp_path / "one.jsonl"), "--into", str(tmp_path / "two.db")])
    assert done.exit_code == 0, done.output
    with ArtifactDAG.load(tmp_path / "two.db") as copy:
        assert contents(copy) == expected


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["export", "{db}", "-o", "{out}", "--dtype", "float16"], "--dtype is for an adapter"),
        (["export", "{db}", "-o", "{out}", "--model", "demo"], "--model is for an adapter"),
        (["import", "{jsonl}", "--into", "{out}", "--map", "spec=a"], "--map is for a log"),
    ],
)
def test_options_that_do_not_belong_are_refused(command, said, tmp_path):
    with ArtifactDAG.create(tmp_path / "one.db") as dag:
        export_items(dag, tmp_path / "one.jsonl")
    places = {"db": tmp_path / "one.db", "jsonl": tmp_path / "one.jsonl", "out": tmp_path / "out"}
    done = CliRunner().invoke(app, [part.format(**places) for part in command])
    assert isinstance(done.exception, UsageError) and said in str(done.exception)
    assert not places["out"].exists()


def test_an_adapter_needs_its_form(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    done = CliRunner().invoke(app, ["export", str(tmp_path), "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, UsageError) and "needs --to; allowed: peft, merged, ollama" in str(done.exception)
    assert not (tmp_path / "out").exists()
