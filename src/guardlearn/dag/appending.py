"""Appends items and events to ℛ, inside one writing transaction.

A batch of items is read against the database with a few queries, placed in its chains, given its seqs and digests, and
written table by table. The running digest over seq (`head`) moves on with every row; a new Ψ gets its side here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import sides
from guardlearn.dag.batching import batches, flag_type, insert
from guardlearn.dag.facts import Lineage, apply_event
from guardlearn.dag.rows import (
    ItemRows,
    decode_text,
    digest_of,
    encode_item,
    event_digest,
    item_digest,
    storable,
    to_micros,
)
from guardlearn.dag.tables import bodies, events, head, items, texts
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.types import ArtifactStatus, RepositoryItem

__all__ = ["Appender", "add_to_sides", "advance_sides", "checked_event", "portions", "side_digest"]

EVENT_KINDS = ("status", "exclude", "include", "review", "stale", "redact")
"""Events that callers may append; `parent_missing` is ℛ's own."""

_ITEMS_AT_ONCE = 500
_CHARS_AT_ONCE = 16_000_000


def portions(given: Iterable[RepositoryItem]) -> Iterator[list[RepositoryItem]]:
    """Yield items in batches that may be held at once: by number, and by the length of what they hold."""
    batch, chars = list[RepositoryItem](), 0
    for item in given:
        batch.append(item)
        chars += len(item.artifact) + len(item.feedback) + len(item.specification)
        if len(batch) >= _ITEMS_AT_ONCE or chars >= _CHARS_AT_ONCE:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


class Appender:
    """Writes to ℛ from the state its transaction began with; call `finish` last.

    Attributes:
        connection: the writing transaction.
        seq: seq of the last row written.
        new: items that were not stored before.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        row = connection.execute(sa.select(head.c.seq, head.c.digest).where(head.c.name == "log")).one()
        self.seq, self._running = int(row[0]), bytes(row[1])
        self.new = 0
        self._lineage = Lineage(connection)
        self._text_keys: dict[bytes, int] = {}
        self._sided: set[int] = set()
        self._flag = flag_type(connection.dialect)
        self._event_rows: list[dict[str, Any]] = []

    def add(self, batch: Sequence[RepositoryItem]) -> list[int]:
        """Store a batch; returns the seq of each, old or new.

        Raises:
            RepositoryError: an item cannot be stored, or its id is stored with another content.
        """
        return self.add_encoded([encode_item(item) for item in batch])

    def add_encoded(self, encoded: Sequence[ItemRows]) -> list[int]:
        """Store a batch of rows; see `add`."""
        self._lineage.prefetch(
            [each.row["id"] for each in encoded], [each.row["parent_id"] for each in encoded if each.row["parent_id"]]
        )
        self._store_texts(encoded)
        item_rows: list[dict[str, Any]] = []
        body_rows: list[dict[str, Any]] = []
        pending: dict[int, sides.PendingSpecification] = {}
        seqs = []
        for each in encoded:
            stored = self._lineage.find(each.row["id"])
            if stored is not None:
                self._must_equal(each, stored.seq, stored.digest)
                seqs.append(stored.seq)
                continue
            seqs.append(self._place(each))
            item_rows.append(each.row)
            body_rows.append(each.body)
            key = each.row["specification"]
            if key not in pending and key not in self._sided:
                text, group = decode_text(each.specification), each.row["spec_group"] or None
                pending[key] = sides.PendingSpecification(key, text, group)
        if item_rows:
            insert(self.connection, items, item_rows)
            insert(self.connection, bodies, body_rows)
            self._lineage.flush()
            self._flush_events()
            advance_sides(self.connection, list(pending.values()))
            self._sided.update(pending)
        self.new += len(item_rows)
        return seqs

    def add_event(self, item_id: str, kind: str, value: str, actor: str, reason: str) -> int:
        """Store one event about a stored item and change the facts it changes; returns its seq.

        Raises:
            RepositoryError: no such item, or a name that databases refuse.
        """
        self._lineage.prefetch([item_id] if storable(item_id) else [], [])
        node = self._lineage.find(item_id)
        if node is None:
            raise RepositoryError(f"no item {item_id!r} in ℛ; an event is about a stored item")
        for name, text in (("value", value), ("actor", actor), ("reason", reason)):
            if not storable(text):
                raise RepositoryError(f"the event's {name} {text!r} holds NUL or a lone surrogate; leave them out")
        self._note(item_id, node.digest, kind, value, actor, reason)
        self._flush_events()
        apply_event(self.connection, node, kind, value)
        return self.seq

    def text_keys(self, bodies_by_digest: dict[bytes, bytes]) -> dict[bytes, int]:
        """Return the key of each text, storing those that are new."""
        unknown = [digest for digest in bodies_by_digest if digest not in self._text_keys]
        for batch in batches(unknown):
            query = sa.select(texts.c.digest, texts.c.key).where(texts.c.digest.in_(batch))
            self._text_keys |= {digest: key for digest, key in self.connection.execute(query)}
        fresh = [digest for digest in unknown if digest not in self._text_keys]
        if fresh:
            last = self.connection.execute(sa.select(sa.func.coalesce(sa.func.max(texts.c.key), 0))).scalar_one()
            rows = [
                {"key": last + number, "digest": digest, "body": bodies_by_digest[digest]}
                for number, digest in enumerate(fresh, start=1)
            ]
            insert(self.connection, texts, rows)
            self._text_keys |= {row["digest"]: row["key"] for row in rows}
        return self._text_keys

    def finish(self) -> None:
        """Write the head: seq and running digest."""
        self.connection.execute(sa.update(head).where(head.c.name == "log").values(seq=self.seq, digest=self._running))

    def _store_texts(self, encoded: Sequence[ItemRows]) -> None:
        wanted: dict[bytes, bytes] = {}
        for each in encoded:
            wanted[each.specification_digest] = each.specification
            wanted[each.constraints_digest] = each.constraints
        if len(self._text_keys) > 100_000:  # 32-byte digests: a few megabytes
            self._text_keys, self._sided = {}, set()
        keys = self.text_keys(wanted)
        for each in encoded:
            each.row["specification"] = keys[each.specification_digest]
            each.row["constraints"] = keys[each.constraints_digest]

    def _place(self, each: ItemRows) -> int:
        """Give a new item its seq, digest and place in the chain."""
        row = each.row
        parent = self._lineage.find(row["parent_id"]) if row["parent_id"] else None
        before = parent.digest if parent else b""
        digest = item_digest(row, each.specification_digest, each.constraints_digest, before, each.names)
        self._advance(digest)
        seq = row["seq"] = each.body["seq"] = self.seq
        row["digest"], row["fatal"] = digest, self._flag(row["fatal"])
        if self._lineage.add(seq, row["id"], row["parent_id"], row["status"], digest):
            self._note(row["id"], digest, "parent_missing", row["parent_id"], "", "")
        return seq

    def _must_equal(self, each: ItemRows, seq: int, stored: bytes) -> None:
        row = each.row
        parent = self._lineage.find(row["parent_id"]) if row["parent_id"] else None
        known = parent.digest if parent and parent.seq < seq else b""
        if item_digest(row, each.specification_digest, each.constraints_digest, known) != stored:
            raise RepositoryError(
                f"item {row['id']!r} is already stored with another content; give a new attempt its own id, "
                "and a later verdict its own event (append_event)"
            )

    def _note(self, item_id: str, item: bytes, kind: str, value: str, actor: str, reason: str) -> None:
        row: dict[str, Any] = {
            "item_id": item_id,
            "kind": kind,
            "value": value,
            "actor": actor,
            "reason": reason,
            "created_at": self._moment(item_id, kind),
        }
        row["digest"] = event_digest(row, item)
        self._advance(row["digest"])
        row["seq"] = self.seq
        self._event_rows.append(row)

    def _moment(self, item_id: str, kind: str) -> int:
        """Return when an event became known, in microseconds; an import that repeats events knows better than now."""
        return to_micros(datetime.now(UTC))

    def _advance(self, digest: bytes) -> None:
        self.seq += 1
        self._running = digest_of(self._running + digest)

    def _flush_events(self) -> None:
        insert(self.connection, events, self._event_rows)
        self._event_rows = []


def advance_sides(connection: Connection, pending: list[sides.PendingSpecification]) -> int:
    """Assign sides to what is new in `pending` and move the digest of all sides on; returns how many were new."""
    if not pending:
        return 0
    assigned = sides.assign(connection, pending)
    written = {each.key: each for each in assigned}
    change = 0
    for batch in batches(list(written)):
        for key, digest in connection.execute(sa.select(texts.c.key, texts.c.digest).where(texts.c.key.in_(batch))):
            change += side_digest(digest.hex(), written[key].group, written[key].side.value)
    if written:
        add_to_sides(connection, change, len(written))
    return len(written)


def checked_event(kind: str, value: str) -> str:
    """Return an event's value as it is stored.

    Raises:
        UsageError: unknown kind or status.
    """
    if kind not in EVENT_KINDS:
        raise UsageError(f"unknown event {kind!r}; allowed are: {', '.join(EVENT_KINDS)}")
    if kind != "status":
        return value
    try:
        return ArtifactStatus(value).value
    except ValueError as error:
        raise UsageError(f"unknown status {value!r}; allowed are: {', '.join(ArtifactStatus)}") from error


def add_to_sides(connection: Connection, change: int, count: int) -> None:
    """Add `change` to the digest of all sides: a sum, so that it does not depend on the order of assignment."""
    old = connection.execute(sa.select(head.c.digest).where(head.c.name == "sides")).scalar_one()
    total = (int.from_bytes(old, "big") + change) % 2**256
    connection.execute(
        sa.update(head).where(head.c.name == "sides").values(seq=head.c.seq + count, digest=total.to_bytes(32, "big"))
    )


def side_digest(text: str, group: str, side: str) -> int:
    """Return what one assignment adds to the digest of all sides; `text` is Ψ's digest in hex, "" for a pin."""
    return int.from_bytes(digest_of("\n".join((text, group, side)).encode()), "big")
