"""What ℛ derives about each item: its place in the chain, its current status, its flags.

Written in the transaction that appends the item or event, never part of a digest, rebuilt at any time from `items` and
`events`. Every chain is a tree that hangs together by `parent_seq`; `root_seq` is the same for all of it, so a chain is
one range read. A missing parent makes a broken root until it arrives; where links run in a circle, the item that closed
it becomes a broken root for good. Definition 21; errata 3-6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.batching import batches, flag_type, insert, select_in
from guardlearn.dag.tables import events, facts, items, waiting
from guardlearn.types import ArtifactStatus

__all__ = ["Lineage", "Node", "apply_event", "rebuild"]

_REJECTED = ArtifactStatus.REJECTED.value
_BATCH = 500
_FACTS = tuple(facts.c.keys())
_NODES = sa.select(items.c.id, items.c.digest, *facts.c).join(facts, facts.c.seq == items.c.seq)
_WAITING = sa.select(waiting.c.seq, waiting.c.parent_id)


@dataclasses.dataclass(slots=True)
class Node:
    """An item as the lineage sees it."""

    digest: bytes
    facts: dict[str, Any]
    """Its row of `facts`; written to the database by `Lineage.flush` when it is new."""

    @property
    def seq(self) -> int:
        """Commit order of the item."""
        return int(self.facts["seq"])


class Lineage:
    """Places new items in their chains, inside one writing transaction.

    Nothing is looked up twice: `prefetch` reads what a batch will ask for, `add` decides, `flush` writes.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._flag = flag_type(connection.dialect)
        self._no = self._flag(False)
        self._nodes: dict[str, Node | None] = {}
        self._waiting: dict[str, list[int]] = {}
        self._new_facts: list[dict[str, Any]] = []
        self._new_waiting: list[dict[str, Any]] = []

    def prefetch(self, ids: Iterable[str], parents: Iterable[str]) -> None:
        """Read the items named and those that wait for `ids`; forgets the batch before."""
        wanted = {*ids}
        self._nodes = dict.fromkeys([*wanted, *parents])
        for name, digest, *row in select_in(self._connection, _NODES, items.c.id, list(self._nodes)):
            self._nodes[name] = Node(digest, dict(zip(_FACTS, row, strict=True)))
        self._waiting = {}
        for seq, parent_id in select_in(self._connection, _WAITING, waiting.c.parent_id, list(wanted)):
            self._waiting.setdefault(parent_id, []).append(seq)

    def find(self, item_id: str) -> Node | None:
        """Return the item of a prefetched id, None where ℛ does not have it."""
        return self._nodes.get(item_id)

    def add(self, seq: int, item_id: str, parent_id: str, status: str, digest: bytes) -> bool:
        """Place one new item; returns whether its parent is missing."""
        orphans = self._waiting.pop(item_id, [])
        parent = self.find(parent_id) if parent_id and parent_id != item_id else None
        missing = bool(parent_id) and parent is None and parent_id != item_id
        circle = parent_id == item_id and bool(parent_id)
        if parent is not None and parent.facts["root_seq"] in orphans:
            parent, circle = None, True  # the parent descends from this very item
        above = parent.facts if parent else None
        row: dict[str, Any] = {
            "seq": seq,
            "status": status,
            "parent_seq": above["seq"] if above else 0,
            "root_seq": above["root_seq"] if above else seq,
            "attempt": above["attempt"] + 1 if above else 1,
            "rejected_ancestors": _below(above) if above else 0,
            "excluded": self._no,
            "reviewed": self._no,
            "stale": self._no,
            "redacted": self._no,
            "broken": self._flag(above["broken"] if above else missing or circle),
        }
        self._nodes[item_id] = Node(digest, row)
        self._new_facts.append(row)
        if missing:
            self._waiting.setdefault(parent_id, []).append(seq)
            self._new_waiting.append({"seq": seq, "parent_id": parent_id})
        for orphan in orphans:
            self._adopt(row, orphan)
        if orphans:
            self._new_waiting = [entry for entry in self._new_waiting if entry["parent_id"] != item_id]
            self._connection.execute(sa.delete(waiting).where(waiting.c.parent_id == item_id))
        return missing

    def flush(self) -> None:
        """Write what `add` decided."""
        insert(self._connection, facts, self._new_facts)
        insert(self._connection, waiting, self._new_waiting)
        self._new_facts, self._new_waiting = [], []

    def _adopt(self, parent: dict[str, Any], orphan: int) -> None:
        """Hang the tree whose root is `orphan` under `parent`, in the database and in what is not yet written."""
        deeper, more = parent["attempt"], _below(parent)
        for row in self._unwritten(orphan):
            row["root_seq"] = parent["root_seq"]
            row["attempt"] += deeper
            row["rejected_ancestors"] += more
            row["broken"] = parent["broken"]
            if row["seq"] == orphan:
                row["parent_seq"] = parent["seq"]
        self._connection.execute(
            sa.update(facts)
            .where(facts.c.root_seq == orphan)
            .values(
                root_seq=parent["root_seq"],
                attempt=facts.c.attempt + deeper,
                rejected_ancestors=facts.c.rejected_ancestors + more,
                broken=parent["broken"],
            )
        )
        self._connection.execute(sa.update(facts).where(facts.c.seq == orphan).values(parent_seq=parent["seq"]))

    def _unwritten(self, root_seq: int) -> list[dict[str, Any]]:
        """Rows of one tree held here: those to be inserted, and copies of stored ones."""
        held = {id(row): row for row in self._new_facts}
        held |= {id(node.facts): node.facts for node in self._nodes.values() if node}
        return [row for row in held.values() if row["root_seq"] == root_seq]


def _below(row: dict[str, Any]) -> int:
    """Rejected ancestors of a child of `row`."""
    return int(row["rejected_ancestors"]) + int(row["status"] == _REJECTED)


def apply_event(connection: Connection, item: Node, kind: str, value: str) -> None:
    """Change the facts that an event of `kind` changes; a status also counts for the item's descendants."""
    row = item.facts
    changes: dict[str, dict[str, Any]] = {
        "status": {"status": value, "stale": False},  # whoever judges anew makes the verdict fresh
        "exclude": {"excluded": True},
        "include": {"excluded": False},
        "review": {"reviewed": True},
        "stale": {"stale": True},
        "redact": {"redacted": True},
        "parent_missing": {},
    }
    change = changes[kind]
    if not change:
        return
    connection.execute(sa.update(facts).where(facts.c.seq == row["seq"]).values(**change))
    shift = (change.get("status", row["status"]) == _REJECTED) - (row["status"] == _REJECTED)
    row.update(change)
    if shift:
        for batch in batches(_descendants(connection, row["seq"], row["root_seq"])):
            connection.execute(
                sa.update(facts)
                .where(facts.c.seq.in_(batch))
                .values(rejected_ancestors=facts.c.rejected_ancestors + shift)
            )


def _descendants(connection: Connection, seq: int, root_seq: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for child, parent in connection.execute(
        sa.select(facts.c.seq, facts.c.parent_seq).where(facts.c.root_seq == root_seq)
    ):
        children.setdefault(parent, []).append(child)
    found, frontier = [], [seq]
    while frontier:
        below = children.pop(frontier.pop(), [])  # pop: a damaged table could hold a circle
        found += below
        frontier += below
    return found


def rebuild(connection: Connection) -> int:
    """Derive `facts` and `waiting` again from `items` and `events`; returns the number of items."""
    connection.execute(sa.delete(facts))
    connection.execute(sa.delete(waiting))
    lineage, count = Lineage(connection), 0
    for rows in _pages(connection, [items.c.seq, items.c.id, items.c.parent_id, items.c.status, items.c.digest]):
        lineage.prefetch([row[1] for row in rows], [row[2] for row in rows if row[2]])
        for row in rows:
            lineage.add(*row)
        lineage.flush()
        count += len(rows)
    for rows in _pages(connection, [events.c.seq, events.c.item_id, events.c.kind, events.c.value]):
        for _, item_id, kind, value in rows:
            query = sa.select(*facts.c).join(items, items.c.seq == facts.c.seq).where(items.c.id == item_id)
            found = connection.execute(query).mappings().one_or_none()
            if found is not None:
                apply_event(connection, Node(b"", dict(found)), kind, value)
    return count


def _pages(connection: Connection, columns: Sequence[sa.Column[Any]]) -> Iterator[list[Any]]:
    """Yield rows of one table in seq order, a page at a time (the table may be written between pages)."""
    seq, last = columns[0], 0
    while rows := connection.execute(sa.select(*columns).where(seq > last).order_by(seq).limit(_BATCH)).all():
        yield list(rows)
        last = rows[-1][0]
