"""Reads items with their histories, in constant memory.

One query yields the keys of the selected items in order; each batch of keys is completed with a few queries: the rows,
the chains they belong to (one range by root), the texts. Parents are followed in memory. Theorem 3: nothing is written,
the order is total (ties by id), and everything comes from one state of ℛ.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import NoResultFound

from guardlearn.dag.batching import batches, select_in
from guardlearn.dag.checkpoints import untrained
from guardlearn.dag.rows import READ_BODY, READ_FACTS, READ_ITEM, decode_item, decode_text, storable
from guardlearn.dag.sql import runs_in_python, selection
from guardlearn.dag.tables import bodies, facts, head, items, specifications, texts
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.predicates.expression import Predicate
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem

__all__ = [
    "ORDERS",
    "Query",
    "ids",
    "items_by_seq",
    "known_ids",
    "last_seq",
    "path_to_root",
    "paths_to_root",
    "seq_of",
    "stream",
]

ORDERS = {"created_at": (items.c.created_at, items.c.id), "seq": (items.c.seq,)}
_REJECTED = ArtifactStatus.REJECTED.value

_BATCH = 256
"""Items whose places in their chains are looked up at once."""
_HELD = 512
"""Attempts whose texts are held at once, unless the history of one item has more."""
_LARGE = 16_384
"""Attempts whose texts have more bytes are read one by one, so that memory does not depend on what is stored."""

_ROWS = sa.select(*(items.c[name] for name in READ_ITEM), *(facts.c[name] for name in READ_FACTS)).join(
    facts, facts.c.seq == items.c.seq
)
_PARENT, _ROOT, _ATTEMPT = (len(READ_ITEM) + READ_FACTS.index(name) for name in ("parent_seq", "root_seq", "attempt"))
_ROOTS = sa.select(facts.c.root_seq)
_LINKS = sa.select(facts.c.seq, items.c.id, facts.c.parent_seq, facts.c.status).join(items, items.c.seq == facts.c.seq)
_BODIES = sa.select(*(bodies.c[name] for name in READ_BODY))
_SIZE: sa.ColumnElement[int] = functools.reduce(
    operator.add, (sa.func.length(bodies.c[name]) for name in READ_BODY[1:])
)
_SMALL = _BODIES.where(sa.literal_column(str(_LARGE)) >= _SIZE)
_TEXTS = sa.select(texts.c.key, texts.c.body, specifications.c.side).outerjoin(
    specifications, specifications.c.key == texts.c.key
)


class _Link(NamedTuple):
    """An item as a member of its chain."""

    seq: int
    id: str
    parent_seq: int
    status: str


@dataclass(frozen=True, slots=True)
class Query:
    """What is to be read, in which order.

    Raises:
        UsageError: an argument is not allowed.
    """

    predicate: Predicate
    """Φ, resolved."""
    order_by: str = "created_at"
    """A key of ORDERS."""
    descending: bool = False
    """The other way round; ties turn with it."""
    limit: int | None = None
    """At most so many items, counted after every function of the predicate has spoken."""
    untrained_by: str | None = None
    """Leave out what this learner has trained."""

    def __post_init__(self) -> None:
        if self.order_by not in ORDERS:
            raise UsageError(f"order_by={self.order_by!r} is unknown; allowed are: {', '.join(ORDERS)}")
        if self.limit is not None and self.limit < 0:
            raise UsageError(f"limit={self.limit} must be 0 or more, or None for all")

    @property
    def by_hand(self) -> bool:
        """Whether a function of the predicate has the last word, in Python."""
        return runs_in_python(self.predicate)

    def statement(self, column: sa.Column[Any] = items.c.seq) -> sa.Select[Any]:
        """Return the SQL that yields the seqs, or another column of items."""
        columns = ORDERS[self.order_by]
        query = selection([column], self.predicate, columns)
        query = query.order_by(*(column.desc() if self.descending else column for column in columns))
        if self.untrained_by is not None:
            query = query.where(untrained(self.untrained_by))
        return query if self.limit is None or self.by_hand else query.limit(self.limit)


def stream(connection: Connection, query: Query) -> Iterator[RepositoryItem]:
    """Yield what a query selects, in order.

    Args:
        connection: stays inside one reading transaction until the last item is taken.
        query: what to read.
    """
    # PostgreSQL's cursor ends with the block
    with connection.execute(query.statement(), execution_options={"yield_per": _BATCH}) as result:
        found = _complete(connection, result.scalars())
        yield from itertools.islice(filter(query.predicate.matches, found) if query.by_hand else found, query.limit)


def ids(connection: Connection, query: Query) -> Iterator[str]:
    """Yield the ids of what `stream` yields."""
    if query.by_hand:
        yield from (item.id for item in stream(connection, query))
        return
    with connection.execute(query.statement(items.c.id), execution_options={"yield_per": _BATCH}) as result:
        yield from result.scalars()


def last_seq(connection: Connection) -> int:
    """Return the seq of the last item or event; 0 for an empty ℛ."""
    return int(connection.execute(sa.select(head.c.seq).where(head.c.name == "log")).scalar_one())


def seq_of(connection: Connection, item_id: str, target: str) -> int:
    """Return the seq of a stored item; `target` names ℛ in the error.

    Raises:
        RepositoryError: no such item.
    """
    found = None
    if storable(item_id):
        found = connection.execute(sa.select(items.c.seq).where(items.c.id == item_id)).scalar_one_or_none()
    if found is None:
        raise RepositoryError(f"no item {item_id!r} in {target}")
    return int(found)


def known_ids(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Return those of `ids` that are stored."""
    wanted = [item_id for item_id in dict.fromkeys(ids) if storable(item_id)]
    return {
        found
        for batch in batches(wanted)
        for found in connection.execute(sa.select(items.c.id).where(items.c.id.in_(batch))).scalars()
    }


def items_by_seq(connection: Connection, seqs: Sequence[int]) -> list[RepositoryItem]:
    """Return the items of `seqs`, in that order."""
    return list(_complete(connection, seqs))


def path_to_root(connection: Connection, seq: int) -> list[int]:
    """Return the seqs from the root of a chain to `seq`, which is the last."""
    return paths_to_root(connection, [seq])[seq]


def paths_to_root(connection: Connection, seqs: Sequence[int]) -> dict[int, list[int]]:
    """Return `path_to_root` of many items, by seq."""
    links = _links(connection, {root for (root,) in select_in(connection, _ROOTS, facts.c.seq, seqs)})
    return {seq: [link.seq for link in reversed(_ancestors(links, links[seq].parent_seq))] + [seq] for seq in seqs}


class _Placed(NamedTuple):
    """A selected item without its texts, and where it stands in its chain."""

    row: Sequence[Any]
    root_id: str
    rejected: list[_Link]
    """The rejected attempts before it, the oldest first."""


def _complete(connection: Connection, seqs: Iterable[int]) -> Iterator[RepositoryItem]:
    remaining, shared = iter(seqs), dict[int, tuple[str, str | None]]()
    said: dict[int, FeedbackEntry] = {}  # attempts that are in the history of several items are read and decoded once
    while batch := list(itertools.islice(remaining, _BATCH)):
        placed = _place(connection, batch)
        shared = _shared_texts(connection, {key for each in placed for key in each.row[3:5]}, shared)
        for part, wanted in _parts(placed):
            said = {seq: entry for seq, entry in said.items() if seq in wanted}
            unread = sorted((wanted - said.keys()) | {each.row[0] for each in part})
            small = {row[0]: row for row in select_in(connection, _SMALL, bodies.c.seq, unread)}
            for row, root_id, rejected in part:
                history = []
                for link in rejected:
                    if (entry := said.get(link.seq)) is None:
                        entry = _entry(link, small.get(link.seq) or _body(connection, link.seq))
                        if link.seq in small:
                            said[link.seq] = entry
                    history.append(entry)
                (psi, side), (omega, _) = shared[row[3]], shared[row[4]]
                body = small.get(row[0]) or _body(connection, row[0])
                yield decode_item(row, body, (psi, omega), side, root_id, tuple(history))


def _place(connection: Connection, seqs: Sequence[int]) -> list[_Placed]:
    rows = {row[0]: row for row in select_in(connection, _ROWS, items.c.seq, seqs)}
    links = _links(connection, {row[_ROOT] for row in rows.values() if row[_ATTEMPT] > 1})
    placed = []
    for seq in seqs:
        if (row := rows.get(seq)) is None:
            raise NoResultFound(f"item {seq} has no facts")
        path = _ancestors(links, row[_PARENT]) if row[_ATTEMPT] > 1 else []
        rejected = [link for link in reversed(path) if link.status == _REJECTED]
        placed.append(_Placed(row, path[-1].id if path else row[1], rejected))
    return placed


def _parts(placed: Iterable[_Placed]) -> Iterator[tuple[list[_Placed], set[int]]]:
    """Yield items, in order, with the seqs of all attempts whose texts they need: as many as may be held at once."""
    part, wanted = list[_Placed](), set[int]()
    for each in placed:
        needed = {each.row[0], *(link.seq for link in each.rejected)}
        if part and len(wanted) + len(needed - wanted) > _HELD:
            yield part, wanted
            part, wanted = [], set()
        part.append(each)
        wanted |= needed
    if part:
        yield part, wanted


def _links(connection: Connection, roots: Iterable[int]) -> dict[int, _Link]:
    return {row[0]: _Link(*row) for row in select_in(connection, _LINKS, facts.c.root_seq, sorted(roots))}


def _ancestors(links: dict[int, _Link], parent_seq: int) -> list[_Link]:
    """Return the items of a chain from the one of `parent_seq` back to the root."""
    path: dict[int, _Link] = {}
    link = links.get(parent_seq)
    while link is not None and link.seq not in path:  # a damaged table could hold a circle
        path[link.seq] = link
        link = links.get(link.parent_seq)
    return list(path.values())


def _shared_texts(
    connection: Connection, keys: set[int], known: dict[int, tuple[str, str | None]]
) -> dict[int, tuple[str, str | None]]:
    """Return Ψ and Ω of a batch, each with its side (None: it is no Ψ), by key; takes what it can from `known`."""
    kept = {key: known[key] for key in keys if key in known}
    for key, body, side in select_in(connection, _TEXTS, texts.c.key, sorted(keys - kept.keys())):
        kept[key] = decode_text(body), side
    return kept


def _body(connection: Connection, seq: int) -> Sequence[Any]:
    """Return the texts of one attempt, however large they are."""
    for row in select_in(connection, _BODIES, bodies.c.seq, [seq]):
        return row
    raise NoResultFound(f"item {seq} has no texts")


def _entry(link: _Link, body: Sequence[Any]) -> FeedbackEntry:
    _, artifact, feedback, _, _ = body
    return FeedbackEntry(artifact=decode_text(artifact), feedback=decode_text(feedback), item_id=link.id)
