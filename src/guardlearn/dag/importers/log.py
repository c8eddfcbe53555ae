"""A user's own log into ℛ: JSON Lines with any field names, mapped to what an attempt needs.

The file is read twice: first every line is checked and indexed, then the new attempts are read again in chain order
and appended in one transaction. So nothing is half-read, and memory holds an index instead of the texts. Ids are
digests of content, so importing again, or importing a grown file, appends only what is new.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from guardlearn.dag import imports
from guardlearn.dag.importers.fields import MISSING, lookup
from guardlearn.dag.importers.mapping import (
    Line,
    check_mapping,
    field_of,
    parse_mapping,
    read_record,
    read_values,
)
from guardlearn.dag.imports import ImportReport
from guardlearn.digests import digest_json
from guardlearn.errors import LogError
from guardlearn.types import ArtifactStatus, OnProgress, RepositoryItem, Source

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["ImportReport", "import_log", "read_log"]

_PROGRESS_EVERY = 1000


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
    unknown: tuple[str, ...]
    id: str
    parent_id: str | None = None


def read_log(path: str | os.PathLike[str], mapping: Mapping[str, str]) -> Iterator[RepositoryItem]:
    """Yield the attempts of a JSON Lines log, chain by chain, each after the one it retries.

    Lines that share `chain` are one session, in order of `time` (file order without it); an accepted or fatal attempt
    ends a chain, and the session's next line starts another.

    Args:
        path: the log; UTF-8, one JSON object a line, blank lines allowed.
        mapping: REQUIRED_KEYS and any of OPTIONAL_KEYS → field of the log; dots go into nested objects
            ("request.prompt"); `accepted` may be "FIELD:VALUE" where only that value accepts.

    Raises:
        UsageError: the mapping has an unknown key or lacks one.
        LogError: a line is malformed or lacks a field; raised before the first attempt is yielded.
    """
    check_mapping(mapping)
    with _open(path) as file:
        entries = _index(file, Path(path).name, mapping, None)
        yield from _items(file, Path(path).name, mapping, entries)


def import_log(
    dag: ArtifactDAG,
    path: str | os.PathLike[str],
    mapping: Mapping[str, str] | str,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Append a log's attempts to ℛ: all that are new, in one transaction, or on an error none.

    Args:
        dag: ℛ, open for writing.
        path: see `read_log`.
        mapping: see `read_log`; or its text, as in "spec=prompt,artifact=answer,accepted=passed,chain=session_id".
        on_progress: called with (bytes read, bytes, "reading"), then (attempts stored, attempts, "storing").

    Raises:
        UsageError: the mapping has an unknown key or lacks one.
        LogError: a line is malformed or lacks a field, or its own id is stored with another content.
        RepositoryError: ℛ cannot be written.
    """
    mapping = parse_mapping(mapping) if isinstance(mapping, str) else mapping
    check_mapping(mapping)
    name = Path(path).name
    with _open(path) as file:
        entries = _index(file, name, mapping, on_progress)
        known = dag.known_ids([entry.id for entry in entries])
        if "id" in mapping:
            _check_contents(dag, name, _items(file, name, mapping, [entry for entry in entries if entry.id in known]))
        fresh = [entry for entry in entries if entry.id not in known]
        faults = _late_lines(name, entries, known)
        dag.append_many(_reporting(_items(file, name, mapping, fresh), len(fresh), on_progress))
    unknown = Counter(field for entry in entries for field in entry.unknown)
    report = ImportReport(
        read=len(entries),
        new=len(fresh),
        unchanged=len(entries) - len(fresh),
        faults=faults,
        unknown=dict(sorted(unknown.items())),
    )
    with dag.writing() as connection:
        imports.record(connection, os.fspath(path), report)
    return report


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise LogError(f"no log at {os.fspath(path)}; give a JSON Lines file") from None
    except OSError as error:
        raise LogError(f"the log {os.fspath(path)} cannot be read ({error.strerror}); give a JSON Lines file") from None


def _index(file: BinaryIO, name: str, mapping: Mapping[str, str], on_progress: OnProgress | None) -> list[_Entry]:
    """Check every line up to the size the file has now; return entries in append order, linked to their parents."""
    size = os.fstat(file.fileno()).st_size
    entries: list[_Entry] = []
    seen: dict[str, int] = {}
    used: set[str] = set()
    offset = number = 0
    while offset < size:
        raw = file.readline(size - offset)
        number += 1
        if raw.strip(b"\xef\xbb\xbf \t\r\n"):
            record = read_record(raw, name, number, last=offset + len(raw) >= size)
            used.update(key for key, field in mapping.items() if lookup(record, field_of(key, field)) is not MISSING)
            entry = _entry(read_values(record, name, mapping, number), number, offset, len(raw))
            if entry.id and seen.setdefault(entry.id, number) != number:
                raise LogError(
                    f"{name} line {number}: id {entry.id!r} is that of line {seen[entry.id]} too; ids must differ, "
                    "or leave id out of the mapping",
                    number,
                )
            entries.append(entry)
        offset += len(raw)
        if on_progress and number % _PROGRESS_EVERY == 0:
            on_progress(offset, size, "reading")
    if not entries:
        raise LogError(f"{name} holds no line; give a JSON Lines file with one attempt a line")
    for key in mapping.keys() - used - {"feedback"}:  # a rejected line without its feedback was refused above
        raise LogError(f"{name}: no line has the field {mapping[key]!r} (for {key}); leave {key} out or correct it")
    return _link(entries)


def _entry(line: Line, number: int, offset: int, length: int) -> _Entry:
    status, feedback = line.item["status"], line.item["feedback"]
    unsaid = {
        "time": line.time is None,
        "source": line.item["source"] is Source.UNKNOWN,
        "verdict": status is ArtifactStatus.PENDING,
        "feedback": status is ArtifactStatus.REJECTED and not feedback,
    }
    return _Entry(
        line=number,
        offset=offset,
        length=length,
        chain=line.chain,
        time=line.time,
        content=digest_json(line.item | {"time": line.time.isoformat() if line.time else None}),
        ends_chain=status in _ENDINGS or line.item["fatal"],
        unknown=tuple(field for field, missing in unsaid.items() if missing),
        id=line.id,
    )


_ENDINGS = (ArtifactStatus.ACCEPTED, ArtifactStatus.SUPERSEDED)


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


def _items(file: BinaryIO, name: str, mapping: Mapping[str, str], entries: list[_Entry]) -> Iterator[RepositoryItem]:
    now = datetime.now(UTC)
    for entry in entries:
        file.seek(entry.offset)
        record = read_record(file.read(entry.length), name, entry.line, last=False)
        line = read_values(record, name, mapping, entry.line)
        yield RepositoryItem(
            **line.item,
            id=entry.id,
            parent_id=entry.parent_id,
            created_at=line.time or now + timedelta(microseconds=entry.line),  # keeps the file's order
            metadata={"log": name, "line": entry.line, "chain": entry.chain},
        )


def _late_lines(name: str, entries: list[_Entry], known: set[str]) -> list[str]:
    """Name new lines whose successor is stored already: ℛ is append-only, so that one keeps its parent."""
    lines = {entry.id: entry.line for entry in entries if entry.id not in known}
    return [
        f"{name} line {lines[entry.parent_id]}: comes before line {entry.line} of chain {entry.chain!r}, which is "
        "stored already and keeps the history it had"
        for entry in entries
        if entry.id in known and entry.parent_id in lines
    ]


def _check_contents(dag: ArtifactDAG, name: str, items: Iterator[RepositoryItem]) -> None:
    for item in items:
        stored = dag.get_item(item.id)
        if (stored.artifact, stored.specification, stored.feedback) != (
            *(item.artifact, item.specification, item.feedback),
        ):
            line = int(item.metadata["line"])
            raise LogError(
                f"{name} line {line}: id {item.id!r} is stored already with another content; ids must be the log's "
                "own for ever, or leave id out of the mapping",
                line,
            )


def _reporting(items: Iterator[RepositoryItem], total: int, on_progress: OnProgress | None) -> Iterator[RepositoryItem]:
    for done, item in enumerate(items, 1):
        yield item
        if on_progress and (done % _PROGRESS_EVERY == 0 or done == total):
            on_progress(done, total, "storing")
