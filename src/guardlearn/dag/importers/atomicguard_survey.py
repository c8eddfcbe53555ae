"""Finds AtomicGuard's stores under a folder and indexes their objects: ids, links, times, order.

`objects/` is the truth; `index.json` is a hint, and where the two differ that is a fault, because two writers lose
index entries and a crash leaves an object without one. Nothing is written. Errata 6, 7 and 16.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.dag.importers import atomicguard_object as objects
from guardlearn.errors import DataError
from guardlearn.types import OnProgress

__all__ = ["Entry", "Survey", "find_stores", "object_files", "read_bytes", "survey"]

_PROGRESS_EVERY = 500


@dataclass(slots=True)
class Entry:
    """One object: where it lies and what decides its place."""

    id: str
    store: str
    path: str
    parent_id: str | None
    created_at: datetime
    time_known: bool
    status: str
    content: bytes
    """16 bytes that stand for the object's content."""
    circle: bool = False
    """Its links run in a circle."""


@dataclass(slots=True)
class Survey:
    """Every object of one or more stores."""

    entries: dict[str, Entry] = field(default_factory=dict)
    order: list[Entry] = field(default_factory=list)
    """The entries, parents first, then by (created_at, id)."""
    faults: list[str] = field(default_factory=list)
    skipped: int = 0


def find_stores(source: str | os.PathLike[str]) -> list[Path]:
    """Return every folder in `source` that is a FilesystemArtifactDAG, whatever the layout (erratum 16).

    Raises:
        DataError: there is none.
    """
    root, found = Path(source), []
    for folder, names, files in os.walk(root):
        if "objects" in names and not {"index.json", "index.tmp"}.isdisjoint(files):
            found.append(Path(folder))
            names.remove("objects")
        names.sort()
    if not found:
        raise DataError(
            f"{os.fspath(root)} holds no AtomicGuard store; one is a folder with index.json and objects/, "
            "or any folder above such ones"
        )
    return sorted(found)


def survey(
    source: str | os.PathLike[str],
    stores: list[Path],
    by_history: bool,
    on_progress: OnProgress | None = None,
    unchanged: Container[str] = (),
) -> Survey:
    """Read every object once.

    Args:
        source: what the stores' names are relative to.
        stores: folders of `find_stores`.
        by_history: join a restarted cycle to the last attempt of its H (erratum 7).
        on_progress: called with (stores read, stores, note).
        unchanged: paths of object files to pass over; ℛ has them.
    """
    found = Survey()
    for number, store in enumerate(stores, 1):
        name = os.path.relpath(store, source)
        index = _index(store, name, found)
        seen: set[str] = set()
        for path in object_files(store):
            seen.add(path.stem)
            if os.fspath(path) in unchanged:
                continue
            _add(found, index, path, name, by_history)
            if on_progress and len(found.entries) % _PROGRESS_EVERY == 0:
                on_progress(number - 1, len(stores), f"reading stores, {len(found.entries)} objects")
        _compare(found, index, seen, name)
    found.order = _in_order(found.entries)
    found.faults += [
        f"{each.id}: its links run in a circle, by way of {each.parent_id}" for each in found.order if each.circle
    ]
    return found


def object_files(store: Path) -> Iterator[Path]:
    """Yield the object files of one store, folder by folder, by name."""
    for folder in sorted(each for each in (store / "objects").iterdir() if each.is_dir()):
        yield from sorted(folder.glob("*.json"))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with io.FileIO(path) as file:
            return file.readall()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None


def _in_order(entries: dict[str, Entry]) -> list[Entry]:
    """Return the entries parents first; whoever is in a circle is marked."""
    done: set[str] = set()
    order: list[Entry] = []
    for start in sorted(entries.values(), key=lambda entry: (entry.created_at, entry.id)):
        path: dict[str, Entry] = {}
        entry: Entry | None = start
        while entry is not None and entry.id not in done:
            if entry.id in path:
                ids = list(path)
                for each in ids[ids.index(entry.id) :]:
                    path[each].circle = True
                break
            path[entry.id] = entry
            entry = entries.get(entry.parent_id or "")
        order += reversed(path.values())
        done.update(path)
    return order


def _add(found: Survey, index: dict[str, _Hint], path: Path, store: str, by_history: bool) -> None:
    try:
        raw = read_bytes(path)
        value = objects.parse(raw)
    except ValueError as error:
        found.skipped += 1
        found.faults.append(f"{path.stem}: not read, {error}")
        return
    name = value["artifact_id"]
    if name != path.stem:
        found.faults.append(f"{name}: its file is named {path.name!r}; the id inside is taken")
    content = hashlib.sha256(raw).digest()[:16]
    if (first := found.entries.get(name)) is not None:
        found.skipped += 1
        if first.content != content:
            found.faults.append(f"{name}: is in {first.store} and in {store} with another content; the first is taken")
        return
    entry = _entry(value, path, store, index.get(name), by_history)
    entry.content = content
    found.entries[name] = entry
    if not entry.time_known:
        found.faults.append(f"{name}: created_at is no time; taken from the index or the file")
    stated = index.get(name)
    if stated is None:
        found.faults.append(f"{name}: the index does not list it (a crash, or two writers)")
    elif stated.status != entry.status:
        found.faults.append(
            f"{name}: the index says {stated.status!a}, the object {entry.status!a}; the object is taken"
        )


def _entry(value: dict[str, Any], path: Path, store: str, stated: _Hint | None, by_history: bool) -> Entry:
    created_at = objects.time_of(value.get("created_at"))
    hint = objects.time_of(stated.created_at) if stated and created_at is None else None
    parent = value.get("previous_attempt_id")
    parent = parent if isinstance(parent, str) and parent else None
    if parent is None and by_history:
        told = [name for name, _ in objects.history(value) if name]
        parent = told[-1] if told else None
    return Entry(
        id=value["artifact_id"],
        store=store,
        path=os.fspath(path),
        parent_id=parent,
        created_at=created_at or hint or datetime.fromtimestamp(path.stat().st_mtime, UTC),
        time_known=created_at is not None,
        status=sys.intern(str(value.get("status"))),
        content=b"",
    )


class _Hint(msgspec.Struct):
    """What an index says about one object."""

    status: Any = None
    created_at: Any = None


class _Index(msgspec.Struct):
    """index.json, as far as it is looked at: typed, because 100,000 dicts would be most of an import's memory."""

    artifacts: dict[str, _Hint]
    action_pairs: dict[str, list[str]] = {}
    workflows: dict[str, list[str]] = {}


def _index(store: Path, name: str, found: Survey) -> dict[str, _Hint]:
    """Return the index's artifacts by id, {} where it cannot be read; ids listed twice are faults."""
    if (store / "index.tmp").exists():
        found.faults.append(f"{name}: index.tmp was left by a crash; it is not read")
    try:
        index = msgspec.json.decode(read_bytes(store / "index.json"), type=_Index)
    except (ValueError, RecursionError):
        found.faults.append(f"{name}: index.json cannot be read; objects are read without it")
        return {}
    for kind, listed in (("action_pairs", index.action_pairs), ("workflows", index.workflows)):
        for key, ids in listed.items():
            for each, times in Counter(ids).items():
                if times > 1:
                    found.faults.append(f"{each}: the index lists it {times} times under {kind} {key!a}")
    return index.artifacts


def _compare(found: Survey, index: dict[str, _Hint], seen: set[str], store: str) -> None:
    for name in index.keys() - seen - found.entries.keys():
        found.skipped += 1
        found.faults.append(f"{name}: the index of {store} lists it, but its object is missing")
