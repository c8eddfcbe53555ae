"""Checks the derived facts against items and events, with queries that return only what is wrong.

Each item is compared with its parent and with its own events. That is enough: if every item follows from its parent,
all follow from their roots, and a circle cannot, because attempts grow along the links.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.tables import events, facts, items, waiting
from guardlearn.types import ArtifactStatus

__all__ = ["check_facts"]

_REMEDY = "rebuild_facts() derives it again"


def check_facts(connection: Connection) -> Iterator[str]:
    """Yield one line for each item whose derived row is not what items and events say."""
    for what, query in (
        ("has no derived row", _missing()),
        ("its place in the chain is wrong", _misplaced()),
        ("its status or marks are wrong", _mismarked()),
        ("it should wait for its parent, or no longer", _miswaiting()),
    ):
        for item_id in connection.execute(query).scalars():
            yield f"item {item_id!r}: {what}; {_REMEDY}"
    orphaned = sa.select(facts.c.seq).outerjoin(items, items.c.seq == facts.c.seq).where(items.c.seq.is_(None))
    for seq in connection.execute(orphaned).scalars():
        yield f"a derived row for seq {seq} belongs to no item; {_REMEDY}"


def _missing() -> sa.Select[Any]:
    return sa.select(items.c.id).outerjoin(facts, facts.c.seq == items.c.seq).where(facts.c.seq.is_(None))


def _misplaced() -> sa.Select[Any]:
    """Find items that do not follow from the parent they hang on, or wrongly hang on none."""
    above, named, named_facts = facts.alias("above"), items.alias("named"), facts.alias("named_facts")
    follows = sa.and_(
        named.c.seq == facts.c.parent_seq,
        facts.c.attempt == above.c.attempt + 1,
        facts.c.root_seq == above.c.root_seq,
        facts.c.rejected_ancestors
        == above.c.rejected_ancestors + sa.case((above.c.status == ArtifactStatus.REJECTED.value, 1), else_=0),
        facts.c.broken == above.c.broken,
    )
    stands_alone = sa.and_(
        facts.c.attempt == 1,
        facts.c.root_seq == facts.c.seq,
        facts.c.rejected_ancestors == 0,
        facts.c.broken == (items.c.parent_id != ""),
        # a parent that is here is left aside only where it descends from the item itself
        sa.or_(named.c.seq.is_(None), named_facts.c.root_seq == facts.c.seq),
    )
    right = sa.case((facts.c.parent_seq == 0, stands_alone), else_=sa.and_(above.c.seq.is_not(None), follows))
    return (
        sa.select(items.c.id)
        .join(facts, facts.c.seq == items.c.seq)
        .outerjoin(above, above.c.seq == facts.c.parent_seq)
        .outerjoin(named, sa.and_(items.c.parent_id != "", named.c.id == items.c.parent_id))
        .outerjoin(named_facts, named_facts.c.seq == named.c.seq)
        .where(sa.func.coalesce(right, sa.false()) == sa.false())
    )


def _mismarked() -> sa.Select[Any]:
    """Find items whose marks are not what the last event of each kind says."""
    kinds = ("status", "exclude", "include", "review", "stale", "redact")
    last = (
        sa.select(
            events.c.item_id,
            *(sa.func.max(sa.case((events.c.kind == kind, events.c.seq), else_=0)).label(kind) for kind in kinds),
        )
        .group_by(events.c.item_id)
        .subquery("last")
    )
    verdict = events.alias("verdict")
    at = {kind: sa.func.coalesce(last.c[kind], 0) for kind in kinds}
    wrong = sa.or_(
        facts.c.status != sa.func.coalesce(verdict.c.value, items.c.status),
        facts.c.excluded != (at["exclude"] > at["include"]),
        facts.c.reviewed != (at["review"] > 0),
        facts.c.stale != (at["stale"] > at["status"]),
        facts.c.redacted != (at["redact"] > 0),
    )
    return (
        sa.select(items.c.id)
        .join(facts, facts.c.seq == items.c.seq)
        .outerjoin(last, last.c.item_id == items.c.id)
        .outerjoin(verdict, verdict.c.seq == last.c.status)
        .where(wrong)
    )


def _miswaiting() -> sa.Select[Any]:
    parent = items.alias("parent")
    missing = sa.and_(items.c.parent_id != "", items.c.parent_id != items.c.id, parent.c.seq.is_(None))
    return (
        sa.select(items.c.id)
        .outerjoin(parent, sa.and_(items.c.parent_id != "", parent.c.id == items.c.parent_id))
        .outerjoin(waiting, sa.and_(waiting.c.seq == items.c.seq, waiting.c.parent_id == items.c.parent_id))
        .where(missing != waiting.c.seq.is_not(None))
    )
