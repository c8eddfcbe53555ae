"""Reads items with their histories, in constant memory.

One query yields the keys of the selected items in order; each batch of keys is completed with a few queries: the rows,
the chains they belong to (one range by root), the texts. Parents are followed in memory. Theorem 3: nothing is written,
the order is total (ties by id), and everything comes from one state of ℛ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.batching import batches
from guardlearn.dag.checkpoints import untrained
from guardlearn.dag.rows import decode_item, decode_text
from guardlearn.dag.sql import runs_in_python, selection
from guardlearn.dag.tables import bodies, facts, items, specifications, texts
from guardlearn.predicates.expression import Predicate
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem

__all__ = ["ORDERS", "items_by_seq", "path_to_root", "paths_to_root", "stream"]

ORDERS = {"created_at": (items.c.created_at, items.c.id), "seq": (items.c.seq,)}
_BATCH = 256
_REJECTED = ArtifactStatus.REJECTED.value


class _Link(NamedTuple):
    """An item as a member of its chain."""

    seq: int
    id: str
    parent_seq: int
    status: str


def stream(
    connection: Connection,
    predicate: Predicate,
    *,
    order_by: str,
    descending: bool,
    limit: int | None,
    untrained_by: str | None = None,
) -> Iterator[RepositoryItem]:
    """Yield what a resolved predicate selects, in order.

    Args:
        connection: stays inside one reading transaction until the last item is taken.
        predicate: Φ, resolved.
        order_by: a key of ORDERS.
        descending: newest first; ties turn with it.
        limit: at most so many items, counted after every function of the predicate has spoken.
        untrained_by: leave out what this learner has trained.
    """
    by_hand = runs_in_python(predicate)
    columns = ORDERS[order_by]
    query = selection([items.c.seq], predicate, columns).order_by(*(c.desc() if descending else c for c in columns))
    if untrained_by is not None:
        query = query.where(untrained(untrained_by))
    if limit is not None and not by_hand:
        query = query.limit(limit)
    with connection.execute(query, execution_options={"yield_per": _BATCH}) as result:  # PostgreSQL's cursor ends here
        found = _complete(connection, result.scalars())
        yield from itertools.islice(filter(predicate.matches, found) if by_hand else found, limit)


def items_by_seq(connection: Connection, seqs: Sequence[int]) -> list[RepositoryItem]:
    """Return the items of `seqs`, in that order."""
    return list(_complete(connection, seqs))


def path_to_root(connection: Connection, seq: int) -> list[int]:
    """Return the seqs from the root of a chain to `seq`, which is the last."""
    return paths_to_root(connection, [seq])[seq]


def paths_to_root(connection: Connection, seqs: Sequence[int]) -> dict[int, list[int]]:
    """Return `path_to_root` of many items, by seq."""
    roots: set[int] = set()
    for batch in batches(seqs):
        roots |= set(connection.execute(sa.select(facts.c.root_seq).where(facts.c.seq.in_(batch))).scalars())
    links = _links(connection, sorted(roots))
    return {seq: [link.seq for link in reversed(_ancestors(links, seq))] + [seq] for seq in seqs}


def _complete(connection: Connection, seqs: Iterable[int]) -> Iterator[RepositoryItem]:
    remaining, known = iter(seqs), dict[int, str]()
    while batch := list(itertools.islice(remaining, _BATCH)):
        rows = _rows(connection, batch)
        roots = {row["root_seq"] for row in rows.values() if row["attempt"] > 1}
        links = _links(connection, sorted(roots))
        known = _texts(connection, rows.values(), known)
        paths = {seq: _ancestors(links, seq) if rows[seq]["attempt"] > 1 else [] for seq in batch}
        rejected = {link.seq for path in paths.values() for link in path if link.status == _REJECTED}
        said = _entries(connection, sorted(rejected), links, rows)
        for seq in batch:
            row, path = rows[seq], paths[seq]
            history = tuple(said[link.seq] for link in reversed(path) if link.status == _REJECTED)
            root = path[-1].id if path else row["id"]
            yield decode_item(row, known[row["specification"]], known[row["constraints"]], root, history)


def _rows(connection: Connection, seqs: Sequence[int]) -> dict[int, Any]:
    current = [column for column in facts.c if column.name not in ("seq", "status")]
    texts_of = [column for column in bodies.c if column.name != "seq"]
    query = (
        sa.select(*items.c, *current, *texts_of, facts.c.status.label("current_status"), specifications.c.side)
        .join(facts, facts.c.seq == items.c.seq)
        .join(bodies, bodies.c.seq == items.c.seq)
        .join(specifications, specifications.c.key == items.c.specification)
        .where(items.c.seq.in_(seqs))
    )
    return {row["seq"]: row for row in connection.execute(query).mappings()}


def _links(connection: Connection, roots: Sequence[int]) -> dict[int, _Link]:
    links: dict[int, _Link] = {}
    for batch in batches(roots):
        query = (
            sa.select(facts.c.seq, items.c.id, facts.c.parent_seq, facts.c.status)
            .join(items, items.c.seq == facts.c.seq)
            .where(facts.c.root_seq.in_(batch))
        )
        links |= {row[0]: _Link(*row) for row in connection.execute(query)}
    return links


def _ancestors(links: dict[int, _Link], seq: int) -> list[_Link]:
    """Return the items before `seq` in its chain, the nearest first."""
    path: dict[int, _Link] = {}
    link = links.get(links[seq].parent_seq)
    while link is not None and link.seq not in path:  # a damaged table could hold a circle
        path[link.seq] = link
        link = links.get(link.parent_seq)
    return list(path.values())


def _texts(connection: Connection, rows: Iterable[Any], known: dict[int, str]) -> dict[int, str]:
    """Return Ψ and Ω of a batch by key; keeps from `known` what is needed again."""
    keys = {key for row in rows for key in (row["specification"], row["constraints"])}
    kept = {key: known[key] for key in keys if key in known}
    for batch in batches(sorted(keys - kept.keys())):
        query = sa.select(texts.c.key, texts.c.body).where(texts.c.key.in_(batch))
        kept |= {key: decode_text(body) for key, body in connection.execute(query)}
    return kept


def _entries(
    connection: Connection, seqs: Sequence[int], links: dict[int, _Link], rows: dict[int, Any]
) -> dict[int, FeedbackEntry]:
    """Return (artifact, feedback) of rejected attempts; those that are in the batch anyway are not read twice."""
    said = {seq: (rows[seq]["artifact"], rows[seq]["feedback"]) for seq in seqs if seq in rows}
    for batch in batches([seq for seq in seqs if seq not in said]):
        query = sa.select(bodies.c.seq, bodies.c.artifact, bodies.c.feedback).where(bodies.c.seq.in_(batch))
        said |= {seq: (artifact, feedback) for seq, artifact, feedback in connection.execute(query)}
    return {
        seq: FeedbackEntry(artifact=decode_text(artifact), feedback=decode_text(feedback), item_id=links[seq].id)
        for seq, (artifact, feedback) in said.items()
    }
