"""ArtifactDAG: ℛ, the append-only repository of guarded attempts (Definition 2).

    with ArtifactDAG.create("runs.db") as dag:
        dag.append(RepositoryItem(id="a1", artifact="…", specification="…", status=ArtifactStatus.REJECTED))
        for item in dag.extract(refinement()): ...

Reading never changes what is stored (Theorem 3): E(ℛ, Φ) is a query in one state of ℛ, in a total order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy.engine import Connection

from guardlearn.dag import counting, imports, reading, redaction, registration, schema
from guardlearn.dag import facts as derived
from guardlearn.dag.appending import Appender, checked_event, portions
from guardlearn.dag.breakdown import BreakdownRow, breakdown
from guardlearn.dag.engine import Database
from guardlearn.dag.explaining import QueryPlan, explain
from guardlearn.dag.importers import by_way_of
from guardlearn.dag.imports import ImportRecord
from guardlearn.dag.reading import Query
from guardlearn.dag.recorder import Chain
from guardlearn.dag.registration import Reading
from guardlearn.dag.tree import Link, tree
from guardlearn.dag.verification import VerifyReport, verify
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.predicates.expression import Predicate, as_predicate
from guardlearn.predicates.vocabulary import everything
from guardlearn.types import OnProgress, RepositoryItem, Side, Specification

__all__ = ["ArtifactDAG", "Reading", "Selector"]

Selector = Predicate | Callable[[RepositoryItem], Any]
"""What selects items: a predicate, which runs in the database, or a function of an item, which runs in Python."""

_Read = TypeVar("_Read")


class ArtifactDAG:
    """ℛ on a database; make one with `create`, open one with `load`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def create(cls, target: str | os.PathLike[str], *, side_salt: str = schema.SIDE_SALT) -> ArtifactDAG:
        """Create an empty repository and open it.

        Args:
            target: a path, or a URL such as postgresql+psycopg://user@host/database.
            side_salt: seeds the division of specifications into sides; equal salts divide equal ones equally.

        Raises:
            RepositoryError: something is there already, or nothing can be made there.
        """
        database = Database(target, read_only=False)
        schema.install(database, side_salt)
        return cls(database)

    @classmethod
    def load(
        cls, target: str | os.PathLike[str], *, read_only: bool = False, on_progress: OnProgress | None = None
    ) -> ArtifactDAG:
        """Open an existing repository; never creates one.

        Args:
            target: a path or URL; a folder of AtomicGuard stores is read by way of a side file in the user's cache.
            read_only: refuse every append. Reading alone never changes ℛ, whatever this says.
            on_progress: called with (done, total, note) while a folder's side file is made or brought up to date.

        Raises:
            RepositoryError: nothing is there, it is no repository, or it is of another schema version.
        """
        target, read_only = by_way_of(target, read_only, on_progress)
        database = Database(target, read_only=read_only)
        database.must_exist()
        with contextlib.ExitStack() as unless_good:
            unless_good.callback(database.close)
            schema.check(database)
            unless_good.pop_all()
        return cls(database)

    @classmethod
    def open_or_create(cls, target: str | os.PathLike[str], *, side_salt: str = schema.SIDE_SALT) -> ArtifactDAG:
        """Open the repository at `target` for writing, or create it where nothing is."""
        place = Database(target, read_only=False)
        if not place.present():
            try:
                return cls.create(target, side_salt=side_salt)
            except RepositoryError:
                if not place.present():  # else another process was faster
                    raise
        return cls.load(target)

    @property
    def target(self) -> str:
        """What it was opened with, a password hidden."""
        return self._database.target

    def close(self) -> None:
        """Close every connection; the file is complete by itself then. It opens again when used again."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reading(self) -> contextlib.AbstractContextManager[Connection]:
        """Return a read-only connection for stages that query the tables themselves; one state of ℛ throughout."""
        return self._database.reading()

    def writing(self) -> contextlib.AbstractContextManager[Connection]:
        """Return one writing transaction, for stages that keep tables of their own in ℛ."""
        return self._database.writing()

    def lease(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold what one process at a time may hold, until the end of the block or of the process, however it ends.

        Raises:
            RepositoryError: another process holds it.
        """
        return self._database.lease(name)

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

    def count(self, predicate: Selector | None = None) -> int:
        """Return how many items `predicate` selects."""
        with self.reading() as connection:
            return counting.count(connection, _resolved(predicate))

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
