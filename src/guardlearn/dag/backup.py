"""A copy of ℛ as of one moment, made while writers go on."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from guardlearn.dag import schema
from guardlearn.dag.engine import Database
from guardlearn.errors import RepositoryError, write_failure

__all__ = ["backup", "copy_to"]


def backup(target: str | os.PathLike[str], to: str | os.PathLike[str]) -> int:
    """Copy a repository into a new file, whole or not at all; returns the copy's bytes.

    The copy is what a reader sees who begins now (SQLite's online backup, https://sqlite.org/backup.html, in one step);
    writers are not stopped.

    Args:
        target: path or URL of a repository in an SQLite file.
        to: where the copy goes; must not exist.

    Raises:
        RepositoryError: no repository there, one that is not in a file, something at `to` already, or a disk that does
            not take it.
    """
    database = Database(target, read_only=True)
    database.must_exist()
    try:
        schema.check(database)
        return copy_to(database, Path(to))
    finally:
        database.close()


def copy_to(database: Database, place: Path) -> int:
    """Copy what an open database holds, of whichever schema version; see `backup`."""
    if place.exists():
        raise RepositoryError(f"{place} exists already; name another place for the backup")
    staged = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        _copy(database, staged)
        staged.rename(place)
    except (OSError, sqlite3.Error) as error:
        reason = write_failure(error) or str(error)
        raise RepositoryError(f"the backup cannot be written to {place} ({reason}); nothing is there") from error
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):
            Path(f"{staged}{ending}").unlink(missing_ok=True)
    return place.stat().st_size


def _copy(database: Database, staged: Path) -> None:
    with database.reading() as connection:
        source = connection.connection.driver_connection
        if not isinstance(source, sqlite3.Connection):
            raise RepositoryError(
                f"{database.target} is in PostgreSQL, which backs up by itself: run pg_dump --format=custom, "
                "and pg_restore into an empty database (docs/postgresql.md)"
            )
        with contextlib.closing(sqlite3.connect(staged)) as copy:
            source.backup(copy)
    with staged.open("rb") as file:
        os.fsync(file.fileno())
