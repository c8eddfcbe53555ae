"""ℛ in an SQLite file.

Reading never changes a cleanly closed file. Writers begin with BEGIN IMMEDIATE, and fold the write-ahead log into the
file when they close.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from guardlearn.errors import RepositoryError

__all__ = ["SqliteFile"]

PAGE_BYTES = 16384
"""SQLite's page: with its default of 4096, a 2 kB artifact would leave half of its page empty."""

BUSY_SECONDS = 30
"""How long a writer waits for another one before it gives up."""

_ROOM = "the disk is full or failing; make room, then run the same command again"


class SqliteFile:
    """The `Backend` of one file; `target` is what errors name."""

    def __init__(self, path: Path, target: str) -> None:
        self.target = target
        self._path = path.absolute()

    def present(self) -> bool:
        """Whether a file with content is there."""
        return self._path.exists() and self._path.stat().st_size > 0

    def must_exist(self) -> None:
        """Raise unless there is an SQLite file that can be opened."""
        if not self._path.is_file():
            what = "is a folder" if self._path.is_dir() else "does not exist"
            raise RepositoryError(
                f"no repository at {self.target}: it {what}; "
                "make one with `guardlearn import --into PATH`, `guardlearn collect --db PATH`, or ArtifactDAG.create"
            )
        try:
            with self._path.open("rb") as file:
                start = file.read(16)
        except OSError as error:
            raise RepositoryError(f"cannot open {self.target}: {error.strerror or error}") from error
        if start != b"SQLite format 3\x00":
            raise RepositoryError(f"{self.target} is no guardlearn repository: it is not an SQLite file")

    @contextlib.contextmanager
    def founding(self) -> Iterator[Connection]:
        """Yield a connection to a new file that appears under its name only when it is complete."""
        self._must_be_new()
        draft = SqliteFile(self._path.with_name(f".{self._path.name}.{os.getpid()}"), self.target)
        writer = draft.writer()
        try:
            with writer.begin() as connection:
                yield connection
            draft.shrink_log(writer, 0.1)
            writer.dispose()
            log = Path(f"{draft._path}-wal")
            if log.exists() and log.stat().st_size:  # it could not be folded into the file, which lacks it
                raise RepositoryError(f"{self.target} cannot be created: {_ROOM}")
            draft._path.replace(self._path)
        finally:
            writer.dispose()
            for ending in ("", "-wal", "-shm"):
                Path(f"{draft._path}{ending}").unlink(missing_ok=True)

    def reader(self) -> Engine:
        """Return an engine whose transactions see one state throughout and cannot write."""
        return self._engine("ro")

    def writer(self) -> Engine:
        """Return an engine whose transactions begin with the write lock."""
        return self._engine("rw" if self._path.exists() else "rwc")

    def hint(self, error: DBAPIError) -> str:
        """Return what to do about a driver's error."""
        reason = str(error.orig)
        if "disk I/O error" in reason or "disk is full" in reason:
            return f"; {_ROOM}"
        return "; another process is writing, try again" if "locked" in reason else ""

    def shrink_log(self, writer: Engine, patience_seconds: float) -> None:
        """Fold the write-ahead log into the file; what a reader still needs stays until the last one closes."""
        raw = writer.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute(f"PRAGMA busy_timeout={int(patience_seconds * 1000)}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        except sqlite3.Error:
            raw.invalidate()  # with its short patience it must not be used again
        else:
            raw.close()

    def _must_be_new(self) -> None:
        """Raise where something with content is already there, or nothing can be made there."""
        if self._path.is_dir() or self.present():
            raise RepositoryError(f"{self.target} exists already; open it with ArtifactDAG.load, or name another path")
        if not self._path.parent.is_dir():
            raise RepositoryError(f"cannot create {self.target}: the folder {self._path.parent} does not exist")
        if not os.access(self._path.parent, os.W_OK):
            raise RepositoryError(f"cannot create {self.target}: the folder {self._path.parent} is not writable")

    def _engine(self, mode: str) -> Engine:
        uri = f"{self._path.as_uri()}?{_open_mode(self._path) if mode == 'ro' else f'mode={mode}'}"

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            if mode == "ro":
                connection.execute("PRAGMA query_only=ON")
            else:
                connection.execute(f"PRAGMA page_size={PAGE_BYTES}")  # heeded by a new file only
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("PRAGMA secure_delete=ON")
            return connection

        engine = sa.create_engine("sqlite+pysqlite://", creator=connect, poolclass=sa.pool.QueuePool)
        begin = "BEGIN" if mode == "ro" else "BEGIN IMMEDIATE"

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine


def _open_mode(path: Path) -> str:
    """Return how a reader opens the file so that reading leaves no trace.

    Where a write-ahead log is pending (a writer at work, or one that was killed), mode=ro: the last reader to close
    would otherwise fold it into the file. Where there is none, plain opening: only that removes the reader's own lock
    files. Where the folder takes no such files, nobody can be writing, and none are needed.
    """
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size:
        return "mode=ro"
    return "mode=rw" if os.access(path.parent, os.W_OK) else "mode=ro&immutable=1"
