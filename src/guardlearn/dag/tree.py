"""A chain as the tree it may be: every attempt that hangs together with one, without its texts.

Two attempts at one rejection are two branches; `ArtifactDAG.provenance` returns the path to one item, this the rest.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.tables import facts, items
from guardlearn.types import ArtifactStatus

__all__ = ["Link", "tree"]


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An item as a member of its chain."""

    id: str
    parent_id: str | None
    """The attempt before it in ℛ; None: it is the first, or its parent is missing or would close a circle."""
    attempt: int
    """Position in the chain, 1 = first."""
    status: ArtifactStatus
    """Current status."""


def tree(connection: Connection, seq: int) -> list[Link]:
    """Return every item of the chain that the item of `seq` belongs to, in the order of commit."""
    root = sa.select(facts.c.root_seq).where(facts.c.seq == seq).scalar_subquery()
    query = (
        sa.select(facts.c.seq, items.c.id, facts.c.parent_seq, facts.c.attempt, facts.c.status)
        .join(items, items.c.seq == facts.c.seq)
        .where(facts.c.root_seq == root)
        .order_by(facts.c.seq)
    )
    rows = connection.execute(query).all()
    ids = {row.seq: str(row.id) for row in rows}
    return [
        Link(
            id=ids[row.seq],
            parent_id=ids.get(row.parent_seq),
            attempt=int(row.attempt),
            status=ArtifactStatus(row.status),
        )
        for row in rows
    ]
