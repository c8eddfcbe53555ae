"""Pages of items without their texts, found by the item they begin behind (keyset paging), never by OFFSET.

What is asked for first is what a page needs: the next few items in order. A database that knows nothing of how common
a status is takes the index of the predicate instead, and sorts everything it finds. So a page looks at the next
`_NEAR` items in order, whatever they are; only where too few of those match, the database does as it likes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql.util import ClauseAdapter

from guardlearn.dag.batching import select_in
from guardlearn.dag.reading import ORDERS, Query, items_by_seq
from guardlearn.dag.rows import from_micros
from guardlearn.dag.sql import condition, selection
from guardlearn.dag.tables import facts, items, specifications, texts
from guardlearn.errors import UsageError
from guardlearn.types import ArtifactStatus, Side, Source

__all__ = ["ItemRow", "page"]

_NEAR = (2_000, 40_000)
"""So many items are looked at, in order, before a query is left to the database."""

_BEGINNING = 160
"""Bytes of a specification that a row shows."""

_FROM_ITEMS = tuple("id action_pair_id workflow_id guard guard_version cause model adapter".split())
_FLAGS = tuple("excluded reviewed stale redacted broken".split())
_ROWS = (
    sa.select(
        *(items.c.seq, items.c.specification, items.c.created_at, items.c.source, facts.c.status),
        *(specifications.c.side, specifications.c.spec_group, facts.c.attempt, facts.c.rejected_ancestors),
        *(items.c[name] for name in _FROM_ITEMS),
        *(facts.c[name] for name in _FLAGS),
    )
    .join(facts, facts.c.seq == items.c.seq)
    .outerjoin(specifications, specifications.c.key == items.c.specification)
)
_BEGINNINGS = sa.select(
    texts.c.key, sa.func.substr(texts.c.body, sa.literal_column("1"), sa.literal_column(str(_BEGINNING)))
)


class ItemRow(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt as one line of a list."""

    seq: int
    id: str
    status: ArtifactStatus
    """Current status."""
    attempt: int
    """Position in the chain, 1 = first."""
    rejected_ancestors: int
    """Its retries (Definition 21)."""
    source: Source
    action_pair_id: str
    workflow_id: str
    guard: str
    guard_version: str
    cause: str
    model: str
    adapter: str
    """Digest; "" for the bare base."""
    side: Side | None
    group: str
    """Of Ψ; "" where none was given."""
    specification: str
    """How Ψ begins: its first line, or less of it."""
    created_at: datetime
    excluded: bool
    reviewed: bool
    stale: bool
    redacted: bool
    broken: bool


def page(connection: Connection, query: Query, after: int | None = None) -> list[ItemRow]:
    """Return the rows of a query that come behind an item.

    Args:
        connection: one state of ℛ.
        query: what is listed; its limit is the length of the page.
        after: seq of the item; None: from the beginning.

    Raises:
        UsageError: no such item, or a page of no length.
    """
    if not query.limit:
        raise UsageError(f"limit={query.limit}: a page has 1 row or more")
    seqs = list(itertools.islice(_seqs(connection, query, after), query.limit))
    rows = {row[0]: row for row in select_in(connection, _ROWS, items.c.seq, seqs)}
    beginnings = dict(select_in(connection, _BEGINNINGS, texts.c.key, sorted({row[1] for row in rows.values()})))
    return [_row(rows[seq], beginnings) for seq in seqs]


def _seqs(connection: Connection, query: Query, after: int | None) -> Iterator[int]:
    limit = query.limit or 0
    if not query.by_hand:
        yield from _found(connection, query, after, limit)
        return
    while found := _found(connection, query, after, max(limit, 50)):  # a function has the last word
        yield from (item.seq for item in items_by_seq(connection, found) if query.predicate.matches(item))
        after = found[-1]


def _found(connection: Connection, query: Query, after: int | None, limit: int) -> list[int]:
    """Return the next seqs that a query's SQL selects."""
    keys = ORDERS[query.order_by]
    behind = sa.true() if after is None else _behind(connection, query, after)
    for near in _NEAR:
        found = list(connection.execute(_among(query, behind, near).limit(limit)).scalars())
        if len(found) == limit:
            return found
    everywhere = selection([items.c.seq], query.predicate, keys).where(behind)
    return list(connection.execute(_in_order(everywhere, keys, query.descending).limit(limit)).scalars())


def _among(query: Query, behind: sa.ColumnElement[bool], near: int) -> sa.Select[Any]:
    """Return the query for those of the next `near` items that match; its inner query has no condition to optimise."""
    keys, test = ORDERS[query.order_by], condition(query.predicate)
    asked = [each for each in sa.sql.visitors.iterate(test) if isinstance(each, sa.Column)]
    inner = selection(list(dict.fromkeys([items.c.seq, *keys, *asked]))).where(behind)
    window = _in_order(inner, keys, query.descending).limit(near).subquery("near")
    inside = ClauseAdapter(window)
    outer = sa.select(window.c.seq).where(inside.traverse(test))
    return _in_order(outer, [inside.traverse(key) for key in keys], query.descending)


def _in_order(query: sa.Select[Any], keys: Sequence[Any], descending: bool) -> sa.Select[Any]:
    return query.order_by(*(key.desc() if descending else key for key in keys))


def _behind(connection: Connection, query: Query, after: int) -> sa.ColumnElement[bool]:
    """Return the condition that an item comes after the one of seq `after`, in the order of a query.

    Raises:
        UsageError: no such item.
    """
    keys = ORDERS[query.order_by]
    place = connection.execute(sa.select(*keys).where(items.c.seq == after)).one_or_none()
    if place is None:
        raise UsageError(f"after={after} is the seq of no item; begin at the first page")
    here, there = sa.tuple_(*keys), sa.tuple_(*(sa.literal(value) for value in place))
    return here < there if query.descending else here > there


def _row(row: Sequence[Any], beginnings: Mapping[int, bytes]) -> ItemRow:
    seq, specification, created_at, source, status, side, group, attempt, rejected_ancestors, *rest = row
    flags: dict[str, Any] = dict(zip(_FLAGS, map(bool, rest[len(_FROM_ITEMS) :]), strict=True))
    begins = bytes(beginnings.get(specification) or b"").lstrip().partition(b"\n")[0]
    return ItemRow(
        seq=seq,
        created_at=from_micros(created_at),
        source=Source(source),
        status=ArtifactStatus(status),
        side=Side(side) if side else None,
        group=group or "",
        attempt=attempt,
        rejected_ancestors=rejected_ancestors,
        specification=begins.decode("utf-8", "replace").rstrip("\ufffd"),
        **dict(zip(_FROM_ITEMS, rest, strict=False)),
        **flags,
    )
