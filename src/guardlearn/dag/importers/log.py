"""A user's own log into ℛ: JSON Lines with any field names, mapped to what an attempt needs.

The file is read twice: first every line is checked and indexed, then the new attempts are read again in chain order
and appended in one transaction. So nothing is half-read, and memory holds an index instead of the texts. Ids are
digests of content without the verdict, so importing again, or importing a grown file, appends only what is new, and a
verdict that came later becomes an event.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import sqlalchemy as sa

from guardlearn.dag import imports
from guardlearn.dag.batching import batches
from guardlearn.dag.importers.fields import MISSING
from guardlearn.dag.importers.intake import Intake, store_all
from guardlearn.dag.importers.lines import IncompleteLine, RawLine, open_log, raw_lines, read_again, read_record
from guardlearn.dag.importers.mapping import Line, check_mapping, find, parse_mapping, read_values
from guardlearn.dag.importers.protocol import ImportedItem, ImportFault
from guardlearn.dag.imports import ImportReport
from guardlearn.dag.tables import items
from guardlearn.digests import digest_json
from guardlearn.errors import LogError
from guardlearn.types import ArtifactStatus, FeedbackEntry, OnProgress, RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["ImportReport", "import_log", "read_log"]


@dataclass(slots=True)
class _Entry:
    """One indexed line: where it stands, what decides its order, and what it became."""

    line: int
    offset: int
    length: int
    chain: str
    time: datetime | None
    content: str
    ends_chain: bool
    id: str
    parent_id: str | None = None


def read_log(path: str | os.PathLike[str], mapping: Mapping[str, str]) -> Iterator[RepositoryItem]:
    """Yield the attempts of a JSON Lines log, chain by chain, each after the one it retries.

    Lines that share `chain` are one session, in order of `time` (file order without it); an accepted or fatal attempt
    ends a chain, and the session's next line starts another.

    Args:
        path: the log; UTF-8, one JSON object a line, blank lines allowed.
        mapping: REQUIRED_KEYS and any of OPTIONAL_KEYS → field of the log; dots go into nested objects
            ("request.prompt"); `accepted` may be "FIELD:VALUE" where only that value accepts, or a score's
            "FIELD>=NUMBER"; "=VALUE" is the value for every line.

    Raises:
        UsageError: the mapping has an unknown key or lacks one.
        LogError: a line is malformed or lacks a field; raised before the first attempt is yielded. A last line that
            is not whole is left out.
    """
    check_mapping(mapping)
    with open_log(path) as file:
        entries, _ = _index(file, Path(path).name, mapping, None)
        yield from (made.item for made in _items(file, Path(path).name, mapping, entries))


def import_log(
    dag: ArtifactDAG,
    path: str | os.PathLike[str],
    mapping: Mapping[str, str] | str,
    on_progress: OnProgress | None = None,
    *,
    workflows: Collection[str] | None = None,
) -> ImportReport:
    """Append a log's attempts to ℛ: all that are new, in one transaction, or on an error none.

    The log may grow meanwhile: a last line that is not whole yet is named, and read the next time.

    Args:
        dag: ℛ, open for writing.
        path: see `read_log`.
        mapping: see `read_log`; or its text, as in "spec=prompt,artifact=answer,accepted=passed,chain=session_id".
        on_progress: called with (bytes read, bytes, "reading"), then (attempts stored, attempts, "storing").
        workflows: see `intake.import_items`.

    Raises:
        UsageError: the mapping has an unknown key or lacks one.
        LogError: a line is malformed or lacks a field, or its own id is stored with another content.
        RepositoryError: ℛ cannot be written.
    """
    mapping = parse_mapping(mapping) if isinstance(mapping, str) else mapping
    check_mapping(mapping)
    name = Path(path).name
    with open_log(path) as file:
        entries, faults = _index(file, name, mapping, on_progress)
        known = dag.known_ids([entry.id for entry in entries])
        faults += _late_lines(name, entries, known)
        given = _items(file, name, mapping, entries, known, _unjudged(dag, known))
        with dag.writing() as connection:
            intake = Intake(connection, "log import", links=False, on_clash=_clashes(name), workflows=workflows)
            for fault in faults:
                intake.fault(fault)
            store_all(intake, given, on_progress, len(entries))
            report = intake.report()
            imports.record(connection, os.fspath(path), report)
    return report


def _index(
    file: BinaryIO, name: str, mapping: Mapping[str, str], on_progress: OnProgress | None
) -> tuple[list[_Entry], list[ImportFault]]:
    """Check every line; return entries in append order, linked to their parents, and the fault of a last line."""
    entries: list[_Entry] = []
    faults: list[ImportFault] = []
    seen: dict[str, int] = {}
    used: set[str] = set()
    for line in raw_lines(file, on_progress):
        try:
            record = read_record(line, name)
        except IncompleteLine as error:
            if not entries:
                raise
            place, _, reason = str(error).partition(": ")
            faults.append(ImportFault(place=place, reason=reason))
            continue
        used.update(key for key, field in mapping.items() if find(record, key, field) is not MISSING)
        entry = _entry(read_values(record, name, mapping, line.number), line)
        if entry.id and seen.setdefault(entry.id, line.number) != line.number:
            raise LogError(
                f"{name} line {line.number}: id {entry.id!r} is that of line {seen[entry.id]} too; ids must differ, "
                "or leave id out of the mapping",
                line.number,
            )
        entries.append(entry)
    if not entries:
        raise LogError(f"{name} holds no line; give a JSON Lines file with one attempt a line")
    for key in mapping.keys() - used - {"feedback"}:  # a rejected line without its feedback was refused above
        raise LogError(f"{name}: no line has the field {mapping[key]!r} (for {key}); leave {key} out or correct it")
    return _link(entries), faults


def _entry(said: Line, line: RawLine) -> _Entry:
    content = {key: value for key, value in said.item.items() if key not in _VERDICT}
    return _Entry(
        line=line.number,
        offset=line.offset,
        length=len(line.body),
        chain=said.chain,
        time=said.time,
        content=digest_json(content | {"time": said.time.isoformat() if said.time else None}),
        ends_chain=said.item["status"] in _ENDINGS or said.item["fatal"],
        id=said.id,
    )


_ENDINGS = (ArtifactStatus.ACCEPTED, ArtifactStatus.SUPERSEDED)
_VERDICT = ("status", "fatal", "feedback", "cause")  # what may come later, so no part of an id


def _link(entries: list[_Entry]) -> list[_Entry]:
    """Return the entries chain by chain, in order, with ids and parents."""
    chains: dict[str, list[_Entry]] = defaultdict(list)
    for entry in entries:
        chains[entry.chain].append(entry)
    for chain in chains.values():
        chain.sort(key=lambda entry: (entry.time or datetime.min.replace(tzinfo=UTC), entry.line))
        parent: str | None = None
        repeats: Counter[str] = Counter()
        for entry in chain:
            repeats[entry.content] += 1
            # content and not position: a line that arrives late must not rename those after it
            entry.id = entry.id or digest_json([entry.chain, entry.content, repeats[entry.content]])[:32]
            entry.parent_id = parent
            parent = None if entry.ends_chain else entry.id
    return [entry for chain in chains.values() for entry in chain]


def _items(
    file: BinaryIO,
    name: str,
    mapping: Mapping[str, str],
    entries: list[_Entry],
    known: Collection[str] = (),
    unjudged: Collection[str] = (),
) -> Iterator[ImportedItem]:
    """Yield the attempts.

    Args:
        file: the log.
        name: its name.
        mapping: see `read_log`.
        entries: what to yield, chain by chain.
        known: ids that ℛ holds.
        unjudged: those of them that were stored without a verdict; a retry of one brings the H it was shown.
    """

    def read(entry: _Entry) -> Line:
        record = read_again(file, name, entry.line, entry.offset, entry.length)
        return read_values(record, name, mapping, entry.line)

    now = datetime.now(UTC)
    before: list[_Entry] = []
    judged_late = False
    for entry in entries:
        if entry.parent_id is None:
            before, judged_late = [], False
        line = read(entry)
        bring = judged_late and entry.id not in known
        item = RepositoryItem(
            **line.item,
            id=entry.id,
            parent_id=entry.parent_id,
            created_at=line.time or now + timedelta(microseconds=entry.line),  # keeps the file's order
            seen_history=tuple(_entry_of_history(each.id, read(each)) for each in before) if bring else None,
            metadata={"log": name, "line": entry.line, "chain": entry.chain},
        )
        yield ImportedItem(item=item, unknown=() if line.time else ("time",))
        if line.item["status"] is ArtifactStatus.REJECTED:
            before.append(entry)
            judged_late = judged_late or entry.id in unjudged


def _entry_of_history(name: str, line: Line) -> FeedbackEntry:
    return FeedbackEntry(artifact=line.item["artifact"], feedback=line.item["feedback"], item_id=name)


def _unjudged(dag: ArtifactDAG, ids: set[str]) -> set[str]:
    """Return those that ℛ stored without a verdict, and so without the feedback that came with it later."""
    query = sa.select(items.c.id).where(items.c.status == ArtifactStatus.PENDING.value)
    with dag.reading() as connection:
        return {
            name
            for some in batches(list(ids))
            for name in connection.execute(query.where(items.c.id.in_(some))).scalars()
        }


def _late_lines(name: str, entries: list[_Entry], known: set[str]) -> list[ImportFault]:
    """Name new lines whose successor is stored already: ℛ is append-only, so that one keeps its parent."""
    lines = {entry.id: entry.line for entry in entries if entry.id not in known}
    return [
        ImportFault(
            place=f"{name} line {lines[entry.parent_id]}",
            reason=f"comes before line {entry.line} of chain {entry.chain!r}, which is stored already and keeps the "
            "history it had",
            skipped=False,
        )
        for entry in entries
        if entry.id in known and entry.parent_id in lines
    ]


def _clashes(name: str) -> Callable[[ImportedItem, str], None]:
    def refuse(given: ImportedItem, differs: str) -> None:
        line = int(given.item.metadata["line"])
        raise LogError(
            f"{name} line {line}: id {given.item.id!r} is stored already with another content (its {differs}); ids "
            "must be the log's own for ever, or leave id out of the mapping",
            line,
        )

    return refuse
