"""Stores what a survey of AtomicGuard stores found: new items, late verdicts, people's reviews, and the report.

Errata 6-9, 11, 15 and 23.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import imports
from guardlearn.dag.appending import Appender
from guardlearn.dag.batching import batches
from guardlearn.dag.importers import atomicguard_object as objects
from guardlearn.dag.importers.atomicguard_people import Review
from guardlearn.dag.importers.atomicguard_pool import Readers
from guardlearn.dag.importers.atomicguard_records import Record, rows_of
from guardlearn.dag.importers.atomicguard_survey import Entry, Survey
from guardlearn.dag.importers.known import Said, clash, known_items, late_verdict, verdicts_said
from guardlearn.dag.importers.workflows import workflow_fault
from guardlearn.dag.imports import ImportReport
from guardlearn.dag.rows import ItemRows, decode_text, encode_seen, seen_digest, storable, storable_name
from guardlearn.dag.tables import events, items
from guardlearn.types import ArtifactStatus, FeedbackEntry, OnProgress

__all__ = ["completed", "store_survey"]

_ACTOR = "atomicguard import"
_BATCH = 500
_BATCH_BYTES = 4_000_000
_PENDING = ArtifactStatus.PENDING.value


def store_survey(
    connection: Connection,
    source: str | os.PathLike[str],
    found: Survey,
    readers: Readers,
    judged: Sequence[Review] = (),
    *,
    workflows: Collection[str] | None = None,
    on_clash: Callable[[], None] | None = None,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Store what a survey of `source` found, its reviews and its report, inside one writing transaction.

    Args:
        connection: the transaction.
        source: what was surveyed.
        found: the complete survey.
        readers: read the objects.
        judged: reviews.
        workflows: hashes that a workflow_ref may be, see `intake.import_items`.
        on_clash: called where ℛ holds an object's id with another content.
        on_progress: called with (objects read and stored, twice their number, note).
    """
    run = _Import(connection, found, on_clash, workflows)
    run.store(readers, on_progress)
    run.review(judged)
    report = run.report()
    imports.record(connection, os.fspath(source), report)
    return report


class Made(NamedTuple):
    """One object, ready to be stored."""

    entry: Entry
    record: Record
    rows: ItemRows


class _Import:
    """One import inside one writing transaction."""

    def __init__(
        self,
        connection: Connection,
        found: Survey,
        on_clash: Callable[[], None] | None,
        workflows: Collection[str] | None,
    ) -> None:
        self._connection = connection
        self._appender = Appender(connection)
        self._found = found
        self._on_clash = on_clash
        self._workflows = workflows
        self._first = connection.execute(sa.select(items.c.seq).limit(1)).first() is None
        """Whether ℛ is empty: then nothing needs to be looked for in it."""
        self._counts: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._lacks: Counter[tuple[str, ...]] = Counter()
        """How many objects lack the same; few kinds, so counting each name for each object would cost more."""
        self._pending: Counter[str] = Counter()

    def store(self, readers: Readers, on_progress: OnProgress | None) -> None:
        """Store every item, batch by batch."""
        found, total, done = self._found, self._found.count, 0
        in_order = ((entry, found.path(entry), found.store(entry)) for entry in found.in_order())
        for batch in _batches(readers.read(in_order)):
            made: dict[str, Made] = {}
            for entry, record in batch:
                if record.fault:
                    self._skip(entry.id, record.fault)
                elif not record.names.startswith(f"{entry.id}\0{entry.parent_id}\0"):
                    self._skip(entry.id, "not read, it changed while it was read; import again")
                else:
                    made[entry.id] = Made(entry, record, completed(entry, record, found))
            here = self._here(made.values())
            self._name_missing(made.values(), here)
            self._store(made, here)
            done += len(batch)
            if on_progress:
                on_progress(total + done, 2 * total, "storing")
        self._appender.finish()

    def review(self, judged: Sequence[Review]) -> None:
        """Note each resolved review as an event, once; a review never changes a status."""
        for each in judged:
            if each.status not in ("approved", "rejected"):
                self._unknown["review verdict"] += 1
                continue
            stored = known_items(self._connection, [each.artifact_id]).get(each.artifact_id)
            if stored is None:
                self._fault(each.id, f"this review is of item {each.artifact_id!a}, which is not here")
                continue
            if not stored["redacted"] and decode_text(stored["artifact"]) != each.content:
                self._fault(each.id, f"this review of {each.artifact_id} quotes another content; it is not taken")
                continue
            actor = f"review {storable_name(each.id)}"
            known = sa.select(events.c.seq).where(events.c.item_id == each.artifact_id, events.c.actor == actor)
            if self._connection.execute(known.limit(1)).first() is None:
                self._appender.add_event(each.artifact_id, "review", each.status, actor, storable_name(each.feedback))
                self._counts["changed by review"] += 1
        self._appender.finish()

    def report(self) -> ImportReport:
        """Return what happened."""
        for names, count in self._lacks.items():
            self._unknown.update(dict.fromkeys(names, count))
        return imports.report_of(
            self._counts,
            skipped=self._found.skipped,
            faults=self._found.index_faults.named() + self._found.faults.named(),
            unknown=self._unknown,
            pending=self._pending,
        )

    def _store(self, made: dict[str, Made], here: set[str]) -> None:
        stored = {} if self._first else known_items(self._connection, list(made))
        said = verdicts_said(self._connection, list(stored), _ACTOR)
        fresh: list[Made] = []
        for name, each in made.items():
            if name not in stored:
                fresh.append(each)
                self._take(each, "new", here)
            elif reason := clash(each.rows, stored[name]):
                hint = " (another --provenance?)" if reason == "parent" else ""
                self._skip(name, f"is in the repository with another {reason}{hint}, which stays")
                if self._on_clash:
                    self._on_clash()
            else:
                self._take(each, self._update(each.rows, stored[name], said.get(name, Said())), here)
        self._appender.add_encoded([each.rows for each in fresh])
        for each in fresh:
            if each.record.exclude:
                self._appender.add_event(each.entry.id, "exclude", "", _ACTOR, storable_name(each.record.exclude))

    def _update(self, rows: ItemRows, stored: Any, said: Said) -> str:
        """Note a verdict that the store did not have when its item was imported; returns the outcome."""
        name, late = rows.row["id"], late_verdict(rows, stored, said)
        if late.fault:
            self._fault(name, late.fault)
        if not late.status:
            return "unchanged"
        self._appender.add_event(name, "status", late.status, _ACTOR, storable_name(decode_text(rows.body["feedback"])))
        return "changed"

    def _take(self, each: Made, outcome: str, here: set[str]) -> None:
        entry, record, row = each.entry, each.record, each.rows.row
        self._counts[outcome] += 1
        for fault in record.faults:
            self._fault(entry.id, fault)
        if fault := workflow_fault(row["workflow_ref"], self._workflows):
            self._fault(entry.id, fault)
        self._lacks[record.unknown] += 1
        if row["status"] == _PENDING:
            self._pending[row["workflow_id"]] += 1
        if not entry.time_known:
            self._unknown["time"] += 1
        for name, ids in record.cited.items():
            if not here.issuperset(ids):
                self._unknown[name] += 1

    def _here(self, made: Collection[Made]) -> set[str]:
        """Return those ids that a batch refers to and that are in the stores or in ℛ."""
        wanted = {each.entry.parent_id for each in made if each.entry.parent is None and each.entry.parent_id}
        wanted.update(*(ids for each in made for ids in each.record.cited.values()))
        here = self._found.known(wanted)
        if not self._first:
            for some in batches([name for name in wanted - here if storable(name)]):
                here.update(self._connection.execute(sa.select(items.c.id).where(items.c.id.in_(some))).scalars())
        return here

    def _name_missing(self, made: Iterable[Made], here: set[str]) -> None:
        for entry, _, _ in made:
            if entry.parent is None and entry.parent_id and entry.parent_id not in here:
                self._fault(entry.id, f"the attempt before it, {entry.parent_id!a}, is missing: its chain is broken")
                self._unknown["parent"] += 1

    def _skip(self, name: str, fault: str) -> None:
        self._found.skipped += 1
        self._fault(name, fault)

    def _fault(self, name: str, fault: str) -> None:
        self._found.faults.add(name, fault)


def _batches(given: Iterable[tuple[list[Entry], list[Record]]]) -> Iterator[list[tuple[Entry, Record]]]:
    """Join what was read to batches that are worth their statements."""
    batch: list[tuple[Entry, Record]] = []
    size = 0
    for entries, records in given:
        batch += zip(entries, records, strict=True)
        size += sum(len(record.artifact) for record in records)
        if len(batch) >= _BATCH or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def completed(entry: Entry, record: Record, found: Survey) -> ItemRows:
    """Return an entry's rows, with what only its place among the others tells."""
    rows = rows_of(record, entry.created_at)
    if (entry.circle or (entry.parent_id and entry.parent is None)) and (seen := _joined(record, found)):
        rows.body["seen"] = encode_seen(seen)
        rows.row["seen_digest"] = seen_digest(rows.body["seen"])
    return rows


def _joined(record: Record, found: Survey) -> tuple[FeedbackEntry, ...]:
    """Return H joined by id to (content, feedback), for where the chain cannot give it (erratum 9).

    Only a whole H: part of one would outlast the arrival of the rest.
    """
    joined = []
    for name, feedback in record.history:
        prior = found.find(name)
        if prior is None:
            return ()
        try:
            value, _ = objects.parse(objects.read_bytes(found.path(prior)))
        except ValueError:
            return ()
        joined.append(FeedbackEntry(artifact=value["content"], feedback=decode_text(feedback), item_id=name))
    return tuple(joined)
