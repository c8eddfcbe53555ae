"""Which stored verdicts the present guard gave, and which are stale: its code or settings have changed since.

An item keeps the version that judged it when it was stored. A later judgement is an event, whose reason names the guard
and version that spoke, so that the newest one counts. What somebody else noted about an item (an importer's late
verdict, a person's) is theirs: such an item is judged again, but its status stays.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn import predicates
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.appending import Appender
from guardlearn.dag.batching import batches
from guardlearn.dag.rows import storable_name
from guardlearn.dag.tables import events
from guardlearn.types import Guard, Verdict

__all__ = ["Ages", "EventWriter", "ages", "mark_stale", "said_reason", "sampled"]

_AT_ONCE = 500
_WAITS_SECONDS = 1.0
_LONGEST_REASON = 500


class Ages(NamedTuple):
    """Items of one guard, by id, in order of id."""

    current: list[str]
    """Judged by the guard as it is now."""
    stale: list[str]
    """Judged by an earlier version, or marked stale."""
    marked: set[str]
    """Those of `stale` that are marked already."""
    noted: set[str]
    """Items whose last status somebody else noted."""


def ages(dag: ArtifactDAG, guard: Guard, where: predicates.Predicate) -> Ages:
    """Return which of the selected items the present guard judged; redacted ones are left out.

    Args:
        dag: ℛ; it is only read.
        guard: as it is now.
        where: Φ.
    """
    chosen = where & predicates.guard(guard.name) & ~predicates.redacted()
    same = predicates.guard(guard.name, version=guard.version)
    unmarked_same = set(dag.ids(chosen & same & predicates.fresh()))
    marked = set(dag.ids(chosen & ~predicates.fresh()))
    others = set(dag.ids(chosen & ~same & predicates.fresh()))
    spoken = _last_reasons(dag, [*unmarked_same, *marked, *others])
    ours = _prefix(guard.name, "")
    again = {name for name in others if spoken.get(name, "").startswith(_prefix(guard.name, guard.version))}
    elsewhere = {
        name for name in unmarked_same
        if (said := spoken.get(name, "")).startswith(ours) and not said.startswith(_prefix(guard.name, guard.version))
    }  # fmt: skip
    current = (unmarked_same - elsewhere) | again
    stale = marked | (others - again) | elsewhere
    noted = {name for name, said in spoken.items() if not said.startswith(ours)}
    return Ages(sorted(current), sorted(stale), marked, noted)


def sampled(ids: Iterable[str], count: int, seed: int) -> list[str]:
    """Return `count` of `ids` (0: all), the same ones whatever else ℛ holds in between, in order of id."""

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{name}".encode()).digest()

    return sorted(ids) if count == 0 else sorted(heapq.nsmallest(count, ids, key=place))


def mark_stale(dag: ArtifactDAG, ids: Sequence[str], guard: Guard, actor: str) -> int:
    """Note that the guard of these items has changed; returns how many were marked.

    Args:
        dag: ℛ, open for writing.
        ids: items, whose marking is complete one by one: a kill in between loses the rest, and the next run goes on.
        guard: as it is now.
        actor: who says so.
    """
    reason = f"guard {guard.name} is version {guard.version} now"
    with EventWriter(dag, actor) as events_:
        for name in ids:
            events_.add(name, "stale", guard.version, reason)
    return len(ids)


class EventWriter:
    """Appends events a few hundred, or what comes in a second, to a transaction; each event is whole by itself."""

    def __init__(self, dag: ArtifactDAG, actor: str) -> None:
        self._dag, self._actor = dag, storable_name(actor)
        self._waiting: list[tuple[str, str, str, str]] = []
        self._since = 0.0

    def add(self, item_id: str, kind: str, value: str, reason: str) -> None:
        """Take an event about a stored item."""
        self._since = self._since if self._waiting else time.monotonic()
        self._waiting.append((item_id, kind, value, storable_name(reason)))
        if len(self._waiting) >= _AT_ONCE or time.monotonic() - self._since > _WAITS_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        with self._dag.writing() as connection:
            appender = Appender(connection)
            for item_id, kind, value, reason in self._waiting:
                appender.add_event(item_id, kind, value, self._actor, reason)
            appender.finish()
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Write the rest, after an error or Ctrl-C too: what was judged is not lost."""
        self.flush()


def said_reason(guard: Guard, verdict: Verdict) -> str:
    """Return the reason of an event that stores a later verdict: guard, version, and what it said."""
    said = ": ".join(part for part in (verdict.cause, verdict.feedback) if part)
    return storable_name(f"{_prefix(guard.name, guard.version)}{said}"[:_LONGEST_REASON])


def _prefix(name: str, version: str) -> str:
    """Return how the reason of such an event begins; without a version, of any version's."""
    return storable_name(f"judged again by {name} {f'{version}: ' if version else ''}")


def _last_reasons(dag: ArtifactDAG, ids: Sequence[str]) -> dict[str, str]:
    """Return the reason of the last status event of each item that has one."""
    with dag.reading() as connection:
        return _read_reasons(connection, ids)


def _read_reasons(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    query = sa.select(events.c.item_id, events.c.reason).where(events.c.kind == "status").order_by(events.c.seq)
    for some in batches(ids):
        found.update((name, reason) for name, reason in connection.execute(query.where(events.c.item_id.in_(some))))
    return found
