"""AtomicGuard's filesystem stores (2.3.0 and 2.39.1) into ℛ: one DAG, or a tree of them.

Objects are skimmed for what decides their place; then a few processes read them in order, parents first, while they
are stored in one transaction with the events and the report that belong to them. Ids are AtomicGuard's own, so
importing again takes what is new; a verdict that came later becomes a status event. Nothing is ever written into the
store. Definitions 10 and 16; errata 6-12, 15, 16 and 23.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from guardlearn.dag.importers.atomicguard_files import ObjectFolder, find_stores, object_files, object_folders
from guardlearn.dag.importers.atomicguard_people import amendments, reviews
from guardlearn.dag.importers.atomicguard_pool import Readers
from guardlearn.dag.importers.atomicguard_storing import completed, store_survey
from guardlearn.dag.importers.atomicguard_survey import Survey
from guardlearn.dag.imports import ImportReport
from guardlearn.dag.rows import ItemRows, decode_seen, decode_text, from_micros
from guardlearn.errors import UsageError
from guardlearn.types import ArtifactStatus, OnProgress, RepositoryItem, Source

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["PROVENANCES", "fill", "import_atomicguard", "read_atomicguard"]

PROVENANCES = ("links", "links+history")
"""What counts as prior: previous_attempt_id alone, or where that is null the last attempt of H too (erratum 7)."""


def import_atomicguard(
    dag: ArtifactDAG,
    source: str | os.PathLike[str],
    *,
    provenance: str = "links",
    reviews_path: str | os.PathLike[str] | None = None,
    workflows: Collection[str] | None = None,
    processes: int | None = None,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Append what an AtomicGuard store holds to ℛ: all that is new or changed, in one transaction, or nothing.

    A fault never stops it: what cannot be read is named, everything else is taken. Memory does not grow with the store;
    while it runs, a temporary file (in TMPDIR, else /var/tmp) holds some 200 bytes an object.

    Args:
        dag: ℛ, open for writing.
        source: a FilesystemArtifactDAG's folder, or any folder above several.
        provenance: one of PROVENANCES. With "links" a cycle restarted after an escalation begins a chain of its own;
            with "links+history" it goes on from the last attempt of its H, though its generator was not shown it.
            Both flag such items `h_unseen` in the metadata (errata 7 and 8).
        reviews_path: AtomicGuard's reviews database; each resolved review becomes a review event.
        workflows: hashes of the workflows at hand (`workflow_hash`); an item whose W_ref is none of them is a fault.
        processes: read objects in so many processes beside this one; 0: in this one; None: as it pays.
        on_progress: called with (done, total, note); an object counts when it is skimmed and when it is stored.

    Returns:
        The completeness report; ℛ keeps it too (`ArtifactDAG.imports`).

    Raises:
        UsageError: unknown provenance, or processes below 0.
        DataError: no store there, no reviews database, or a process that read objects was killed.
        RepositoryError: ℛ cannot be written, or the temporary files cannot.
    """
    _check(provenance, processes)
    stores = find_stores(source)
    judged = reviews(reviews_path) if reviews_path is not None else []
    people, odd = amendments(source)
    with Survey() as found, Readers(provenance == "links+history", people, processes) as readers:
        fill(found, readers, source, stores, _files(source, stores), on_progress)
        found.add_faults(odd)
        with dag.writing() as connection:
            return store_survey(
                connection, source, found, readers, judged, workflows=workflows, on_progress=on_progress
            )


def read_atomicguard(source: str | os.PathLike[str], *, provenance: str = "links") -> Iterator[RepositoryItem]:
    """Yield a store's items without ℛ, parents first; what cannot be read is left out. See `import_atomicguard`."""
    _check(provenance, None)
    stores = find_stores(source)
    people, _ = amendments(source)
    with Survey() as found, Readers(provenance == "links+history", people, processes=0) as readers:
        fill(found, readers, source, stores, _files(source, stores))
        in_order = ((entry, found.path(entry), found.store(entry)) for entry in found.in_order())
        for entries, records in readers.read(in_order):
            for entry, record in zip(entries, records, strict=True):
                if not record.fault:
                    yield _item(completed(entry, record, found))


def fill(
    found: Survey,
    readers: Readers,
    source: str | os.PathLike[str],
    stores: list[Path],
    files: Iterable[tuple[ObjectFolder, str]],
    on_progress: OnProgress | None = None,
) -> None:
    """Skim objects, and read the indexes of their stores, into an empty survey, and complete it.

    Args:
        found: the survey.
        readers: skim the objects.
        source: what stores are named relative to.
        stores: folders of `find_stores`.
        files: the objects' folders and names, store by store.
        on_progress: called with (objects skimmed, twice their number, note).
    """
    named = [(number, store, os.path.relpath(store, source)) for number, store in enumerate(stores, 1)]
    steps = itertools.chain.from_iterable(itertools.starmap(found.index, named))
    total = sum(len(object_files(folder.path)) for folder in object_folders(source, stores)) if on_progress else 0
    done = 0
    next(steps, None)
    given = ((each, f"{each[0].path}/{each[1]}", "") for each in files)
    for each, heads in readers.skim(given):
        for folder, some in itertools.groupby(zip(each, heads, strict=True), key=lambda pair: pair[0][0]):
            pairs = list(some)
            found.take(folder.number, folder.path, [file[1] for file, _ in pairs], [head for _, head in pairs])
        done += len(heads)
        next(steps, None)  # the index is read while others read the objects
        if on_progress:
            on_progress(done, max(done, 2 * total), "reading")
    for _ in steps:
        pass
    found.complete()


def _check(provenance: str, processes: int | None) -> None:
    if provenance not in PROVENANCES:
        raise UsageError(f"provenance {provenance!r} is unknown; allowed are: {', '.join(PROVENANCES)}")
    if processes is not None and processes < 0:
        raise UsageError(f"processes={processes} must be 0 or more, or None for as many as pay")


def _files(source: str | os.PathLike[str], stores: list[Path]) -> Iterator[tuple[ObjectFolder, str]]:
    for folder in object_folders(source, stores):
        for name in object_files(folder.path):
            yield folder, name


def _item(rows: ItemRows) -> RepositoryItem:
    """Return the item that `encode_item` was given."""
    row, body = rows.row, rows.body
    names = ("id", "action_pair_id", "workflow_id", "workflow_ref", "cause", "guard", "fatal")
    return RepositoryItem(
        **{name: row[name] for name in names},
        artifact=decode_text(body["artifact"]),
        specification=decode_text(rows.specification),
        constraints=decode_text(rows.constraints),
        status=ArtifactStatus(row["status"]),
        parent_id=row["parent_id"] or None,
        source=Source(row["source"]),
        feedback=decode_text(body["feedback"]),
        created_at=from_micros(row["created_at"]),
        seen_history=decode_seen(body["seen"]),
        metadata=json.loads(body["details"])["metadata"],
    )
