"""A chain for its page: the path to an item, what each attempt changed, what hangs beside it, and what was noted.

Everything is read in one state of ℛ and bounded: of a long chain the middle is left out, of a long text the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from guardlearn import provenance
from guardlearn.dag import ArtifactDAG, reading
from guardlearn.dag.tree import Link, tree
from guardlearn.types import RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag.marking import Event

__all__ = ["ATTEMPTS_SHOWN", "Attempt", "ChainPage", "chain_of"]

ATTEMPTS_SHOWN = 40
"""Most attempts of one path on a page: the first one, and the last ones."""
_COMPARED_LETTERS = 60_000
"""Longer texts are shown whole: comparing two by lines takes time that grows with their product."""
_COMPARED_LINES = 2_000
_RELATIVES = 12
_EVENTS = 200


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt, beside the one before it."""

    item: RepositoryItem
    name: str
    """"attempt 3"."""
    verdict: str
    flags: list[str]
    judged_by: str
    settings: str
    """What generated it, where that is not what generated the one before."""
    metadata: str
    changes: list[str] | None
    """Lines of the difference to the artifact before; [] where it is the same; None: the artifact is shown whole."""
    amended: list[tuple[str, list[str]]]
    """("specification" or "constraints", lines of the difference) where Ψ or Ω was amended."""
    siblings: list[Link]
    siblings_left_out: int
    redacted: bool


class ChainPage(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page of an item says."""

    item: RepositoryItem
    attempts: list[Attempt]
    """The path from the root to the item, or its first and its last ones."""
    left_out: list[str]
    """Ids of the attempts between the first shown and the others."""
    broken: str
    """What is wrong with the chain's beginning; "": nothing."""
    children: list[Link]
    children_left_out: int
    later: list[Link]
    """What came after the children."""
    later_left_out: int
    members: int
    """Attempts that hang together with the item, itself included."""
    events: list[Event]
    """Of all that hangs together with the item, the newest ones, oldest first."""
    events_left_out: int
    last_event: int
    """Seq of the newest of them; 0: none."""


def chain_of(dag: ArtifactDAG, item_id: str) -> ChainPage:
    """Gather what the page of an item says.

    Args:
        dag: ℛ; it is only read.
        item_id: the item.

    Raises:
        RepositoryError: no such item.
    """
    events = dag.events(item_id)  # before the rest: a mark made meanwhile is newer than what is shown, and told
    with dag.reading() as connection:
        seq = reading.seq_of(connection, item_id, dag.target)
        links = tree(connection, seq)
        path = reading.path_to_root(connection, seq)
        shown = path if len(path) <= ATTEMPTS_SHOWN else [path[0], *path[-ATTEMPTS_SHOWN + 1 :]]
        chain = reading.items_by_seq(connection, shown)
        between = _names(links, chain)
    children = [link for link in links if link.parent_id == item_id]
    later = provenance.descendants(children, links)
    beside = _by_parent(provenance.siblings(chain, links))
    return ChainPage(
        item=chain[-1],
        attempts=list(_attempts(chain, between, beside)),
        left_out=between,
        broken=provenance.broken(dag, chain) or "",
        children=children[:_RELATIVES],
        children_left_out=max(0, len(children) - _RELATIVES),
        later=later[:_RELATIVES],
        later_left_out=max(0, len(later) - _RELATIVES),
        members=len(links),
        events=events[-_EVENTS:],
        events_left_out=max(0, len(events) - _EVENTS),
        last_event=events[-1].seq if events else 0,
    )


def _names(links: Sequence[Link], chain: Sequence[RepositoryItem]) -> list[str]:
    """Return the ids of the path between the first and the second item of `chain`, oldest first."""
    if len(chain) < ATTEMPTS_SHOWN:
        return []
    parents = {link.id: link.parent_id for link in links}
    between: list[str] = []
    name = parents.get(chain[1].id)
    while name is not None and name != chain[0].id and len(between) < len(links):
        between.append(name)
        name = parents.get(name)
    return between[::-1]


def _by_parent(links: Sequence[Link]) -> dict[str | None, list[Link]]:
    found: dict[str | None, list[Link]] = {}
    for link in links:
        found.setdefault(link.parent_id, []).append(link)
    return found


def _attempts(
    chain: Sequence[RepositoryItem], between: Sequence[str], beside: Mapping[str | None, list[Link]]
) -> Iterator[Attempt]:
    before: RepositoryItem | None = None
    for item in chain:
        if between and before is chain[0]:
            before = None  # the one before it is not on the page
        siblings = beside.get(item.parent_id, []) if item.parent_id else []
        settings = provenance.settings(item)
        yield Attempt(
            item=item,
            name=provenance.attempt_name(item),
            verdict=provenance.verdict(item),
            flags=provenance.flags(item),
            judged_by=provenance.judged_by(item),
            settings=settings if before is None or settings != provenance.settings(before) else "",
            metadata=provenance.scalars(item.metadata),
            changes=_changes(before, item),
            amended=list(_amended(before, item)),
            siblings=siblings[:_RELATIVES],
            siblings_left_out=max(0, len(siblings) - _RELATIVES),
            redacted=_redacted(item),
        )
        before = item


def _changes(before: RepositoryItem | None, item: RepositoryItem) -> list[str] | None:
    if before is None or _redacted(before) or _redacted(item):
        return None
    return _difference(before.artifact, item.artifact, *map(provenance.attempt_name, (before, item)))


def _amended(before: RepositoryItem | None, item: RepositoryItem) -> Iterator[tuple[str, list[str]]]:
    for what in ("specification", "constraints"):
        earlier, now = (getattr(before, what), getattr(item, what)) if before is not None else ("", "")
        if earlier != now:
            yield what, _difference(earlier, now, "before", "after") or ["(too long to be compared)"]


def _difference(before: str, after: str, name: str, other: str) -> list[str] | None:
    """Return the lines of a difference; [] where there is none, None where the texts are too long to be compared."""
    if before == after:
        return []
    texts = (before, after)
    if max(map(len, texts)) > _COMPARED_LETTERS or max(text.count("\n") for text in texts) > _COMPARED_LINES:
        return None
    return provenance.difference_lines(before, after, name, other)


def _redacted(item: RepositoryItem) -> bool:
    return bool(item.facts and item.facts.redacted)
