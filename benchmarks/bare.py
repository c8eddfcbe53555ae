"""The bare side: what a careful programmer would write by hand with sqlite3, without guardlearn.

    python benchmarks/bare.py CASE PATH [TARGET]

It reads guardlearn's own tables, with the same joins; walks each chain by its parents; decodes every text; and builds
the tuple a user needs: no classes, no checks, no constant memory for its own sake. The writing cases make one plain
table, or fill guardlearn's tables with rows that are ready.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from measuring import Meter, report
from stores import attempts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CHUNK = 20_000
"""Attempts a transaction, on every side."""

_REFINEMENT = "f.status = 'accepted' AND f.rejected_ancestors >= 1"
_COUNT = f"SELECT count(*) FROM facts f WHERE {_REFINEMENT}"
_IDS = f"SELECT i.id FROM items i JOIN facts f ON f.seq = i.seq WHERE {_REFINEMENT} ORDER BY i.created_at, i.id"
_ITEMS = f"""
    SELECT i.created_at, b.artifact, b.feedback, b.details, b.seen, psi.body, omega.body, f.parent_seq,
        i.seq, i.id, i.parent_id, i.action_pair_id, i.workflow_id, i.workflow_ref, i.source, i.cause, i.fatal, i.guard,
        i.guard_version, i.model, i.adapter, i.prompt_digest, i.spec_group, s.side,
        f.status, f.attempt, f.rejected_ancestors, f.excluded, f.reviewed, f.stale, f.redacted, f.broken
    FROM items i JOIN facts f ON f.seq = i.seq JOIN bodies b ON b.seq = i.seq
        JOIN specifications s ON s.key = i.specification
        JOIN texts psi ON psi.key = i.specification JOIN texts omega ON omega.key = i.constraints
    WHERE {_REFINEMENT} ORDER BY i.created_at, i.id"""
_BEFORE = """
    SELECT f.parent_seq, f.status, i.id, b.artifact, b.feedback
    FROM facts f JOIN items i ON i.seq = f.seq JOIN bodies b ON b.seq = f.seq WHERE f.seq = ?"""
_PLAIN = "CREATE TABLE attempts (id TEXT PRIMARY KEY, parent, specification, artifact, status, feedback)"
_TABLES = ("items", "bodies", "texts", "facts", "specifications")


def main() -> None:
    case, path, *target = sys.argv[1:]
    report(**CASES[case](path, *target))


def count(path: str) -> dict[str, Any]:
    connection = sqlite3.connect(path)
    return _reading(lambda: connection.execute(_COUNT).fetchone()[0])


def ids(path: str) -> dict[str, Any]:
    connection = sqlite3.connect(path)
    return _reading(lambda: sum(1 for _ in connection.execute(_IDS)))


def extract(path: str) -> dict[str, Any]:
    connection = sqlite3.connect(path, isolation_level=None)
    entries = 0

    def work() -> int:
        nonlocal entries
        connection.execute("BEGIN")  # one state, as ours
        found = entries = 0
        for *_, history in refinements(connection):
            found += 1
            entries += len(history)
        connection.execute("COMMIT")
        return found

    return _reading(work) | {"entries": entries}


def refinements(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    for created_at, artifact, feedback, details, seen, psi, omega, parent, *names in connection.execute(_ITEMS):
        history = []
        while parent:
            parent, status, before, said, answer = connection.execute(_BEFORE, (parent,)).fetchone()
            if status == "rejected":
                history.append((_text(said), _text(answer), before))
        history.reverse()
        yield (
            *names,
            _EPOCH + timedelta(microseconds=created_at),
            _text(artifact),
            _text(feedback),
            json.loads(details) if details else {},
            json.loads(seen) if seen else None,
            _text(psi),
            _text(omega),
            history,
        )


def append_plain(size: str, target: str) -> dict[str, Any]:
    """Insert the attempts of a store, made here, into one plain table."""
    connection, meter = sqlite3.connect(target), Meter()
    connection.execute(_PLAIN)
    made = attempts(int(size))
    while rows := [_columns(value) for value in itertools.islice(made, CHUNK)]:
        with meter:
            connection.executemany("INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?)", rows)
            connection.commit()
    return meter.result() | {"found": connection.execute("SELECT count(*) FROM attempts").fetchone()[0]}


def append_same(source: str, target: str) -> dict[str, Any]:
    """Insert the rows of a repository into an empty one: the same tables, indexes, triggers and settings."""
    connection, meter = sqlite3.connect(target, isolation_level=None), Meter()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")
    given = sqlite3.connect(source)
    cursors = {table: given.execute(f"SELECT * FROM {table} ORDER BY 1") for table in ("items", "bodies", "facts")}
    shared = [(table, given.execute(f"SELECT * FROM {table}").fetchall()) for table in ("texts", "specifications")]
    while True:
        chunk = [(table, cursor.fetchmany(CHUNK)) for table, cursor in cursors.items()] + shared
        if not chunk[0][1]:
            break
        with meter:
            connection.execute("BEGIN IMMEDIATE")
            for table, rows in chunk:
                if rows:
                    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            connection.execute("UPDATE head SET seq = ? WHERE name = 'log'", (chunk[0][1][-1][0],))
            connection.execute("COMMIT")
        shared = []
    return meter.result() | {"found": connection.execute("SELECT count(*) FROM items").fetchone()[0]}


def import_folder(store: str, target: str) -> dict[str, Any]:
    """Parse every object of an AtomicGuard store into one plain table."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for folder in sorted(os.scandir(Path(store) / "objects"), key=lambda entry: entry.name):
            for entry in os.scandir(folder):
                with open(entry, "rb") as file:  # noqa: PTH123 - faster than Path.open
                    yield _columns(json.load(file))

    return _fill(rows(), target)


def import_lines(path: str, target: str) -> dict[str, Any]:
    """Parse every item of an exported repository into one plain table."""

    def rows() -> Iterator[tuple[Any, ...]]:
        with Path(path).open("rb") as lines:
            for line in lines:
                if item := json.loads(line).get("item"):
                    texts = [_plain(item[name]) for name in ("specification", "artifact", "feedback")]
                    yield item["id"], item["parent_id"], texts[0], texts[1], item["status"], texts[2]

    return _fill(rows(), target)


def _fill(rows: Iterator[tuple[Any, ...]], target: str) -> dict[str, Any]:
    connection = sqlite3.connect(target)
    connection.execute(_PLAIN)
    with Meter() as meter:
        connection.executemany("INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    return meter.result() | {"found": connection.execute("SELECT count(*) FROM attempts").fetchone()[0]}


def _reading(work: Callable[[], int]) -> dict[str, Any]:
    with Meter() as first:
        found = work()
    with Meter() as again:
        work()
    return first.result() | {"again": again.result(), "found": found}


def _columns(value: dict[str, Any]) -> tuple[Any, ...]:
    """Return the plain table's columns of one of AtomicGuard's objects."""
    names = value["artifact_id"], value["previous_attempt_id"], value["context"]["specification"]
    return *names, value["content"], value["status"], (value["guard_result"] or {}).get("feedback", "")


def _text(body: bytes) -> str:
    return body.decode("utf-8", "surrogatepass")


def _plain(text: str | dict[str, str]) -> str:
    return text if isinstance(text, str) else ""


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    case.__name__: case for case in (count, ids, extract, append_plain, append_same, import_folder, import_lines)
}


if __name__ == "__main__":
    main()
