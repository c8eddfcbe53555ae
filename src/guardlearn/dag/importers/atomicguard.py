"""AtomicGuard's filesystem stores (2.3.0 and 2.39.1) into ℛ: one DAG, or a tree of them.

Objects are read twice: first each is checked and indexed, then they are read again in order, parents first, and stored
in one transaction with the events and the report that belong to them. Ids are AtomicGuard's own, so importing again
takes what is new; a verdict that came later becomes a status event. Nothing is ever written into the store.
Definitions 10 and 16; errata 6-12, 15, 16 and 23.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import imports
from guardlearn.dag.appending import Appender
from guardlearn.dag.batching import batches
from guardlearn.dag.importers import atomicguard_object as objects
from guardlearn.dag.importers.atomicguard_people import Review, amendment_key, amendments, reviews
from guardlearn.dag.importers.atomicguard_survey import Entry, Survey, find_stores, read_bytes, survey
from guardlearn.dag.imports import ImportReport
from guardlearn.dag.rows import ItemRows, decode_text, encode_item, storable
from guardlearn.dag.tables import bodies, events, facts, items, texts
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.types import ArtifactStatus, FeedbackEntry, OnProgress, RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["PROVENANCES", "import_atomicguard", "read_atomicguard", "store_survey"]

PROVENANCES = ("links", "links+history")
"""What counts as prior: previous_attempt_id alone, or where that is null the last attempt of H too (erratum 7)."""

_ACTOR = "atomicguard import"
_BATCH = 250


def import_atomicguard(
    dag: ArtifactDAG,
    source: str | os.PathLike[str],
    *,
    provenance: str = "links",
    reviews_path: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Append what an AtomicGuard store holds to ℛ: all that is new or changed, in one transaction, or nothing.

    A fault never stops it: what cannot be read is named, everything else is taken.

    Args:
        dag: ℛ, open for writing.
        source: a FilesystemArtifactDAG's folder, or any folder above several.
        provenance: one of PROVENANCES. With "links" a cycle restarted after an escalation begins a chain of its own;
            with "links+history" it goes on from the last attempt of its H, though its generator was not shown it.
            Both flag such items `h_unseen` in the metadata (errata 7 and 8).
        reviews_path: AtomicGuard's reviews database; each resolved review becomes a review event.
        on_progress: called with (done, total, note).

    Returns:
        The completeness report; ℛ keeps it too (`ArtifactDAG.imports`).

    Raises:
        UsageError: unknown provenance.
        DataError: no store there, or no reviews database.
        RepositoryError: ℛ cannot be written.
    """
    found = _survey(source, provenance, on_progress)
    judged = reviews(reviews_path) if reviews_path is not None else []
    with dag.writing() as connection:
        return store_survey(connection, source, found, judged, on_progress)


def store_survey(
    connection: Connection,
    source: str | os.PathLike[str],
    found: Survey,
    judged: Sequence[Review] = (),
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Store what a survey of `source` found, its reviews and its report, inside one writing transaction."""
    run = _Import(connection, found, amendments(source, found.faults))
    run.store(on_progress)
    run.review(judged)
    report = run.report()
    imports.record(connection, os.fspath(source), report)
    return report


def read_atomicguard(source: str | os.PathLike[str], *, provenance: str = "links") -> Iterator[RepositoryItem]:
    """Yield a store's items without ℛ, parents first; what cannot be read is left out. See `import_atomicguard`."""
    found = _survey(source, provenance, None)
    people = amendments(source, found.faults)
    for entry in found.order:
        made = _converted(entry, found, people)
        if made is not None:
            yield made.item


def _survey(source: str | os.PathLike[str], provenance: str, on_progress: OnProgress | None) -> Survey:
    if provenance not in PROVENANCES:
        raise UsageError(f"provenance {provenance!r} is unknown; allowed are: {', '.join(PROVENANCES)}")
    return survey(source, find_stores(source), provenance == "links+history", on_progress)


class _Import:
    """One import inside one writing transaction."""

    def __init__(self, connection: Connection, found: Survey, people: set[str]) -> None:
        self._connection = connection
        self._appender = Appender(connection)
        self._found = found
        self._people = people
        self._counts: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()

    def store(self, on_progress: OnProgress | None) -> None:
        """Store every item, batch by batch."""
        remaining, total, done = iter(self._found.order), len(self._found.order), 0
        while batch := list(itertools.islice(remaining, _BATCH)):
            made = {entry.id: each for entry in batch if (each := _converted(entry, self._found, self._people))}
            self._found.skipped += len(batch) - len(made)
            here = self._here(batch, made.values())
            self._name_missing(batch, here)
            self._store(made, here)
            done += len(batch)
            if on_progress:
                on_progress(done, total, "storing")
        self._appender.finish()

    def review(self, judged: Sequence[Review]) -> None:
        """Note each resolved review as an event, once; a review never changes a status."""
        for each in judged:
            if each.status not in ("approved", "rejected"):
                self._unknown["review verdict"] += 1
                continue
            stored = _stored(self._connection, [each.artifact_id]).get(each.artifact_id)
            if stored is None:
                self._fault(each.id, f"this review is of item {each.artifact_id!a}, which is not here")
                continue
            if not stored["redacted"] and decode_text(stored["artifact"]) != each.content:
                self._fault(each.id, f"this review of {each.artifact_id} quotes another content; it is not taken")
                continue
            actor = f"review {_name(each.id)}"
            known = sa.select(events.c.seq).where(events.c.item_id == each.artifact_id, events.c.actor == actor)
            if self._connection.execute(known.limit(1)).first() is None:
                self._appender.add_event(each.artifact_id, "review", each.status, actor, _name(each.feedback))
                self._counts["changed by review"] += 1
        self._appender.finish()

    def report(self) -> ImportReport:
        """Return what happened."""
        new, unchanged, changed = (self._counts[name] for name in ("new", "unchanged", "changed"))
        return ImportReport(
            read=new + unchanged + changed,
            new=new,
            unchanged=unchanged,
            changed=changed,
            skipped=self._found.skipped,
            faults=self._found.faults,
            unknown=dict(sorted(self._unknown.items())),
            pending=dict(sorted(self._pending.items())),
        )

    def _store(self, made: dict[str, objects.Converted], here: Container[str]) -> None:
        stored = _stored(self._connection, list(made))
        said = _verdicts_said(self._connection, list(stored))
        fresh: list[ItemRows] = []
        for name, each in made.items():
            try:
                encoded = encode_item(each.item)
            except RepositoryError as error:
                self._skip(name, f"it cannot be stored: {error}")
                continue
            if name not in stored:
                fresh.append(encoded)
                self._take(each, "new", here)
            elif reason := _clash(encoded, stored[name]):
                self._skip(name, f"is in the repository with another {reason}, which stays")
            else:
                outcome = self._update(each, encoded, stored[name], said.get(name))
                self._take(each, outcome, here)
        self._appender.add_encoded(fresh)
        for name in [encoded.row["id"] for encoded in fresh]:
            if (each := made[name]).exclude:
                self._appender.add_event(each.item.id, "exclude", "", _ACTOR, _name(each.exclude))

    def _update(self, each: objects.Converted, encoded: ItemRows, stored: Any, said: str | None) -> str:
        """Note a verdict that the store did not have when its item was imported; returns the outcome."""
        before, now = said or stored["status"], encoded.row["status"]
        if before != now:
            self._appender.add_event(each.item.id, "status", now, _ACTOR, _name(each.item.feedback))
        elif said is None and not stored["redacted"] and stored["feedback"] != encoded.body["feedback"]:
            self._fault(each.item.id, "its feedback is another than when it was imported; the first one stays")
        return "unchanged" if before == now else "changed"

    def _take(self, each: objects.Converted, outcome: str, here: Container[str]) -> None:
        item = each.item
        self._counts[outcome] += 1
        self._found.faults += [f"{item.id}: {fault}" for fault in each.faults]
        self._unknown.update(each.unknown)
        if item.status is ArtifactStatus.PENDING:
            self._pending[item.workflow_id] += 1
        if not self._found.entries[item.id].time_known:
            self._unknown["time"] += 1
        self._unknown.update(name for name, ids in each.cited.items() if any(one not in here for one in ids))

    def _here(self, batch: Sequence[Entry], made: Iterable[objects.Converted]) -> set[str]:
        """Return those ids that a batch refers to and that are in the stores or in ℛ."""
        wanted = {entry.parent_id for entry in batch if entry.parent_id}
        wanted.update(one for each in made for ids in each.cited.values() for one in ids)
        here = wanted & self._found.entries.keys()
        for some in batches([name for name in wanted - here if storable(name)]):
            here.update(self._connection.execute(sa.select(items.c.id).where(items.c.id.in_(some))).scalars())
        return here

    def _name_missing(self, batch: Sequence[Entry], here: Container[str]) -> None:
        for entry in batch:
            if entry.parent_id and entry.parent_id not in here:
                self._fault(entry.id, f"the attempt before it, {entry.parent_id!a}, is missing: its chain is broken")
                self._unknown["parent"] += 1

    def _skip(self, name: str, fault: str) -> None:
        self._found.skipped += 1
        self._fault(name, fault)

    def _fault(self, name: str, fault: str) -> None:
        self._found.faults.append(f"{name}: {fault}")


def _converted(entry: Entry, found: Survey, people: set[str]) -> objects.Converted | None:
    """Read an entry's object again and convert it; None, and a fault, where that fails."""
    try:
        value = objects.parse(read_bytes(entry.path))
        if value["artifact_id"] != entry.id:
            raise ValueError("it changed while it was read; import again")
        return objects.convert(
            value,
            parent_id=entry.parent_id,
            created_at=entry.created_at,
            store=entry.store,
            seen_history=_joined(entry, value, found),
            human=bool(people) and amendment_key(value.get("previous_attempt_id"), value["content"]) in people,
        )
    except ValueError as error:
        found.faults.append(f"{entry.id}: not read, {error}")
        return None


def _joined(entry: Entry, value: dict[str, Any], found: Survey) -> tuple[FeedbackEntry, ...] | None:
    """Return H joined by id to (content, feedback) where the chain cannot give it but the ids can (erratum 9).

    Only a whole H: part of one would outlast the arrival of the rest.
    """
    if not entry.circle and (not entry.parent_id or entry.parent_id in found.entries):
        return None
    joined = []
    for name, feedback in objects.history(value):
        prior = found.entries.get(name)
        if prior is None:
            return None
        artifact = objects.parse(read_bytes(prior.path))["content"]
        joined.append(FeedbackEntry(artifact=artifact, feedback=feedback, item_id=name))
    return tuple(joined) or None


def _stored(connection: Connection, ids: Sequence[str]) -> dict[str, Any]:
    """Return what ℛ holds under `ids`: row, texts, and digests of Ψ and Ω."""
    psi, omega = texts.alias("psi"), texts.alias("omega")
    query = (
        sa.select(
            *items.c,
            *(bodies.c[name] for name in ("artifact", "feedback")),
            facts.c.redacted,
            psi.c.digest.label("psi"),
            omega.c.digest.label("omega"),
        )
        .join(bodies, bodies.c.seq == items.c.seq)
        .join(facts, facts.c.seq == items.c.seq)
        .join(psi, psi.c.key == items.c.specification)
        .join(omega, omega.c.key == items.c.constraints)
    )
    found: dict[str, Any] = {}
    for batch in batches([name for name in ids if storable(name)]):
        rows = connection.execute(query.where(items.c.id.in_(batch))).mappings()
        found |= {row["id"]: row for row in rows}
    return found


def _verdicts_said(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """Return the last status that an import noted; what others noted since is theirs and stays."""
    query = sa.select(events.c.item_id, events.c.value).where(events.c.kind == "status", events.c.actor == _ACTOR)
    said: dict[str, str] = {}
    for batch in batches(ids):
        ordered = query.where(events.c.item_id.in_(batch)).order_by(events.c.seq)
        said |= {name: value for name, value in connection.execute(ordered)}
    return said


def _clash(encoded: ItemRows, stored: Any) -> str:
    """Return what differs between an object and the item ℛ holds under its id, "" where they are the same attempt."""
    differs = {
        "specification": encoded.specification_digest != bytes(stored["psi"]),
        "constraints": encoded.constraints_digest != bytes(stored["omega"]),
        "artifact": not stored["redacted"] and encoded.body["artifact"] != bytes(stored["artifact"]),
        "parent (another --provenance?)": encoded.row["parent_id"] != stored["parent_id"],
        "action pair": encoded.row["action_pair_id"] != stored["action_pair_id"],
        "workflow": encoded.row["workflow_id"] != stored["workflow_id"],
    }
    return next((name for name, differ in differs.items() if differ), "")


def _name(text: str) -> str:
    """Return a text as databases take it in a name: NUL and lone surrogates are written out."""
    return text if storable(text) else text.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
