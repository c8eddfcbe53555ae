"""Opens a folder of AtomicGuard stores as ℛ: a side file in the user's cache, brought up to date by what changed.

The side file remembers the size and time of every object it was made from, in a table of its own that is written in
the import's transaction, one row a folder. Where nothing changed, nothing is read; where objects came or changed, those
are; where one went or its content became another, the side file is made anew, because ℛ only grows.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from guardlearn.caches import cache_folder
from guardlearn.dag.importers.atomicguard_files import ObjectFolder, find_stores, listing, object_folders
from guardlearn.dag.importers.atomicguard_stamps import Watchers, digest, parse, processors, stamps
from guardlearn.dag.sqlite import ABANDONED_SECONDS
from guardlearn.digests import digest_text
from guardlearn.errors import DataError, RepositoryError
from guardlearn.types import OnProgress

if TYPE_CHECKING:
    from guardlearn.dag.importers.atomicguard_survey import Survey

__all__ = ["side_file"]

_KEPT = 2  # a process that opened the one before the newest goes on reading it
_WATCHED_FROM = 20_000
"""Starting a process takes about as long as asking for the state of so many files."""
_MOST_WATCHERS = 7
_TABLE = "CREATE TABLE atomicguard_folders (path BLOB PRIMARY KEY, digest BLOB, files INTEGER, stamps BLOB)"


def side_file(folder: str | os.PathLike[str], on_progress: OnProgress | None) -> Path:
    """Return the path of a folder's side file, made or brought up to date.

    Raises:
        RepositoryError: the folder holds no AtomicGuard store, or the cache takes no file.
    """
    try:
        stores = find_stores(folder)
    except DataError as error:
        raise RepositoryError(f"no repository at {os.fspath(folder)}: it is a folder, and {error}") from None
    place = cache_folder() / "atomicguard" / digest_text(os.path.realpath(folder))[:32]
    try:
        made = sorted(place.glob("[0-9]*.db"))
        if made and _refresh(made[-1], folder, stores, on_progress):
            return made[-1]
        return _make(place, folder, stores, on_progress)
    except OSError as error:
        raise RepositoryError(
            f"{os.fspath(folder)} is read by way of a side file in {place}, which cannot be written "
            f"({error.strerror}); set XDG_CACHE_HOME, or import it with `guardlearn import`"
        ) from error


class _MadeAnew(Exception):
    """What the side file holds is no longer what the folder holds."""


def _refresh(path: Path, folder: str | os.PathLike[str], stores: list[Path], on_progress: OnProgress | None) -> bool:
    """Bring a side file up to date; returns False where it must be made anew."""
    from guardlearn.dag.store import ArtifactDAG

    try:
        with ArtifactDAG.load(path) as dag:
            with dag.reading() as connection:
                if _is_current(connection, folder, stores):
                    return True
            with dag.writing() as connection:  # another process may have refreshed it meanwhile
                _take(connection, folder, stores, on_progress, anew=False)
        return True
    except (RepositoryError, DBAPIError, _MadeAnew):  # another version's, damaged, or outdated: it is only a cache
        return False


def _make(place: Path, folder: str | os.PathLike[str], stores: list[Path], on_progress: OnProgress | None) -> Path:
    from guardlearn.dag import schema
    from guardlearn.dag.engine import Database

    def fill(connection: Connection) -> None:
        connection.exec_driver_sql(_TABLE)
        _take(connection, folder, stores, on_progress, anew=True)

    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = place / f"{time.time_ns():020}-{uuid.uuid4().hex}.db"  # a name used before might meet a reader's log
    schema.install(Database(path, read_only=False), schema.SIDE_SALT, fill)
    for old in sorted(place.glob("[0-9]*.db"))[:-_KEPT]:
        _remove(old)
    for left in place.glob(".*"):  # drafts of processes that were killed
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                _remove(left)
    return path


def _take(
    connection: Connection,
    folder: str | os.PathLike[str],
    stores: list[Path],
    on_progress: OnProgress | None,
    *,
    anew: bool,
) -> None:
    """Import every object but those unchanged, and note the stamps."""
    # loaded here: most openings find nothing to import
    from guardlearn.dag.importers.atomicguard import fill
    from guardlearn.dag.importers.atomicguard_people import amendments
    from guardlearn.dag.importers.atomicguard_pool import Readers
    from guardlearn.dag.importers.atomicguard_storing import store_survey
    from guardlearn.dag.importers.atomicguard_survey import Survey

    people, odd = amendments(folder)
    with Survey() as found, Readers(by_history=False, people=people) as readers:
        fill(found, readers, folder, stores, _files(connection, found, folder, stores), on_progress)
        found.add_faults(odd)
        on_clash = None if anew else _make_anew
        store_survey(connection, folder, found, readers, on_clash=on_clash, on_progress=on_progress)


def _make_anew() -> NoReturn:
    raise _MadeAnew


def _is_current(connection: Connection, folder: str | os.PathLike[str], stores: list[Path]) -> bool:
    known, files = {}, 0
    for path, noted, count in connection.exec_driver_sql("SELECT path, digest, files FROM atomicguard_folders"):
        known[path] = noted
        files += count
    # a path below the folder, as the table has it, and as it is found
    paths = {os.fsencode(each.path): _path(folder, each) for each in object_folders(folder, stores)}
    if known.keys() != set(paths.values()):
        return False
    helpers = min(processors() - 1, _MOST_WATCHERS) if files >= _WATCHED_FROM else 0
    with contextlib.suppress(OSError), Watchers(list(paths), helpers) as watchers:
        return all(noted == known[paths[path]] for path, noted in watchers.digests())
    return False  # a folder cannot be listed: whoever reads it says so


def _files(
    connection: Connection, found: Survey, folder: str | os.PathLike[str], stores: list[Path]
) -> Iterator[tuple[ObjectFolder, str]]:
    """Yield the objects that came or changed, and note the stamps of all, taken before any is read."""
    count = 0
    for each in object_folders(folder, stores):
        count += 1
        with listing(each.path):
            now = stamps(os.fsencode(each.path))
        state, stored = parse(now), _known(connection, folder, each)
        names = [os.fsdecode(name) for name in state]
        if stored is not None:
            before = parse(stored)
            if before.keys() - state.keys():
                raise _MadeAnew
            same = [before.get(name) == stamp for name, stamp in state.items()]
            found.pass_over(each.number, [name for name, kept in zip(names, same, strict=True) if kept])
            names = [name for name, kept in zip(names, same, strict=True) if not kept]
        if now != stored:
            connection.exec_driver_sql(
                "INSERT OR REPLACE INTO atomicguard_folders VALUES (?, ?, ?, ?)",
                (_path(folder, each), digest(now), len(state), now),
            )
        for name in names:
            yield each, name
    if count != _count(connection):
        raise _MadeAnew


def _known(connection: Connection, folder: str | os.PathLike[str], each: ObjectFolder) -> bytes | None:
    query = "SELECT stamps FROM atomicguard_folders WHERE path = ?"
    found: bytes | None = connection.exec_driver_sql(query, (_path(folder, each),)).scalar_one_or_none()
    return found


def _count(connection: Connection) -> int:
    return int(connection.exec_driver_sql("SELECT COUNT(*) FROM atomicguard_folders").scalar_one())


def _path(folder: str | os.PathLike[str], each: ObjectFolder) -> bytes:
    return os.fsencode(os.path.relpath(each.path, folder))


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            Path(f"{path}{ending}").unlink()
