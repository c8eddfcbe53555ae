"""Recomputes what ℛ promises: digests, order, texts, facts, sides, triggers.

One pass over items and events in seq order recomputes each row's digest and the running digest; the rest are queries
that return only what is wrong. Memory does not grow with ℛ. It finds damage and careless hands; whoever can rewrite
every digest can rewrite history.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from guardlearn.dag import schema, triggers
from guardlearn.dag.appending import side_digest
from guardlearn.dag.checkpoints import checkpoint_digest, trained_digest
from guardlearn.dag.facts_check import check_facts
from guardlearn.dag.imports import import_digest
from guardlearn.dag.paging import rows, rows_by_size
from guardlearn.dag.redaction import SEEN_ONLY
from guardlearn.dag.registration import reading_digest
from guardlearn.dag.rounds import promotion_digest, step_digest
from guardlearn.dag.rows import body_digest, digest_of, event_digest, item_digest, seen_digest
from guardlearn.dag.sides_check import check_clusters, check_index
from guardlearn.dag.structure_check import check_structure
from guardlearn.dag.tables import (
    bodies,
    checkpoints,
    events,
    head,
    imports,
    items,
    pinned_groups,
    promotions,
    readings,
    rounds,
    specifications,
    texts,
    trained,
)
from guardlearn.types import OnProgress

__all__ = ["CURRENT", "Digests", "VerifyReport", "digest_of_row", "event_rows", "item_rows", "log_problems", "verify"]

_MOST_NAMED = 20
_BATCH = 500
_BODY_COLUMNS = ("artifact", "feedback", "details", "seen")

_UNREADABLE = (SQLAlchemyError, ValueError, TypeError, AttributeError, OverflowError)
"""What reading damaged rows can end in."""


class Digests(NamedTuple):
    """How the rows of the log are digested."""

    item: Callable[[Any, bytes, bytes, bytes], bytes]
    """Of an item's row, the digests of its Ψ and Ω, and its parent's digest."""
    event: Callable[[Any, bytes], bytes]
    """Of an event's row, and the digest of the item it is about."""


CURRENT = Digests(item_digest, event_digest)


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found."""

    items: int
    events: int
    redacted: int
    """Items whose texts were blanked on purpose; no problem by itself."""
    problems: list[str]
    """One line each; empty when everything is as it was appended."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(connection: Connection, on_progress: OnProgress | None = None) -> VerifyReport:
    """Check everything; see the module."""
    log = _Log(connection, CURRENT, on_progress)
    problems: list[str] = []
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "database": lambda: _integrity(connection),
        "meta": lambda: schema.odd_rows(connection),
        "log": log.check,
        "texts": lambda: _texts(connection),
        "facts": lambda: check_facts(connection),
        "sides": lambda: _sides(connection),
        "clusters": lambda: check_clusters(connection),
        "near-duplicates": lambda: check_index(connection),
        "readings": lambda: _readings(connection),
        "checkpoints": lambda: _checkpoints(connection),
        "rounds": lambda: _numbered(connection, rounds, step_digest),
        "promotions": lambda: _numbered(connection, promotions, promotion_digest),
        "imports": lambda: _numbered(connection, imports, import_digest),
    }
    for name, check in checks.items():
        found: list[str] = []
        more = 0
        try:
            with connection.begin_nested():  # PostgreSQL refuses all that follows an error, up to the savepoint
                for line in check():
                    more += len(found) >= _MOST_NAMED
                    found += [line] if len(found) < _MOST_NAMED else []
        except _UNREADABLE as error:
            found.append(f"cannot be read: {' '.join(str(getattr(error, 'orig', error)).split())}")
        problems += [f"{name}: {line}" for line in found] + ([f"{name}: {more} more like these"] if more else [])
    return VerifyReport(items=log.items, events=log.events, redacted=log.redacted, problems=problems)


def log_problems(connection: Connection, digests: Digests) -> Iterator[str]:
    """Yield what is wrong with items and events by older rules of digesting."""
    return _Log(connection, digests, None).check()


def _integrity(connection: Connection) -> Iterator[str]:
    """Ask the database about its own pages and indexes, where it can tell, and about its triggers."""
    if connection.dialect.name == "sqlite":
        for (line,) in connection.exec_driver_sql("PRAGMA integrity_check(10)"):
            if line != "ok":
                yield f"{line}"
        yield from check_structure(connection)
    for name in triggers.altered(connection):
        yield f"trigger {name} is missing or altered"


class _Log:
    """Items and events in seq order, with the running digest over them."""

    def __init__(self, connection: Connection, digests: Digests, on_progress: OnProgress | None) -> None:
        self._connection = connection
        self._digests = digests
        self._on_progress = on_progress
        self.items = self.events = self.redacted = 0

    def check(self) -> Iterator[str]:
        running, last, wrong = schema.founding_digest(self._connection), 0, False
        end = self._connection.execute(sa.select(head.c.seq, head.c.digest).where(head.c.name == "log")).one()
        for row in self._in_order():
            seq = row["seq"]
            if seq != last + 1:
                wrong = True
                yield f"seq {last + 1}{f' to {seq - 1}' if seq > last + 2 else ''} is missing or out of order"
            is_item = "body_digest" in row
            digest = digest_of_row(row, self._digests)
            for line in _item_problems(row, digest) if is_item else _event_problems(row, digest):
                wrong = True
                yield line
            self.items, self.events = self.items + is_item, self.events + (not is_item)
            self.redacted += is_item and row["is_redacted"]
            running, last = digest_of(running + digest), seq
            if self._on_progress and last % _BATCH == 0:
                self._on_progress(last, int(end.seq), "verifying")
        if end.seq != last:
            yield f"{end.seq} rows were written but the last one here is {last}"
        elif running != end.digest and not wrong:
            yield "the running digest is another: meta, head or a whole row with its digest was altered"

    def _in_order(self) -> Iterator[Any]:
        columns = [bodies.c[name] for name in _BODY_COLUMNS]
        with (  # where one cannot be read, the other's cursor is closed too
            contextlib.closing(rows_by_size(self._connection, item_rows(), items.c.seq, *columns)) as of_items,
            contextlib.closing(rows(self._connection, event_rows())) as of_events,
        ):
            yield from heapq.merge(of_items, of_events, key=lambda row: row["seq"])


def item_rows() -> sa.Select[Any]:
    """Return the query for all that an item's digests cover, in seq order."""
    psi, omega, parent = texts.alias("psi"), texts.alias("omega"), items.alias("parent")
    noted = sa.exists().where(events.c.item_id == items.c.id, events.c.kind == "redact")
    return (
        sa.select(
            *items.c,
            *(bodies.c[name] for name in _BODY_COLUMNS),
            psi.c.digest.label("psi"),
            omega.c.digest.label("omega"),
            parent.c.seq.label("parent_seq"),
            parent.c.digest.label("parent_digest"),
            noted.where(events.c.value != SEEN_ONLY).label("is_redacted"),
            noted.label("seen_redacted"),
        )
        .outerjoin(bodies, bodies.c.seq == items.c.seq)
        .outerjoin(psi, psi.c.key == items.c.specification)
        .outerjoin(omega, omega.c.key == items.c.constraints)
        .outerjoin(parent, sa.and_(items.c.parent_id != "", parent.c.id == items.c.parent_id))
        .order_by(items.c.seq)
    )


def event_rows() -> sa.Select[Any]:
    """Return the query for all that an event's digest covers, in seq order."""
    return (
        sa.select(*events.c, items.c.digest.label("item_digest"))
        .outerjoin(items, items.c.id == events.c.item_id)
        .order_by(events.c.seq)
    )


def digest_of_row(row: Any, digests: Digests) -> bytes:
    """Return the digest that a row should have."""
    if "body_digest" not in row:
        return digests.event(row, row["item_digest"] or b"")
    before = row["parent_seq"] is not None and row["parent_seq"] < row["seq"]
    return digests.item(row, row["psi"] or b"", row["omega"] or b"", row["parent_digest"] if before else b"")


def _item_problems(row: Any, digest: bytes) -> Iterator[str]:
    name = f"item {row['id']!r} (seq {row['seq']})"
    if row["psi"] is None or row["omega"] is None:
        yield f"{name}: its specification or constraints are missing"
    elif digest != row["digest"]:
        yield f"{name}: its row or its parent was altered"
    if row["artifact"] is None:
        yield f"{name}: its texts are missing"
        return
    blank = not (row["artifact"] or row["feedback"] or row["details"])
    if row["is_redacted"]:
        if not blank:
            yield f"{name}: redacted, but its texts are still here"
    elif body_digest(row) != row["body_digest"]:
        yield f"{name}: its texts were altered"
    if not (row["seen_redacted"] and not row["seen"]) and seen_digest(row["seen"]) != row["seen_digest"]:
        yield f"{name}: its stored history was altered"


def _event_problems(row: Any, digest: bytes) -> Iterator[str]:
    if row["item_digest"] is None:
        yield f"event {row['seq']} ({row['kind']}): its item {row['item_id']!r} is missing"
    elif digest != row["digest"]:
        yield f"event {row['seq']} ({row['kind']} of {row['item_id']!r}) was altered"


def _texts(connection: Connection) -> Iterator[str]:
    for row in rows_by_size(connection, sa.select(texts), texts.c.key, texts.c.body):
        if digest_of(row["body"]) != row["digest"]:
            yield f"text {row['key']} (a specification or constraints) was altered"


def _sides(connection: Connection) -> Iterator[str]:
    query = (
        sa.select(texts.c.digest, specifications.c.spec_group, specifications.c.side)
        .outerjoin(texts, texts.c.key == specifications.c.key)
        .execution_options(yield_per=_BATCH)
    )
    total = count = 0
    for digest, group, side in connection.execute(query):
        total, count = total + side_digest((digest or b"").hex(), group, side), count + 1
    for group, side in connection.execute(sa.select(pinned_groups.c.spec_group, pinned_groups.c.side)):
        total, count = total + side_digest("", group, side), count + 1
    end = connection.execute(sa.select(head.c.seq, head.c.digest).where(head.c.name == "sides")).one()
    if count != end.seq:
        yield f"{end.seq} sides were assigned but {count} are here"
    elif (total % 2**256).to_bytes(32, "big") != end.digest:
        yield "a specification's side or group was altered"
    sideless = (
        sa.select(items.c.id)
        .outerjoin(specifications, specifications.c.key == items.c.specification)
        .where(specifications.c.key.is_(None))
        .limit(_MOST_NAMED)
    )
    for item_id in connection.execute(sideless).scalars():
        yield f"the specification of item {item_id!r} has no side"


def _readings(connection: Connection) -> Iterator[str]:
    yield from _numbered(connection, readings, reading_digest)


def _checkpoints(connection: Connection) -> Iterator[str]:
    yield from _numbered(connection, checkpoints, checkpoint_digest)
    held = sa.select(checkpoints.c.number, checkpoints.c.learner, checkpoints.c.trained_digest, checkpoints.c.traces)
    for number, learner, digest, traces in connection.execute(held).all():
        query = sa.select(trained.c.seq, trained.c.content).where(
            trained.c.learner == learner, trained.c.checkpoint == number
        )
        contents = {int(seq): content for seq, content in connection.execute(query)}
        if len(contents) != traces or trained_digest(contents) != digest:
            yield f"checkpoint {number}: what it trained was altered"
    numbers = sa.select(checkpoints.c.number)
    for seq in connection.execute(sa.select(trained.c.seq).where(trained.c.checkpoint.not_in(numbers))).scalars():
        yield f"the item of seq {seq} is marked as trained by a checkpoint that is not here"


def _numbered(connection: Connection, table: sa.Table, digest: Callable[[Any, bytes], bytes]) -> Iterator[str]:
    """Check a table whose rows are numbered and whose digests each cover the row before."""
    word = table.name.removesuffix("s")
    running, number = schema.founding_digest(connection), 0
    for row in connection.execute(sa.select(table).order_by(table.c.number)).mappings():
        number += 1
        running = digest(row, running)
        if row["number"] != number or running != row["digest"]:
            yield f"{word} {row['number']} was altered, or one before it is missing"
            return
    end = connection.execute(sa.select(head.c.seq, head.c.digest).where(head.c.name == table.name)).one()
    if (number, running) != (end.seq, end.digest):
        yield f"{end.seq} {table.name} were noted but {number} are here"
