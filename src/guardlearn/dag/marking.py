"""What people decide about attempts: events with an actor and a reason, for one item or its whole chain.

Two people can look at one chain. Whoever decides says which events of it they knew; where somebody was faster, nothing
is stored, and what the other one said is returned. The check and the events are one transaction.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.appending import Appender
from guardlearn.dag.batching import select_in
from guardlearn.dag.reading import seq_of
from guardlearn.dag.rows import from_micros
from guardlearn.dag.tables import events, facts, items
from guardlearn.dag.tree import tree
from guardlearn.errors import UsageError

__all__ = ["MARKS", "Event", "Marked", "events_of_chain", "mark"]

MARKS = ("exclude", "include", "review")
"""Kinds of events that people decide on when they look at attempts."""

_FIELDS = ("seq", "item_id", "kind", "value", "actor", "reason", "created_at")
_EVENTS = sa.select(*(events.c[name] for name in _FIELDS))


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What became known of an item after it was stored."""

    seq: int
    """Commit order, shared with items."""
    item_id: str
    kind: str
    """status, exclude, include, review, stale, redact or parent_missing."""
    value: str
    """The new status, or what the kind's user put there."""
    actor: str
    """Who said so; "" unknown."""
    reason: str
    created_at: datetime


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a decision."""

    written: int
    """Events that were stored; 0: `missed` says why."""
    missed: list[Event]
    """Events of the chain that whoever decided had not seen; nothing was stored then."""


def events_of_chain(connection: Connection, seq: int) -> list[Event]:
    """Return the events of every item that hangs together with the item of `seq`, in the order of commit."""
    root = sa.select(facts.c.root_seq).where(facts.c.seq == seq).scalar_subquery()
    query = sa.select(items.c.id).join(facts, facts.c.seq == items.c.seq).where(facts.c.root_seq == root)
    names = list(connection.execute(query).scalars())
    found = sorted(select_in(connection, _EVENTS, events.c.item_id, names))
    return [Event(created_at=from_micros(row[-1]), **dict(zip(_FIELDS[:-1], row[:-1], strict=True))) for row in found]


def mark(
    appender: Appender, item_id: str, kind: str, actor: str, reason: str, *, whole_chain: bool, seen: int | None
) -> Marked:
    """Store a decision; see `ArtifactDAG.mark`.

    Raises:
        RepositoryError: no such item, or a name that databases refuse.
        UsageError: another kind.
    """
    if kind not in MARKS:
        raise UsageError(f"nothing is marked {kind!r}; allowed are: {', '.join(MARKS)}")
    connection = appender.connection
    seq = seq_of(connection, item_id, "ℛ")
    if seen is not None:
        missed = [event for event in events_of_chain(connection, seq) if event.seq > seen]
        if missed:
            return Marked(written=0, missed=missed)
    names = [link.id for link in tree(connection, seq)] if whole_chain else [item_id]
    for name in names:
        appender.add_event(name, kind, "", actor, reason)
    return Marked(written=len(names), missed=[])
