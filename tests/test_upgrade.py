"""`upgrade`: what versions 1 to 3 made (tests/data/schema) becomes a repository of this version, or stays as it was.

The files hold one ℛ as guardlearn of that time wrote it: a chain, a missing parent, a stored history, NUL and a lone
surrogate, a review, a late verdict, a pin, a reading, from version 2 on a checkpoint, from version 3 on an import.
"""

import json
import lzma
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from databases import Place
from guardlearn import ArtifactDAG, RepositoryItem
from guardlearn.dag.tables import SCHEMA_VERSION
from guardlearn.dag.upgrade import upgrade
from guardlearn.digests import digest_json
from guardlearn.errors import RepositoryError
from guardlearn.types import ArtifactStatus

pytestmark = pytest.mark.usefixtures("commands_start_warm")

OLD = Path(__file__).parent / "data" / "schema"
VERSIONS = sorted(int(path.name.split(".")[0]) for path in OLD.glob("*.db.xz"))


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return unpacked(request.param, tmp_path)


def unpacked(version: int, folder: Path) -> Path:
    path = folder / "old.db"
    path.write_bytes(lzma.decompress((OLD / f"{version}.db.xz").read_bytes()))
    return path


def guardlearn(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "guardlearn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stored_version(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()[0])
    finally:
        connection.close()


def test_every_older_version_has_its_file() -> None:
    assert list(range(1, SCHEMA_VERSION)) == VERSIONS


def test_an_older_repository_is_refused_with_the_command_that_helps(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(
        RepositoryError, match=rf"has schema version {stored_version(old)}.*guardlearn upgrade .*old\.db"
    ):
        ArtifactDAG.load(old)
    assert old.read_bytes() == before


def test_an_upgrade_keeps_everything_and_goes_on(old: Path) -> None:
    before = int(stored_version(old))
    report = upgrade(old)
    assert (report.before, report.after, report.items, report.events) == (before, SCHEMA_VERSION, 5, 3)
    with ArtifactDAG.load(old) as dag:
        found = {item.id: item for item in dag.extract(order_by="seq")}
        assert list(found) == ["a1", "a2", "a3", "b1", "c1"]
        assert found["c1"].artifact == "x\0\ud800y"
        assert found["c1"].facts.status is ArtifactStatus.SUPERSEDED and found["a2"].facts.reviewed
        assert [entry.artifact for entry in found["b1"].seen_history] == ["told"]
        assert found["b1"].facts.broken and found["a3"].metadata == {"k": 1}
        assert [item.id for item in dag.provenance("a3")] == ["a1", "a2", "a3"]
        assert [reading.purpose for reading in dag.readings()] == ["demo"]
        assert [record.source for record in dag.imports()] == (["a store"] if before >= 3 else [])
        assert dag.verify().problems == []
        dag.append(RepositoryItem(id="gone", artifact="late", specification="spec b", group="b", status="pending"))
        dag.append_event("gone", "status", value="rejected")
        assert not dag.get_item("b1").facts.broken
        dag.record_reading("adapter", dag.sides_digest(), 1, "evaluate")
        assert dag.verify().problems == []
    again = upgrade(old)
    assert again.before == again.after == SCHEMA_VERSION


@pytest.mark.slow
def test_what_it_was_is_kept_beside_it(old: Path, tmp_path: Path) -> None:
    before = stored_version(old)
    done = guardlearn("upgrade", old, "--json")
    told = json.loads(done.stdout)
    kept = tmp_path / "old.db.before-upgrade"
    assert told == {"before": int(before), "after": SCHEMA_VERSION, "copy": str(kept), "items": 5, "events": 3}
    assert stored_version(kept) == before
    assert guardlearn("verify", old).returncode == 0
    again = guardlearn("upgrade", old)
    assert again.returncode == 0 and "already" in again.stderr
    assert upgrade(kept).items == 5  # the copy is whole


def test_a_copy_in_the_way_stops_it(old: Path) -> None:
    before = old.read_bytes()
    old.with_name("old.db.before-upgrade").write_text("mine")
    done = guardlearn("upgrade", old)
    assert done.returncode == 1 and "exists already" in done.stderr
    assert old.read_bytes() == before
    assert guardlearn("upgrade", old, "--backup", old.with_name("x"), "--no-backup").returncode == 2


@pytest.mark.parametrize(
    "damage", ["UPDATE bodies SET artifact = x'00' WHERE seq = 2", "DELETE FROM events WHERE seq = 8"]
)
def test_a_damaged_one_is_named_and_left_as_it_was(old: Path, damage: str) -> None:
    version = stored_version(old)
    connection = sqlite3.connect(old)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(damage)
    connection.commit()
    dump = list(connection.iterdump())
    with pytest.raises(RepositoryError, match="damaged, so nothing was changed: "):
        upgrade(old)
    assert list(connection.iterdump()) == dump
    connection.close()
    assert stored_version(old) == version


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from guardlearn.dag.upgrade import upgrade
left = [int(sys.argv[2])]
@sa.event.listens_for(sa.engine.Engine, "before_cursor_execute")
def count(*_):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
upgrade(sys.argv[1])
"""


@pytest.mark.parametrize("statements", [5, 30, 60, 90])
def test_a_killed_upgrade_leaves_the_old_one(tmp_path: Path, statements: int) -> None:
    old = unpacked(1, tmp_path)
    command = [sys.executable, "-c", KILLED, str(old), str(statements)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert stored_version(old) == "1"
    assert upgrade(old).items == 5


def test_what_an_upgrade_notes_cannot_be_altered_unseen(tmp_path: Path) -> None:
    old = unpacked(1, tmp_path)
    upgrade(old)
    connection = sqlite3.connect(old)
    rows = dict(connection.execute("SELECT name, value FROM meta"))
    connection.close()
    assert rows["founded_version"] == "1" and f"upgraded_to_{SCHEMA_VERSION}" in rows
    changes = [f"DELETE FROM meta WHERE name = '{name}'" for name in rows]
    changes += [f"UPDATE meta SET name = name || 'x' WHERE name = '{name}'" for name in rows]
    changes += [f"UPDATE meta SET value = value || '0' WHERE name = '{name}'" for name in rows]
    changes += [f"UPDATE meta SET value = '1' || substr(value, 2) || '' WHERE name = 'upgraded_to_{SCHEMA_VERSION}'"]
    changes += ["INSERT INTO meta VALUES ('another', '1')", "INSERT INTO meta VALUES ('upgraded_to_2', '1 2')"]
    for change in changes:
        altered = tmp_path / "altered.db"
        shutil.copy(old, altered)
        connection = sqlite3.connect(altered)
        (trigger,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'meta_refuse_update'").fetchone()
        (other,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'meta_refuse_delete'").fetchone()
        connection.execute("DROP TRIGGER meta_refuse_update")
        connection.execute("DROP TRIGGER meta_refuse_delete")
        changed = connection.execute(change).rowcount
        connection.execute(trigger)
        connection.execute(other)
        same = dict(connection.execute("SELECT name, value FROM meta")) == rows
        connection.commit()
        connection.close()
        assert changed == 1
        try:
            with ArtifactDAG.load(altered) as dag:
                assert bool(dag.verify().problems) != same, change
        except RepositoryError:
            assert not same


def test_a_newer_or_foreign_one_is_left_alone(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    ArtifactDAG.create(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("DROP TRIGGER meta_refuse_update")
    connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    connection.commit()
    connection.close()
    before = newer.read_bytes()
    with pytest.raises(RepositoryError, match=r"schema version 99.*pip install --upgrade guardlearn"):
        upgrade(newer)
    assert newer.read_bytes() == before
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(RepositoryError, match="no guardlearn repository"):
        upgrade(foreign)
    with pytest.raises(RepositoryError, match="does not exist"):
        upgrade(tmp_path / "none.db")


def test_both_databases_upgrade_in_one_transaction(installed: Place) -> None:
    """An empty ℛ, wound back to version 2: without later tables and their heads, and with version 2's first heads."""
    start = bytes.fromhex(digest_json({"format": "guardlearn", "schema_version": "2", "side_salt": "guardlearn"}))
    with installed.without_triggers() as connection:
        connection.execute(sa.text("UPDATE meta SET value = '2' WHERE name = 'schema_version'"))
        connection.execute(sa.text("UPDATE head SET digest = :start WHERE name <> 'sides'"), {"start": start})
        connection.execute(sa.text("DELETE FROM head WHERE name IN ('imports', 'rounds', 'promotions')"))
    with installed.behind() as connection:
        for table in ("imports", "rounds", "promotions"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
    with pytest.raises(RepositoryError, match=r"has schema version 2.*guardlearn upgrade"):
        ArtifactDAG.load(installed.target)
    report = upgrade(installed.target)
    assert (report.before, report.after) == (2, SCHEMA_VERSION)
    with ArtifactDAG.load(installed.target) as dag:
        dag.append(RepositoryItem(id="a", artifact="x", specification="s", group="g", status="accepted"))
        assert dag.verify().problems == []
        assert dag.imports() == []
    with installed.behind() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
        connection.execute(sa.text("DELETE FROM items"))
