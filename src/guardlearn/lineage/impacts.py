"""Which adapters learned from something: an item, what a guard judged, a workflow.

An adapter learned from an item that it was trained on, and from every attempt before it in its chain where its views
show the history. The items come from one query over ℛ, whatever the number of adapters.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.rows import storable
from guardlearn.dag.tables import events, facts, items
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.lineage.increments import increments
from guardlearn.lineage.judges import Judge, said_by
from guardlearn.lineage.records import AdapterRecord, records
from guardlearn.types import View

__all__ = ["Impact", "Touched", "impact"]

_AT_ONCE = 1000
_EXAMPLES = 5
_LISTED = 8


class Touched(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter that learned from it."""

    name: str
    learner: str
    round: int
    digest: str
    state: str
    live: bool
    items: int
    """Trained items that it touches: itself, or an attempt before it that was shown."""
    in_history: int
    """Of these, those that it touches by an attempt before them alone."""
    trained: int
    """Items the adapter learned from in all."""
    share: float
    """items / trained, in [0, 1]."""
    examples: list[str]
    through: str
    """Name of the nearest adapter it went on from that learned from it, where it did not itself; "" else."""


class Impact(msgspec.Struct, frozen=True, kw_only=True):
    """What learned from something."""

    asked: str
    items: int
    """Items of ℛ that are meant; 0: the item is gone, and only adapters remember it."""
    adapters: list[Touched]


def impact(
    dag: ArtifactDAG, *, guard: str | None = None, item: str | None = None, workflow: str | None = None
) -> Impact:
    """Return the adapters that learned from one of these.

    Args:
        dag: ℛ; it is only read.
        guard: NAME, or NAME@VERSION with the version's first digits: what it judged.
        item: an item's id.
        workflow: a workflow's id: everything in it.

    Raises:
        UsageError: none of the three was given, or more than one.
        RepositoryError: no such item, guard or workflow.
    """
    given = {"guard": guard, "item": item, "workflow": workflow}
    asked = [(kind, name) for kind, name in given.items() if name is not None]
    if len(asked) != 1:
        raise UsageError(f"{len(asked)} of --guard, --item and --workflow were given; give one of them")
    (kind, name), known = asked[0], [each for each in records(dag) if each.digest]
    known = [*increments(dag, known), *known]
    trained = {item_id for each in known for item_id in each.item_ids}
    with dag.reading() as connection:
        count, touched = _touched(connection, _since(kind, name), trained)
        if not count and not (kind == "item" and name in trained):
            raise RepositoryError(f"no {kind} {name!r} in {dag.target}; {_there_is(connection, kind)}")
    if not count:  # the item is gone, its adapters are not
        touched = {name: _Hit(0, 0)}
    return Impact(asked=f"{kind} {name}", items=count, adapters=list(_adapters(known, touched)))


class _Hit(NamedTuple):
    """How an item that was trained on is touched."""

    itself: float
    """Seq from which on it is meant; an adapter of an earlier state did not learn from it. Infinite: never."""
    history: float
    """Likewise, an attempt before it."""


def _since(kind: str, name: str) -> sa.ColumnElement[Any]:
    """Return the seq from which on an item is meant; NULL: it is not."""
    if not storable(name) or not name:
        return sa.null()
    if kind != "guard":
        column = items.c.id if kind == "item" else items.c.workflow_id
        return sa.case((column == name, items.c.seq))
    plain, _, version = name.rpartition("@")
    judges = [Judge(name, "")] + ([Judge(plain, version)] if plain else [])
    first = sa.or_(
        *(sa.and_(items.c.guard == each.name, _begins(items.c.guard_version, each.version)) for each in judges)
    )
    again = (
        sa.select(sa.func.min(events.c.seq))
        .where(events.c.item_id == items.c.id, events.c.kind == "status")
        .where(sa.or_(*(_begins(events.c.reason, said_by(each)) for each in judges)))
    )
    return sa.case((first, items.c.seq), else_=again.scalar_subquery())


def _begins(column: sa.Column[str], text: str) -> sa.ColumnElement[bool]:
    """Whether a text begins so; LIKE would not tell case apart in SQLite."""
    return sa.func.substr(column, 1, len(text)) == text


def _touched(connection: Connection, since: sa.ColumnElement[Any], trained: set[str]) -> tuple[int, dict[str, _Hit]]:
    """Return how many items are meant, and how they touch those of `trained`."""
    roots = sa.select(facts.c.root_seq).join(items, items.c.seq == facts.c.seq).where(since.is_not(None))
    query = (
        sa.select(facts.c.root_seq, facts.c.seq, facts.c.parent_seq, items.c.id, since)
        .join(items, items.c.seq == facts.c.seq)
        .where(facts.c.root_seq.in_(roots))
        .order_by(facts.c.root_seq)
    )
    count, found = 0, dict[str, _Hit]()
    with connection.execute(query, execution_options={"yield_per": _AT_ONCE}) as result:
        for _, chain in itertools.groupby(result, key=itemgetter(0)):
            links = {seq: _Link(parent, item_id, meant) for _, seq, parent, item_id, meant in chain}
            count += sum(link.since is not None for link in links.values())
            for seq, link in links.items():
                if link.id in trained:
                    before = min(_before(links, seq), default=math.inf)
                    found[link.id] = _Hit(math.inf if link.since is None else link.since, before)
    return count, found


class _Link(NamedTuple):
    """An attempt as a member of its chain."""

    parent_seq: int
    id: str
    since: int | None
    """Seq from which on it is meant; None: it is not."""


def _before(links: Mapping[int, _Link], seq: int) -> Iterator[int]:
    """Yield since when each attempt before this one is meant, where it is."""
    seen = {seq}
    seq = links[seq].parent_seq
    while seq in links and seq not in seen:  # a damaged table could hold a circle
        seen.add(seq)
        since = links[seq].since
        if since is not None:
            yield since
        seq = links[seq].parent_seq


def _adapters(known: Sequence[AdapterRecord], touched: Mapping[str, _Hit]) -> Iterator[Touched]:
    reached: dict[str, str] = {}
    """Digest → name of the adapter by which it came in."""
    for each in known:  # in order of making: a parent comes before what went on from it
        by_then = each.seq or sys.maxsize
        hits = {item_id: touched[item_id] for item_id in each.item_ids if item_id in touched}
        itself = {item_id for item_id, hit in hits.items() if hit.itself <= by_then}
        shown = set(each.views) != {View.FIRST_ATTEMPT.value}  # that view alone shows no earlier attempt
        own = [name for name, hit in hits.items() if name in itself or (shown and hit.history <= by_then)]
        through = reached.get(each.parent, "") if not own else ""
        if not own and not through:
            continue
        reached.setdefault(each.digest, each.name if own else through)
        total = len(set(each.item_ids))
        yield Touched(
            name=each.name,
            learner=each.learner,
            round=each.round,
            digest=each.digest,
            state=each.state,
            live=each.live,
            items=len(own),
            in_history=len(own) - len(itself),
            trained=total,
            share=len(own) / total if total else 0.0,
            examples=own[:_EXAMPLES],
            through=through,
        )


def _there_is(connection: Connection, kind: str) -> str:
    """Say what there is instead."""
    if kind == "item":
        return "`guardlearn stats` says what it holds"
    columns = [items.c.workflow_id] if kind == "workflow" else [items.c.guard, items.c.guard_version]
    query = sa.select(*columns).where(columns[0] != "").distinct().order_by(*columns).limit(_LISTED + 1)
    names = ["@".join(part for part in row if part) for row in connection.execute(query)]
    shown = ", ".join(names[:_LISTED]) or "none"
    return f"there are: {shown}{', and more' if len(names) > _LISTED else ''}"
