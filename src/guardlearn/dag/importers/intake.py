"""The one way in: what an importer yields goes into ℛ in one transaction, with a report of what was new or lacking.

What ℛ holds already under an id stays. Another verdict becomes a status event, unless the one that came is none
(pending) or only implied; what people noted themselves is theirs. Another content is a fault. Definition 11 is checked
here too, where the workflows are at hand.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from guardlearn.dag import imports
from guardlearn.dag.appending import Appender
from guardlearn.dag.importers.known import Said, clash, known_items, late_verdict, verdicts_said
from guardlearn.dag.importers.protocol import Given, ImportedItem, Importer, ImportFault
from guardlearn.dag.importers.workflows import workflow_fault
from guardlearn.dag.imports import ImportReport
from guardlearn.dag.rows import ItemRows, encode_item, storable_name
from guardlearn.errors import DataError, GuardlearnError, RepositoryError
from guardlearn.types import ArtifactStatus, OnProgress, RepositoryItem, Source

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["Intake", "import_items", "import_with", "store_all"]

_BATCH = 250
_BATCH_CHARS = 8_000_000
"""Fifty large artifacts need not wait for the rest of a batch."""
_PROGRESS_EVERY = 1000


def import_items(
    dag: ArtifactDAG,
    given: Iterable[Given],
    source: str,
    *,
    workflows: Collection[str] | None = None,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Append what an importer yields to ℛ: all that is new or changed, in one transaction, or nothing.

    Args:
        dag: ℛ, open for writing.
        given: attempts and faults, taken as they come; a second attempt under one id is a fault.
        source: what was read, as the report names it.
        workflows: hashes of the workflows at hand (`workflow_hash`); an attempt whose W_ref is none of them is a fault.
        on_progress: called with (attempts so far, attempts in all or 0 where not known, "storing").

    Returns:
        The completeness report; ℛ keeps it too (`ArtifactDAG.imports`).

    Raises:
        DataError: something else was yielded.
        RepositoryError: ℛ cannot be written.
    """
    total = len(given) if isinstance(given, Sequence) else 0
    with dag.writing() as connection:
        intake = Intake(connection, "import", workflows=workflows)
        store_all(intake, _distinct(given), on_progress, total)
        report = intake.report()
        imports.record(connection, source, report)
    return report


def import_with(
    dag: ArtifactDAG,
    importer: Importer,
    source: str | os.PathLike[str],
    *,
    name: str = "",
    workflows: Collection[str] | None = None,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Run an importer of somebody else's over `source` and append what it yields; see `import_items`.

    Args:
        dag: ℛ, open for writing.
        importer: follows `Importer`.
        source: handed to it as a text.
        name: the importer's, for messages.
        workflows: see `import_items`.
        on_progress: see `import_items`.

    Raises:
        DataError: the importer failed, or yielded something else; nothing is stored.
        RepositoryError: ℛ cannot be written.
    """
    name = name or getattr(importer, "__qualname__", type(importer).__name__)
    place = os.fspath(source)
    return import_items(dag, _guarded(importer, place, name), place, workflows=workflows, on_progress=on_progress)


def store_all(intake: Intake, given: Iterable[Given], on_progress: OnProgress | None = None, total: int = 0) -> None:
    """Take everything, a batch at a time."""
    batch: list[ImportedItem] = []
    chars = done = 0
    for each in given:
        if isinstance(each, ImportFault):
            intake.fault(each)
            continue
        made = ImportedItem(item=each) if isinstance(each, RepositoryItem) else each
        if not isinstance(made, ImportedItem):
            raise DataError(
                f"an importer yielded {type(each).__name__}; it must yield RepositoryItem, ImportedItem or ImportFault"
            )
        batch.append(made)
        long = (made.item.artifact, made.item.feedback, made.item.specification)
        chars += sum(len(text) for text in long if isinstance(text, str))
        if len(batch) >= _BATCH or chars >= _BATCH_CHARS:
            intake.take(batch)
            batch, chars = [], 0
        done += 1
        if on_progress and (done % _PROGRESS_EVERY == 0 or done == total):
            on_progress(done, total, "storing")
    intake.take(batch)
    intake.finish()


class Intake:
    """One import inside one writing transaction."""

    def __init__(
        self,
        connection: Connection,
        actor: str,
        *,
        links: bool = True,
        on_clash: Callable[[ImportedItem, str], None] | None = None,
        workflows: Collection[str] | None = None,
    ) -> None:
        """Begin.

        Args:
            connection: the writing transaction.
            actor: who notes later verdicts; what other actors noted is never touched.
            links: whether an attempt stored with another parent is another attempt.
            on_clash: called with an attempt and what differs; None makes it a fault.
            workflows: see `import_items`.
        """
        self._connection, self._actor, self._links, self._workflows = connection, actor, links, workflows
        self._on_clash = on_clash
        self._appender = Appender(connection)
        self._counts: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()
        self._faults: list[str] = []

    def take(self, batch: Sequence[ImportedItem]) -> None:
        """Store a batch of attempts with distinct ids."""
        names = [each.item.id for each in batch if isinstance(each.item.id, str)]
        stored = known_items(self._connection, names)
        said = verdicts_said(self._connection, list(stored), self._actor)
        fresh: list[tuple[ImportedItem, ItemRows]] = []
        for each in batch:
            try:
                encoded = encode_item(each.item)
            except RepositoryError as error:
                self._skip(each.item.id, f"it cannot be stored: {error}")
                continue
            here = stored.get(each.item.id)
            if here is None:
                fresh.append((each, encoded))
                self._note(each, "new")
            elif reason := clash(encoded, here, self._links):
                self._clashes(each, reason)
            else:
                self._note(each, self._update(each, encoded, here, said.get(each.item.id, Said())))
        self._appender.add_encoded([encoded for _, encoded in fresh])
        for each, _ in fresh:
            if each.exclude:
                self._appender.add_event(each.item.id, "exclude", "", self._actor, storable_name(each.exclude))

    def fault(self, fault: ImportFault) -> None:
        """Note what was not read, or is odd."""
        self._counts["skipped"] += fault.skipped
        self._faults.append(f"{fault.place}: {fault.reason}")

    def finish(self) -> None:
        """Write the head of ℛ; the last step."""
        self._appender.finish()

    def report(self) -> ImportReport:
        """Return what happened."""
        return imports.report_of(
            self._counts,
            skipped=self._counts["skipped"],
            faults=self._faults,
            unknown=self._unknown,
            pending=self._pending,
        )

    def _update(self, each: ImportedItem, encoded: ItemRows, stored: Any, said: Said) -> str:
        """Note a verdict that the source did not have when its item was imported; returns the outcome."""
        late = late_verdict(encoded, stored, said, each.implied)
        if late.fault:
            self._faults.append(f"{each.item.id}: {late.fault}")
        if not late.status:
            return "unchanged"
        self._appender.add_event(each.item.id, "status", late.status, self._actor, storable_name(each.item.feedback))
        return "changed"

    def _note(self, each: ImportedItem, outcome: str) -> None:
        item = each.item
        self._counts[outcome] += 1
        self._faults += [f"{item.id}: {fault}" for fault in each.faults]
        lacks = {
            "source": item.source == Source.UNKNOWN,
            "verdict": item.status == ArtifactStatus.PENDING,
            "feedback": item.status == ArtifactStatus.REJECTED and not item.feedback,
            "workflow_ref": self._workflows is not None and not item.workflow_ref,
        }
        self._unknown.update({*each.unknown, *(name for name, missing in lacks.items() if missing)})
        if item.status == ArtifactStatus.PENDING:
            self._pending[item.workflow_id] += 1
        if fault := workflow_fault(item.workflow_ref, self._workflows):
            self._faults.append(f"{item.id}: {fault}")

    def _clashes(self, each: ImportedItem, reason: str) -> None:
        if self._on_clash:
            self._on_clash(each, reason)
        self._skip(each.item.id, f"is in the repository with another {reason}, which stays")

    def _skip(self, name: str, reason: str) -> None:
        self.fault(ImportFault(place=name, reason=reason))


def _distinct(given: Iterable[Given]) -> Iterator[Given]:
    """Yield what came, a second attempt under one id as a fault: which of two verdicts is later is not known."""
    seen: set[str] = set()
    for each in given:
        name = each.item.id if isinstance(each, ImportedItem) else getattr(each, "id", None)
        if isinstance(name, str) and name in seen:
            yield ImportFault(place=name, reason="comes twice from its source; the first one is taken")
            continue
        if isinstance(name, str):
            seen.add(name)
        yield each


def _guarded(importer: Importer, source: str, name: str) -> Iterator[Given]:
    done = 0
    try:
        for each in importer(source):
            yield each
            done += 1
    except GuardlearnError:
        raise
    except Exception as error:  # somebody else's code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"importer {name} failed after {done} attempts: {reason}; nothing was stored") from error
