"""ArtifactDAG: ℛ, the append-only repository of guarded attempts (Definition 2).

    with ArtifactDAG.create("runs.db") as dag:
        dag.append(RepositoryItem(id="a1", artifact="…", specification="…", status=ArtifactStatus.REJECTED))
        for item in dag.extract(refinement()): ...

Reading never changes what is stored (Theorem 3): E(ℛ, Φ) is a query in one state of ℛ, in a total order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from guardlearn.dag import counting, imports, marking, reading, redaction, registration
from guardlearn.dag import facts as derived
from guardlearn.dag.appending import Appender, checked_event, portions
from guardlearn.dag.breakdown import BreakdownRow, breakdown
from guardlearn.dag.explaining import QueryPlan, explain
from guardlearn.dag.imports import ImportRecord
from guardlearn.dag.marking import Event, Marked
from guardlearn.dag.opening import OpenRepository
from guardlearn.dag.page import ItemRow, page
from guardlearn.dag.reading import Query
from guardlearn.dag.recorder import Chain
from guardlearn.dag.registration import Reading
from guardlearn.dag.tree import Link, tree
from guardlearn.dag.verification import VerifyReport, verify
from guardlearn.errors import UsageError
from guardlearn.predicates.expression import Predicate, as_predicate
from guardlearn.predicates.vocabulary import everything
from guardlearn.types import OnProgress, RepositoryItem, Side, Specification

__all__ = ["ArtifactDAG", "Reading", "Selector"]

Selector = Predicate | Callable[[RepositoryItem], Any]
"""What selects items: a predicate, which runs in the database, or a function of an item, which runs in Python."""

_Read = TypeVar("_Read")


class ArtifactDAG(OpenRepository):
    """ℛ on a database; make one with `create`, open one with `load`."""

    def append(self, item: RepositoryItem) -> int:
        """Store one item; returns its seq. An item stored already, with the same content, changes nothing.

        Raises:
            RepositoryError: its id is stored with another content, or it cannot be stored.
        """
        with self._appending() as appender:
            return appender.add([item])[0]

    def append_many(self, items_: Iterable[RepositoryItem], on_progress: OnProgress | None = None) -> int:
        """Store all items in one transaction, or none; returns how many were new.

        Args:
            items_: read as it is stored, a batch at a time.
            on_progress: called with (items so far, items in all or 0 where not known, "storing").
        """
        total = len(items_) if isinstance(items_, Sequence) else 0
        done = 0
        with self._appending() as appender:
            for batch in portions(items_):
                appender.add(batch)
                done += len(batch)
                if on_progress:
                    on_progress(done, total, "storing")
            return appender.new

    def append_event(self, item_id: str, kind: str, *, value: str = "", actor: str = "", reason: str = "") -> int:
        """Store what became known about an item later; returns the event's seq.

        Args:
            item_id: an item of ℛ.
            kind: status (value: the new status), exclude, include, review, stale (its guard changed) or redact.
            value: the new status, or what the kind's user puts there.
            actor: who says so.
            reason: why.

        Raises:
            RepositoryError: no such item.
            UsageError: unknown kind or status.
        """
        value = checked_event(kind, value)
        if kind == "redact":
            return self.redact(item_id, actor, reason)
        with self._appending() as appender:
            return appender.add_event(item_id, kind, value, actor, reason)

    def mark(
        self, item_id: str, kind: str, *, actor: str, reason: str, whole_chain: bool = False, seen: int | None = None
    ) -> Marked:
        """Store what a person decided about an attempt, or about all that hang together with it, or nothing.

        Args:
            item_id: an item of ℛ.
            kind: exclude, include or review.
            actor: who says so.
            reason: why.
            whole_chain: one event for each item that `tree` returns; all of them, or none.
            seen: seq of the last event of the chain that was known (0: none); where there is a later one, nothing is
                stored and it is returned instead. None: whatever others said.

        Raises:
            RepositoryError: no such item, or a name that databases refuse.
            UsageError: another kind.
        """
        with self._appending() as appender:
            return marking.mark(appender, item_id, kind, actor, reason, whole_chain=whole_chain, seen=seen)

    def redact(self, item_id: str, actor: str, reason: str) -> int:
        """Blank an item's texts for good, wherever ℛ holds a copy; hashes stay. Returns the event's seq.

        Raises:
            RepositoryError: no such item.
        """
        with self._appending() as appender:
            seq = redaction.redact(appender, item_id, actor, reason)
        self._database.shrink_log(patience_seconds=5)
        return seq

    def chain(self, specification: str, **given: Any) -> Chain:
        """Start recording the attempts at one specification; see `recorder.Chain` for what may be given."""
        return Chain(self, specification, **given)

    def rebuild_facts(self) -> int:
        """Derive every item's facts again from items and events; returns the number of items."""
        with self._database.writing() as connection:
            return derived.rebuild(connection)

    def get_item(self, item_id: str) -> RepositoryItem:
        """Return one item with its facts, side and history.

        Raises:
            RepositoryError: no such item.
        """
        with self.reading() as connection:
            return reading.items_by_seq(connection, [reading.seq_of(connection, item_id, self.target)])[0]

    def known_ids(self, ids: Iterable[str]) -> set[str]:
        """Return those of `ids` that are stored."""
        with self.reading() as connection:
            return reading.known_ids(connection, ids)

    def provenance(self, item_id: str) -> list[RepositoryItem]:
        """Return the chain that leads to an item: root first, the item last; broken chains carry the flag.

        Raises:
            RepositoryError: no such item.
        """
        with self.reading() as connection:
            path = reading.path_to_root(connection, reading.seq_of(connection, item_id, self.target))
            return reading.items_by_seq(connection, path)

    def tree(self, item_id: str) -> list[Link]:
        """Return every attempt that hangs together with an item, its branches too, in the order of commit; no texts.

        Raises:
            RepositoryError: no such item.
        """
        with self.reading() as connection:
            return tree(connection, reading.seq_of(connection, item_id, self.target))

    def events(self, item_id: str) -> list[Event]:
        """Return what became known of every item that hangs together with one, in the order of commit.

        Raises:
            RepositoryError: no such item.
        """
        with self.reading() as connection:
            return marking.events_of_chain(connection, reading.seq_of(connection, item_id, self.target))

    def extract(
        self,
        predicate: Selector | None = None,
        *,
        order_by: str = "created_at",
        descending: bool = False,
        limit: int | None = None,
        filter: Selector | None = None,
        untrained_by: str | None = None,
    ) -> Iterator[RepositoryItem]:
        """Yield E(ℛ, Φ) in a total order and constant memory, from the state ℛ has when the first item is taken.

        Args:
            predicate: runs in the database; a plain function of an item runs in Python. None selects everything.
            order_by: "created_at" (ties by id) or "seq", the commit order.
            descending: the other way round, ties too.
            limit: at most so many items.
            filter: `predicate` under the guide's name.
            untrained_by: leave out the items that this learner has trained (Definition 14).

        Raises:
            UsageError: an argument is not allowed.
        """
        if filter is not None and predicate is not None:
            raise UsageError("predicate and filter are two names of one argument; give one of them")
        chosen = _resolved(predicate if filter is None else filter)
        query = Query(chosen, order_by=order_by, descending=descending, limit=limit, untrained_by=untrained_by)
        return self._each(reading.stream, query)

    def ids(self, predicate: Selector | None = None, *, order_by: str = "created_at") -> Iterator[str]:
        """Yield the ids of what `extract` yields, in its order; no text is read unless a function must see it.

        Raises:
            UsageError: an argument is not allowed.
        """
        return self._each(reading.ids, Query(_resolved(predicate), order_by=order_by))

    def explain(self, predicate: Selector | None = None, *, order_by: str = "created_at") -> QueryPlan:
        """Return the query that `extract` runs, and how this database carries it out: which indexes it takes.

        Raises:
            UsageError: an argument is not allowed.
        """
        with self.reading() as connection:
            return explain(connection, Query(_resolved(predicate), order_by=order_by))

    def page(
        self,
        predicate: Selector | None = None,
        *,
        after: int | None = None,
        limit: int = 50,
        order_by: str = "seq",
        descending: bool = False,
    ) -> list[ItemRow]:
        """Return a page of the items that `extract` would yield in this order, without their texts.

        A page is found by the item it begins behind, never by a count of items before it: what others append meanwhile
        moves nothing, and the last page costs what the first one does.

        Args:
            predicate: as in `extract`.
            after: seq of the item behind which the page begins, in this order; None: the first page.
            limit: at most so many rows, 1 or more.
            order_by: "created_at" (ties by id) or "seq", the commit order.
            descending: the other way round, ties too.

        Raises:
            UsageError: an argument is not allowed.
        """
        query = Query(_resolved(predicate), order_by=order_by, descending=descending, limit=limit)
        with self.reading() as connection:
            return page(connection, query, after)

    def count(self, predicate: Selector | None = None, *, at_most: int | None = None) -> int:
        """Return how many items `predicate` selects; `at_most`: stop counting there, 1 or more."""
        with self.reading() as connection:
            return counting.count(connection, _resolved(predicate), at_most)

    def count_by(self, predicate: Selector | None, field: str) -> dict[str, int]:
        """Return how many of the selected items have each value of `field`, by value.

        Raises:
            UsageError: items cannot be counted by this field.
        """
        with self.reading() as connection:
            return counting.count_by(connection, _resolved(predicate), field)

    def breakdown(self, by: str | None, predicate: Selector | None = None) -> list[BreakdownRow]:
        """Return items, chains, acceptance by attempt and expected attempts, by an axis; see `dag.breakdown`.

        Args:
            by: "action_pair", "source", "guard" (name and version), "week", "adapter", "adapter,week"; None: one row.
            predicate: counts these items only; None: all.

        Raises:
            UsageError: unknown axis.
        """
        with self.reading() as connection:
            return breakdown(connection, by, _resolved(predicate))

    def explain_drops(self, predicate: Selector, among: Selector | None = None) -> dict[str, int]:
        """Return in words the first condition that each item turned away fails, with how many fail it.

        Args:
            predicate: Φ.
            among: look at these items only; None: at all.
        """
        with self.reading() as connection:
            return counting.explain_drops(connection, _resolved(predicate), _resolved(among))

    @property
    def last_seq(self) -> int:
        """Seq of the last item or event; 0 for an empty ℛ."""
        with self.reading() as connection:
            return reading.last_seq(connection)

    def verify(self, on_progress: OnProgress | None = None) -> VerifyReport:
        """Recompute every digest and fact; the report names what was altered, is missing or was redacted."""
        with self.reading() as connection:
            return verify(connection, on_progress)

    def register(self, given: Iterable[Specification]) -> int:
        """Give specifications their sides before anything is attempted; returns how many were new.

        Raises:
            RepositoryError: a group's name cannot be stored.
        """
        with self._appending() as appender:
            return registration.register(appender, list(given))

    def assign_side(self, group: str, side: Side | str) -> None:
        """Pin a whole group to a side, before it has one; pinning it again to the same side changes nothing.

        Raises:
            RepositoryError: the group is on another side already; sides never change.
        """
        with self._database.writing() as connection:
            registration.pin(connection, group, side)

    def side_of(self, specification: str, group: str | None = None) -> Side | None:
        """Return the side of a specification, or of the group it would join; None while it has none."""
        with self.reading() as connection:
            return registration.side_of(connection, specification, group)

    def sides(self) -> dict[Side, int]:
        """Return how many specifications are on each side."""
        with self.reading() as connection:
            return registration.count_sides(connection)

    def sides_digest(self) -> str:
        """Return the digest of every assignment: it changes when a specification or a pin is added."""
        with self.reading() as connection:
            return registration.sides_digest(connection)

    def record_reading(self, adapter: str, sides_digest: str, specs: int, purpose: str) -> int:
        """Note that held-out specifications were read; returns the reading's number.

        Args:
            adapter: digest of the adapter measured; "" for the bare base.
            sides_digest: `sides_digest()` at that time.
            specs: how many specifications were read.
            purpose: what for, in a word: "evaluate", "gate", "demo".
        """
        with self._database.writing() as connection:
            return registration.record_reading(connection, adapter, sides_digest, specs, purpose)

    def readings(self) -> list[Reading]:
        """Return every reading of held-out specifications, the first one first."""
        with self.reading() as connection:
            return registration.readings(connection)

    def imports(self) -> list[ImportRecord]:
        """Return the report of every import, the first one first."""
        with self.reading() as connection:
            return imports.read(connection)

    @contextlib.contextmanager
    def _appending(self) -> Iterator[Appender]:
        with self._database.writing() as connection:
            appender = Appender(connection)
            yield appender
            appender.finish()

    def _each(self, read: Callable[[Connection, Query], Iterator[_Read]], query: Query) -> Iterator[_Read]:
        with self.reading() as connection:
            yield from read(connection, query)


def _resolved(predicate: Selector | None) -> Predicate:
    """Return Φ with relative times made absolute, once for the whole query (erratum 14)."""
    return everything() if predicate is None else as_predicate(predicate).resolve(datetime.now(UTC))
