"""ℛ on PostgreSQL, where it is not as on SQLite: writers and readers at once, schemas, a server that goes away.

What both databases have in common is tested on both, in the other files about ℛ.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from databases import Place, Server
from guardlearn.cli import app
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.tables import items, metadata
from guardlearn.errors import RepositoryError
from guardlearn.types import ArtifactStatus, RepositoryItem


def attempt(name: str) -> RepositoryItem:
    return RepositoryItem(
        id=name, artifact=f"artifact {name}", specification="s", group="g", status=ArtifactStatus.REJECTED
    )


@pytest.fixture
def empty(postgres: Server) -> Iterator[Place]:
    with postgres.new() as place:
        yield place


@pytest.fixture
def ready(postgres: Server) -> Iterator[Place]:
    with postgres.installed() as place:
        yield place


def refused(call, *arguments: object, says: str) -> str:
    with pytest.raises(RepositoryError, match=says) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_options(url: str, options: str) -> str:
    return sa.make_url(url).update_query_dict({"options": options}).render_as_string(hide_password=False)


def test_a_second_writer_waits_and_a_polling_reader_gets_every_item_once(ready: Place) -> None:
    first_wrote, may_commit, begun = threading.Event(), threading.Event(), threading.Event()

    def slowly() -> Iterator[RepositoryItem]:
        for number in range(501):  # the first batch is written before the second is asked for
            yield attempt(f"first{number}")
        first_wrote.set()
        assert may_commit.wait(20)

    def first() -> None:
        with ArtifactDAG.load(ready.target) as dag:
            dag.append_many(slowly())

    def second() -> None:
        assert first_wrote.wait(20)
        begun.set()
        with ArtifactDAG.load(ready.target) as dag:
            for number in range(20):
                dag.append(attempt(f"second{number}"))

    writers = [threading.Thread(target=first), threading.Thread(target=second)]
    for writer in writers:
        writer.start()
    got: list[str] = []
    with ArtifactDAG.load(ready.target, read_only=True) as dag:
        last = 0

        def poll() -> None:
            nonlocal last
            with dag.reading() as connection:
                rows = connection.execute(
                    sa.select(items.c.seq, items.c.id).where(items.c.seq > last).order_by(items.c.seq)
                ).all()
            got.extend(row.id for row in rows)
            last = max([last, *(row.seq for row in rows)])

        assert begun.wait(20)
        for _ in range(10):
            poll()
            time.sleep(0.02)
        assert got == []  # the second waits for the first, whose rows nobody sees yet
        may_commit.set()
        while any(writer.is_alive() for writer in writers):
            poll()
        poll()
        assert dag.verify().problems == []
    assert got == [f"first{n}" for n in range(501)] + [f"second{n}" for n in range(20)]


def test_who_waits_too_long_is_told_so(ready: Place) -> None:
    with ArtifactDAG.load(ready.target) as holder, holder.writing():
        impatient = ArtifactDAG.load(with_options(ready.target, "-clock_timeout=100ms"))
        refused(impatient.append, attempt("a"), says="another process is writing, try again")
        impatient.close()


def test_a_server_that_goes_in_the_middle_of_an_append_leaves_nothing_half_stored(
    postgres: Server, ready: Place
) -> None:
    name = sa.make_url(ready.target).database

    def cut() -> Iterator[RepositoryItem]:
        for number in range(1200):
            if number == 1100:
                postgres.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            yield attempt(f"i{number}")

    with ArtifactDAG.load(ready.target) as dag:
        dag.append(attempt("before"))
        refused(dag.append_many, cut(), says="the connection was lost.*run the same command again")
        assert dag.count() == dag.last_seq == 1
        assert dag.append_many(attempt(f"i{number}") for number in range(1200)) == 1200
        assert dag.verify().problems == []


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_half_stored(ready: Place) -> None:
    writer = (
        "import os, sys; sys.path[:0] = sys.argv[2:]; from test_dag_postgres import *\n"
        "dag = ArtifactDAG.load(sys.argv[1])\n"
        "dag.append(attempt('acknowledged'))\n"
        "dag.append_many(attempt(f'i{n}') if n < 900 else os.kill(os.getpid(), 9) for n in range(1000))\n"
    )
    folder = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", writer, ready.target, folder], check=False, timeout=60)
    assert done.returncode == -9
    with ArtifactDAG.load(ready.target) as dag:
        assert [item.id for item in dag.extract()] == ["acknowledged"]
        dag.append(attempt("after"))  # the lock died with its holder
        assert dag.verify().problems == []


def test_each_schema_holds_a_repository_of_its_own(empty: Place) -> None:
    targets = [with_options(empty.target, f"-csearch_path={name}") for name in ("team_a", "team_b")]
    refused(
        ArtifactDAG.create, targets[0], says="no schema on its search path exists; make it first with CREATE SCHEMA"
    )
    with empty.behind() as connection:
        for name in ("team_a", "team_b"):
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    for number, target in enumerate(targets):
        with ArtifactDAG.create(target) as dag:
            dag.append_many(attempt(f"i{n}") for n in range(number + 1))
    with ArtifactDAG.load(targets[0]) as one, one.writing(), ArtifactDAG.load(targets[1]) as other:
        other.append(attempt("not kept waiting by another repository's writer"))
        assert (one.count(), other.count()) == (1, 3)
        assert one.verify().problems == other.verify().problems == []
    refused(ArtifactDAG.load, empty.target, says="it holds no tables; make one with")


def test_another_programs_tables_are_left_alone(empty: Place) -> None:
    with empty.behind() as connection:
        connection.exec_driver_sql("CREATE TABLE meta (id integer)")
    refused(ArtifactDAG.load, empty.target, says="its tables are another program's")
    refused(ArtifactDAG.create, empty.target, says=r"holds tables already \(meta\)")
    refused(ArtifactDAG.open_or_create, empty.target, says="its tables are another program's")
    with empty.behind() as connection:
        assert sa.inspect(connection).get_table_names() == ["meta"]


def test_open_or_create_makes_one_and_then_opens_it(empty: Place) -> None:
    for number in (1, 2):
        with ArtifactDAG.open_or_create(empty.target) as dag:
            dag.append(attempt(f"i{number}"))
            assert dag.count() == number
    refused(ArtifactDAG.create, empty.target, says="holds tables already .*open it with ArtifactDAG.load")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("postgresql+psycopg://me:hush@127.0.0.1:1/db", "onnection refused"),
        ("postgresql://me:hush@127.0.0.1:1/db", "onnection refused"),
        ("postgresql+psycopg://me@127.0.0.1:1/db?password=hush", "onnection refused"),
        ("postgresql+psycopg2://me:hush@host/db", r"write postgresql\+psycopg://"),
        ("postgresql+psycopg://me:hush@host:port/db", "with a port that is a number"),
        ("oracle://me:hush@host/db", "SQLite or PostgreSQL"),
    ],
)
def test_errors_are_one_line_without_the_password(target: str, says: str) -> None:
    for call in (ArtifactDAG.load, ArtifactDAG.create, ArtifactDAG.open_or_create):
        assert "hush" not in refused(call, target, says=says)


def test_a_missing_database_is_one_line(ready: Place) -> None:
    other = sa.make_url(ready.target).set(database="nowhere").render_as_string(hide_password=False)
    refused(ArtifactDAG.load, other, says='database "nowhere" does not exist')


def test_a_missing_driver_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from guardlearn.dag import ArtifactDAG; from guardlearn.errors import BackendUnavailable\n"
        "try: ArtifactDAG.load('postgresql+psycopg://me@host/db')\n"
        "except BackendUnavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "needs psycopg; run: pip install 'guardlearn[postgres]'" in done.stdout


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("ALTER TABLE items DISABLE TRIGGER items_refuse_delete", ["items_refuse_delete"]),
        ("DROP TRIGGER texts_refuse_truncate ON texts", ["texts_refuse_truncate"]),
        (
            "CREATE OR REPLACE FUNCTION bodies_refuse_update() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN RETURN NEW; END'",
            ["bodies_refuse_update"],
        ),
        (
            "CREATE OR REPLACE TRIGGER head_refuse_update BEFORE UPDATE ON head FOR EACH ROW WHEN (false) "
            "EXECUTE FUNCTION head_refuse_update()",
            ["head_refuse_update"],
        ),
        ("DROP FUNCTION specifications_refuse_update() CASCADE", ["specifications_refuse_update"]),
    ],
)
def test_triggers_that_are_not_as_installed_are_named(ready: Place, statement: str, names: list[str]) -> None:
    with ready.behind() as connection:
        connection.exec_driver_sql(statement)
    with ArtifactDAG.load(ready.target) as dag:
        assert dag.verify().problems == [f"database: trigger {name} is missing or altered" for name in names]


def test_readers_cannot_write(ready: Place) -> None:
    with ArtifactDAG.load(ready.target) as dag:
        for table in metadata.sorted_tables:
            with (
                pytest.raises(RepositoryError, match="read-only transaction"),
                dag.reading() as connection,
            ):
                connection.execute(sa.delete(table))


def test_a_table_that_cannot_be_read_does_not_hide_what_else_is_wrong(ready: Place) -> None:
    with ArtifactDAG.load(ready.target) as dag:
        dag.append(attempt("a"))
    with ready.without_triggers() as connection:
        connection.exec_driver_sql("UPDATE facts SET attempt = 5")
        connection.exec_driver_sql("ALTER TABLE events DROP COLUMN digest")
    with ArtifactDAG.load(ready.target) as dag:
        problems = dag.verify().problems
    assert any(line.startswith("log: cannot be read") for line in problems)
    assert any("its place in the chain is wrong" in line for line in problems)


def test_names_sort_bytewise_whatever_the_database_sorts_by(ready: Place) -> None:
    names = ["a", "B", "Z", "_", "é", "z", "ab", "a b"]
    with ArtifactDAG.load(ready.target) as dag:
        moment = attempt("a").created_at
        dag.append_many(
            RepositoryItem(id=n, artifact="x", specification="s", status=ArtifactStatus.ACCEPTED, created_at=moment)
            for n in names
        )
        assert [item.id for item in dag.extract()] == sorted(names, key=str.encode)


def test_commands_take_a_url(empty: Place, tmp_path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"id": "a", "prompt": "Write f.", "answer": "f", "passed": true, "error": ""}\n', encoding="utf-8")
    mapping = "id=id,spec=prompt,artifact=answer,accepted=passed,chain=id,feedback=error"
    done = CliRunner().invoke(app, ["import", str(log), "--into", empty.target, "--map", mapping, "--json"])
    assert done.exit_code == 0, done.output
    for command in (["stats", empty.target, "--json"], ["verify", empty.target, "--json"], ["show", empty.target, "a"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
