"""Opens a folder of AtomicGuard stores as ℛ: a side file in the user's cache, brought up to date by what changed.

The side file remembers the size and time of every object it was made from, in a table of its own that is written in
the import's transaction. Where nothing changed, nothing is read; where objects came or changed, those are; where one
went or its content became another, the side file is made anew, because ℛ only grows.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from pathlib import Path

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from guardlearn.caches import cache_folder
from guardlearn.dag.importers.atomicguard import store_survey
from guardlearn.dag.importers.atomicguard_survey import find_stores, object_files, survey
from guardlearn.digests import digest_text
from guardlearn.errors import DataError, RepositoryError

__all__ = ["by_way_of"]

_Stamps = dict[bytes, tuple[int, int]]
"""Time (ns) and size of each object file, by its path below the folder."""

_KEPT = 2  # a process that opened the one before the newest goes on reading it


def by_way_of(target: str | os.PathLike[str], read_only: bool) -> tuple[str | os.PathLike[str], bool]:
    """Return what to open for `target`, and whether to refuse appends: a folder's side file, anything else itself.

    Raises:
        RepositoryError: a folder holds no AtomicGuard store, or the cache takes no file.
    """
    return (_side_file(target), True) if Path(target).is_dir() else (target, read_only)


def _side_file(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder's side file, made or brought up to date."""
    try:
        stores = find_stores(folder)
    except DataError as error:
        raise RepositoryError(f"no repository at {os.fspath(folder)}: it is a folder, and {error}") from None
    stamps = _stamps(folder, stores)
    place = cache_folder() / "atomicguard" / digest_text(os.path.realpath(folder))[:32]
    try:
        made = sorted(place.glob("[0-9]*.db"))
        if made and _refresh(made[-1], folder, stores, stamps):
            return made[-1]
        return _make(place, folder, stores, stamps)
    except OSError as error:
        raise RepositoryError(
            f"{os.fspath(folder)} is read by way of a side file in {place}, which cannot be written "
            f"({error.strerror}); set XDG_CACHE_HOME, or import it with `guardlearn import`"
        ) from error


def _stamps(folder: str | os.PathLike[str], stores: list[Path]) -> _Stamps:
    found: _Stamps = {}
    for store in stores:
        for path in object_files(store):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                found[os.fsencode(os.path.relpath(path, folder))] = state.st_mtime_ns, state.st_size
    return found


class _MadeAnew(Exception):
    """What the side file holds is no longer what the folder holds."""


def _refresh(path: Path, folder: str | os.PathLike[str], stores: list[Path], stamps: _Stamps) -> bool:
    """Bring a side file up to date; returns False where it must be made anew."""
    from guardlearn.dag.store import ArtifactDAG

    try:
        with ArtifactDAG.load(path) as dag:
            with dag.reading() as connection:
                known = _read(connection)
            if known == stamps:
                return True
            if known.keys() - stamps.keys():
                return False
            with dag.writing() as connection:
                known = _read(connection)  # another process may have refreshed it meanwhile
                _take(connection, folder, stores, stamps, {name for name in stamps if known.get(name) == stamps[name]})
        return True
    except (RepositoryError, DBAPIError, _MadeAnew):  # another version's, damaged, or outdated: it is only a cache
        return False


def _make(place: Path, folder: str | os.PathLike[str], stores: list[Path], stamps: _Stamps) -> Path:
    from guardlearn.dag.store import ArtifactDAG

    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{time.time_ns():020}-{uuid.uuid4().hex}.db"  # never a used name: a reader's log must not meet another file
    draft = place / f".{name}"
    try:
        with ArtifactDAG.create(draft) as dag, dag.writing() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE atomicguard_objects (path BLOB PRIMARY KEY, modified INTEGER, size INTEGER)"
            )
            _take(connection, folder, stores, stamps, set())
        draft.replace(place / name)
    finally:
        _remove(draft)
    for old in sorted(place.glob("[0-9]*.db"))[:-_KEPT]:
        _remove(old)
    return place / name


def _take(
    connection: Connection,
    folder: str | os.PathLike[str],
    stores: list[Path],
    stamps: _Stamps,
    unchanged: set[bytes],
) -> None:
    """Import every object but those unchanged, and note the stamps."""
    passed = {os.fspath(Path(folder) / os.fsdecode(name)) for name in unchanged}
    found = survey(folder, stores, by_history=False, unchanged=passed)
    unreadable = found.skipped
    store_survey(connection, folder, found)
    if unchanged and found.skipped > unreadable:
        raise _MadeAnew
    fresh = [(name, *stamp) for name, stamp in stamps.items() if name not in unchanged]
    if fresh:
        connection.exec_driver_sql("INSERT OR REPLACE INTO atomicguard_objects VALUES (?, ?, ?)", fresh)


def _read(connection: Connection) -> _Stamps:
    rows = connection.exec_driver_sql("SELECT path, modified, size FROM atomicguard_objects")
    return {bytes(path): (modified, size) for path, modified, size in rows}


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            Path(f"{path}{ending}").unlink()
