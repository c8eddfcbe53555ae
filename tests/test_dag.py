"""ℛ through its public API: opening, appending, reading, recording, sides, bad input."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from databases import Files, Place, Server
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.tables import SCHEMA_VERSION
from guardlearn.errors import GuardError, RepositoryError, UsageError
from guardlearn.predicates import broken, everything, item, recent, refinement, satisfies, source, status
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side, Specification, Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)


def attempt(number: int, parent: int | None = None, state: str = "rejected", **fields) -> RepositoryItem:
    content = {
        "id": f"i{number}",
        "parent_id": None if parent is None else f"i{parent}",
        "artifact": f"artifact {number}",
        "specification": "Write f.",
        "feedback": f"feedback {number}",
        "status": ArtifactStatus(state),
        "created_at": START + timedelta(seconds=number),
        "group": "g",
    }
    return RepositoryItem(**{**content, **fields})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def dag(databases: Files | Server):
    with databases.repository() as made:
        yield made


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- opening


def test_load_never_creates(path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"does not exist.*ArtifactDAG\.create"):
        ArtifactDAG.load(path)
    assert not path.exists()


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("SELECT 1", encoding="utf-8")
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE meta (id INTEGER)")
    connection.commit()
    connection.close()
    before = digest(other)
    for target, says in ((text, "not an SQLite file"), (other, "another program"), (tmp_path, "is a folder")):
        with pytest.raises(RepositoryError, match=says) as caught:
            ArtifactDAG.load(target)
        assert "\n" not in str(caught.value)
    with pytest.raises(RepositoryError, match="exists already"):
        ArtifactDAG.create(other)
    assert digest(other) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "other.db"]


def test_a_repository_appears_only_when_it_is_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="side_salt"):
        ArtifactDAG.create(path, side_salt="a\0")
    assert list(path.parent.iterdir()) == []
    monkeypatch.chdir(path.parent)
    with ArtifactDAG.create("runs.db") as dag:
        assert [p.name for p in path.parent.iterdir()] == ["runs.db"]
        monkeypatch.chdir("/")
        dag.append(attempt(1))
    with ArtifactDAG.load(path) as dag:
        assert dag.count() == 1


def test_another_schema_version_is_refused(installed: Place) -> None:
    with installed.without_triggers() as connection:
        connection.exec_driver_sql("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    with pytest.raises(RepositoryError, match=f"schema version 99, this guardlearn reads {SCHEMA_VERSION}; run"):
        ArtifactDAG.load(installed.target)


@pytest.mark.parametrize(
    "target", [":memory:", "sqlite://", "mysql://host/db", "postgresql+asyncpg://host/db", "no/such/folder/runs.db"]
)
def test_targets_that_cannot_be_are_refused(target: str) -> None:
    with pytest.raises(RepositoryError):
        ArtifactDAG.create(target)


def test_urls_and_paths_name_the_same(path: Path) -> None:
    with ArtifactDAG.create(f"sqlite:///{path}") as dag:
        dag.append(attempt(1))
    with ArtifactDAG.load(path, read_only=True) as dag:
        assert dag.count() == 1
        with pytest.raises(RepositoryError, match="read-only"):
            dag.append(attempt(2))


# -- Theorem 3


def test_reading_leaves_a_cleanly_closed_file_byte_identical(path: Path) -> None:
    with ArtifactDAG.create(path) as dag:
        dag.append_many([attempt(1), attempt(2, 1), attempt(3, 2, "accepted")])
        dag.append_event("i1", "review", actor="me")
    before, stat = digest(path), path.stat()
    for read_only in (False, True):
        with ArtifactDAG.load(path, read_only=read_only) as dag:
            assert [i.id for i in dag.extract(refinement())] == ["i3"]
            assert list(dag.extract(satisfies(lambda i: i.id == "i1")))
            assert dag.count() == 3
            assert dag.verify().problems == []
            dag.provenance("i3"), dag.explain_drops(refinement()), dag.sides(), dag.readings(), dag.sides_digest()
    assert digest(path) == before
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert [p.name for p in path.parent.iterdir()] == ["runs.db"]  # no lock or log file stays behind


def test_reading_after_a_killed_writer_changes_no_file(path: Path) -> None:
    writer = (
        "import os, sys; sys.path[:0] = sys.argv[2:]; from test_dag import *; dag = ArtifactDAG.create(sys.argv[1]);"
        "dag.append_many([attempt(1), attempt(2, 1, 'accepted')]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", writer, str(path), str(Path(__file__).parent)], check=False)
    log = Path(f"{path}-wal")
    before = digest(path), digest(log)
    with ArtifactDAG.load(path) as dag:
        assert [i.id for i in dag.extract(refinement())] == ["i2"]
        assert dag.verify().problems == []
    assert (digest(path), digest(log)) == before
    with ArtifactDAG.load(path) as dag:
        dag.append(attempt(3))
    assert [p.name for p in path.parent.iterdir()] == ["runs.db"]


# -- appending


def test_an_item_comes_back_whole(dag: ArtifactDAG) -> None:
    first = attempt(1, artifact="a\0b\ud800", feedback="Ψ", metadata={"b": 1, "a": [None, "\ud800"]}, workflow_ref="w")
    second = attempt(
        2,
        1,
        "accepted",
        constraints="Ω",
        sampling={"seed": 3},
        seen_history=(FeedbackEntry(artifact="shown", feedback="other", item_id="elsewhere"),),
        fatal=True,
        model="m",
        adapter="d",
        cause="style",
        created_at=datetime(2026, 1, 1, 12, 0, 0, 123456),
    )
    dag.append_many([first, second])
    for given in (first, second):
        found = dag.get_item(given.id)
        for name in given.__struct_fields__:
            if name not in {"seq", "facts", "side", "history", "created_at"}:
                assert getattr(found, name) == getattr(given, name), name
    assert dag.get_item("i2").created_at == datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert dag.get_item("i2").history == second.seen_history
    assert dag.get_item("i1").side in set(Side)


def test_the_same_again_is_nothing_and_another_content_is_refused(dag: ArtifactDAG) -> None:
    seq = dag.append(attempt(1))
    dag.append(attempt(2, 1))
    assert dag.append(attempt(1)) == seq
    assert dag.append_many([attempt(1), attempt(2, 1)]) == 0
    for other in (attempt(1, artifact="x"), attempt(1, 2), attempt(1, state="accepted"), attempt(1, metadata={"k": 1})):
        with pytest.raises(RepositoryError, match="'i1' is already stored with another content"):
            dag.append(other)
    assert dag.count() == dag.last_seq == 2


def test_append_many_is_all_or_nothing(dag: ArtifactDAG) -> None:
    def broken_off():
        yield from (attempt(n) for n in range(1200))
        raise OSError("the log ended")

    with pytest.raises(OSError, match="the log ended"):
        dag.append_many(broken_off())
    assert dag.count() == dag.last_seq == 0
    assert dag.append_many(attempt(n) for n in range(1200)) == 1200
    assert dag.verify().problems == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id": ""}, "id is empty"),
        ({"id": "a\0"}, "id 'a\\\\x00' holds NUL"),
        ({"workflow_id": "\ud800"}, "workflow_id"),
        ({"metadata": {"seen": {1, 2}}}, "not JSON serializable"),
        ({"artifact": None}, "i1"),
        ({"created_at": "soon"}, "i1"),
    ],
)
def test_items_that_cannot_be_stored_are_named(dag: ArtifactDAG, fields: dict, says: str) -> None:
    with pytest.raises(RepositoryError, match=says):
        dag.append(attempt(1, **fields))
    assert dag.count() == 0


def test_a_late_parent_heals_its_chain(dag: ArtifactDAG) -> None:
    dag.append_many([attempt(3, 2, "accepted"), attempt(2, 1)])
    assert dag.count(broken()) == 2
    assert dag.count(refinement()) == 1  # i2 is rejected and known
    dag.append(attempt(1))
    assert dag.count(broken()) == 0
    found = dag.get_item("i3").facts
    assert (found.root_id, found.attempt, found.rejected_ancestors) == ("i1", 3, 2)
    assert [e.feedback for e in dag.get_item("i3").history] == ["feedback 1", "feedback 2"]


def test_circles_end_and_are_flagged(dag: ArtifactDAG) -> None:
    dag.append_many([attempt(1, 3), attempt(2, 1), attempt(3, 2), attempt(4, 4), attempt(5, 4, "accepted")])
    assert {i.id for i in dag.extract(broken())} == {"i1", "i2", "i3", "i4", "i5"}
    assert [i.id for i in dag.provenance("i2")] == ["i3", "i1", "i2"]
    assert [i.id for i in dag.provenance("i5")] == ["i4", "i5"]
    assert dag.verify().problems == []


def test_events_change_descendants(dag: ArtifactDAG) -> None:
    dag.append_many([attempt(1), attempt(2, 1), attempt(3, 2, "pending"), attempt(4, 1, "accepted")])
    assert dag.count(refinement()) == 1
    dag.append_event("i3", "status", value="ACCEPTED", actor="me", reason="judged late")
    assert {i.id for i in dag.extract(refinement())} == {"i3", "i4"}
    dag.append_event("i1", "status", value=ArtifactStatus.SUPERSEDED)
    assert {i.id: i.facts.rejected_ancestors for i in dag.extract()} == {"i1": 0, "i2": 0, "i3": 1, "i4": 0}
    with pytest.raises(UsageError, match="unknown event 'delete'"):
        dag.append_event("i1", "delete")
    with pytest.raises(UsageError, match="unknown status 'fine'"):
        dag.append_event("i1", "status", value="fine")
    with pytest.raises(RepositoryError, match="no item 'x'"):
        dag.append_event("x", "exclude")


def test_writers_wait_for_each_other(installed: Place) -> None:
    def write(worker: int) -> None:
        with ArtifactDAG.load(installed.target) as other:
            for n in range(15):
                other.append(attempt(100 * worker + n))

    workers = [threading.Thread(target=write, args=(n,)) for n in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with ArtifactDAG.load(installed.target) as dag:
        assert dag.count() == dag.last_seq == 45
        assert dag.verify().problems == []


# -- reading


def test_order_is_total_and_limits_come_last(dag: ArtifactDAG) -> None:
    same = {"created_at": START}
    dag.append_many([attempt(3, **same), attempt(1, **same), attempt(2, **same), attempt(0)])
    assert [i.id for i in dag.extract()] == ["i0", "i1", "i2", "i3"]
    assert [i.id for i in dag.extract(descending=True)] == ["i3", "i2", "i1", "i0"]
    assert [i.id for i in dag.extract(order_by="seq")] == ["i3", "i1", "i2", "i0"]
    assert [i.id for i in dag.extract(lambda i: i.id != "i1", limit=2)] == ["i0", "i2"]
    assert list(dag.extract(limit=0)) == []
    for wrong in ({"order_by": "id"}, {"limit": -1}):
        with pytest.raises(UsageError, match=r"allowed|0 or more"):
            dag.extract(**wrong)
    with pytest.raises(UsageError, match="no predicate"):
        dag.extract("refinement()")
    with pytest.raises(UsageError, match="cannot be counted by 'artifact'"):
        dag.count_by(None, "artifact")


def test_a_function_sees_only_what_the_bound_lets_through(dag: ArtifactDAG) -> None:
    dag.append_many(attempt(n, state="accepted" if n % 5 == 0 else "rejected") for n in range(50))
    seen = []
    chosen = status("accepted") & satisfies(lambda i: seen.append(i.id) or i.id == "i10")
    assert [i.id for i in dag.extract(chosen)] == ["i10"]
    assert len(seen) == 10
    assert dag.count(~satisfies(lambda i: i.id == "i1") & item("i1", "i2")) == 1


def test_extraction_sees_one_state_while_others_append(installed: Place) -> None:
    with ArtifactDAG.load(installed.target) as dag, ArtifactDAG.load(installed.target) as other:
        dag.append_many(attempt(n) for n in range(600))
        running = dag.extract()
        first = next(running)
        other.append_many(attempt(n) for n in range(600, 900))
        other.append_event("i599", "status", value="accepted")
        rest = list(running)
        assert first.id == "i0"
        assert len(rest) == 599
        assert rest[-1].status is ArtifactStatus.REJECTED
        assert dag.count() == 900


@pytest.mark.slow
def test_extraction_memory_does_not_grow(dag: ArtifactDAG) -> None:
    def peak(count: int) -> int:
        dag.append_many(attempt(n, n - 1 if n % 4 else None, artifact="x" * 20_000) for n in range(count))
        tracemalloc.start()
        assert sum(len(i.artifact) for i in dag.extract()) == 20_000 * count
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return measured

    few = peak(800)
    assert peak(3200) < 1.25 * few + 2**20


def test_drops_and_counts(dag: ArtifactDAG) -> None:
    dag.append_many([attempt(1), attempt(2, 1, "accepted"), attempt(3, None, "accepted"), attempt(4, 2, "pending")])
    unrefined = {"rejected": 1, "no verdict yet": 1, "accepted, but no rejected attempt before it": 1}
    assert dag.explain_drops(refinement() & source("human")) == unrefined | {"written by source generator": 1}
    assert dag.explain_drops(refinement() & satisfies(lambda i: False)) == unrefined | {
        "not selected by satisfies(test_drops_and_counts.<locals>.<lambda>)": 1
    }
    assert dag.explain_drops(refinement(), item("i1", "i3")) == {"rejected": 1, list(unrefined)[-1]: 1}
    assert dag.explain_drops(everything()) == {}
    assert dag.count_by(None, "status") == {"accepted": 2, "pending": 1, "rejected": 1}
    assert dag.count_by(lambda i: i.id != "i1", "retries") == {"0": 1, "1": 2}
    assert dag.count_by(everything(), "side").keys() <= set(Side)
    assert dag.count(recent(days=30)) == 0
    assert dag.known_ids(["i1", "nope", "a\0", "\ud800"]) == {"i1"}
    for call in (dag.get_item, dag.provenance):
        with pytest.raises(RepositoryError, match="no item 'nope'"):
            call("nope")


# -- the recorder


def test_five_lines_record_an_agents_chain(dag: ArtifactDAG) -> None:
    with dag.chain("Write f.", action_pair_id="code", group="g", guard="pytest") as chain:
        for artifact, passed in (("a", False), ("b", False), ("c", True)):
            assert [entry.artifact for entry in chain.history] == ["a", "b"][: chain.attempts]
            chain.record(artifact, passed, "wrong" if not passed else "")
    assert chain.accepted
    (found,) = dag.extract(refinement())
    assert (found.artifact, found.action_pair_id, found.guard, found.facts.rejected_ancestors) == (
        "c",
        "code",
        "pytest",
        2,
    )
    assert [(e.artifact, e.feedback) for e in found.history] == [("a", "wrong"), ("b", "wrong")]


class _Outcome:
    passed = False
    feedback = "from an object"


@pytest.mark.parametrize(
    ("verdict", "state", "feedback"),
    [
        (True, "accepted", ""),
        (0, "rejected", ""),
        (None, "pending", ""),
        (_Outcome(), "rejected", "from an object"),
        (ArtifactStatus.SUPERSEDED, "superseded", ""),
        (Verdict(status=ArtifactStatus.REJECTED, feedback="v", cause="style", guard="g"), "rejected", "v"),
    ],
)
def test_verdicts_of_every_kind(dag: ArtifactDAG, verdict: object, state: str, feedback: str) -> None:
    recorded = dag.chain("Write f.", group="g", guard="mine").record("a", verdict)
    found = dag.get_item(recorded.id)
    assert (found.status, found.feedback) == (state, feedback)
    assert found.guard == (verdict.guard if isinstance(verdict, Verdict) else "mine")


def test_what_is_no_verdict_is_refused(dag: ArtifactDAG) -> None:
    with pytest.raises(GuardError, match="'yes' is no verdict"):
        dag.chain("Write f.").record("a", "yes")
    with pytest.raises(UsageError, match="takes no 'statuss'"):
        dag.chain("Write f.", statuss="x")
    assert dag.count() == 0


# -- sides and readings


def test_sides_are_assigned_once(dag: ArtifactDAG) -> None:
    dag.assign_side("held", "held_out")
    specs = [Specification(id=str(n), specification=f"spec {n}", group="held" if n < 3 else "g") for n in range(6)]
    assert dag.register(specs) == 6
    before = dag.sides_digest()
    assert dag.register(specs) == 0
    dag.append(attempt(1, specification="spec 0", group="held"))
    assert dag.get_item("i1").side is Side.HELD_OUT
    assert dag.sides_digest() == before
    dag.assign_side("held", Side.HELD_OUT)
    with pytest.raises(RepositoryError, match="sides never change"):
        dag.assign_side("held", "train")
    assert dag.side_of("spec 1") is Side.HELD_OUT
    assert dag.side_of("unknown") is None
    assert dag.side_of("unknown", group="held") is Side.HELD_OUT
    assert sum(dag.sides().values()) == 6
    assert dag.sides_digest() == before
    dag.append(attempt(2, specification="spec 7", group="g"))
    assert dag.sides_digest() != before
    assert dag.verify().problems == []


def test_readings_of_held_out_are_rows(dag: ArtifactDAG) -> None:
    assert dag.record_reading("", dag.sides_digest(), 3, "demo") == 1
    assert dag.record_reading("adapter", dag.sides_digest(), 3, "evaluate") == 2
    assert [(r.number, r.adapter, r.purpose) for r in dag.readings()] == [(1, "", "demo"), (2, "adapter", "evaluate")]
