"""ℛ in an SQLite file.

Reading never changes a cleanly closed file. Writers begin with BEGIN IMMEDIATE, and fold the write-ahead log into the
file when they close. Nobody but SQLite opens the file: a process that closes it drops its own SQLite's locks
(https://sqlite.org/howtocorrupt.html, 2.2), and another process would then remove the log that it still writes to.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import random
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from guardlearn.dag.patience import busy_hint, busy_seconds
from guardlearn.errors import RepositoryError

__all__ = ["ABANDONED_SECONDS", "SqliteFile"]

PAGE_BYTES = 16384
"""SQLite's page: with its default of 4096, a 2 kB artifact would leave half of its page empty."""

CACHE_KIB = 8192
"""What a writer holds of the file: ids come in no order, so a batch touches many pages of their index."""

_ASK_AGAIN_SECONDS = 0.004
"""How often a waiting writer asks, on average; SQLite's own waiting comes to ten times a second, which starves it."""

ABANDONED_SECONDS = 3600
"""A draft that nobody wrote for so long was left by a process that was killed."""

_SHARED = ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON")
_PRIVATE = ("journal_mode=OFF", "synchronous=OFF")
"""For a draft, which nobody else opens, and which is removed unless it was filled: there is nothing to roll back to."""

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
        if not self.present():
            raise RepositoryError(f"{self.target} is no guardlearn repository: it is an empty file")
        uri = f"{self._path.as_uri()}?{_open_mode(self._path)}"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=busy_seconds())) as connection:
                connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise RepositoryError(
                    f"{self.target} is no guardlearn repository: it is not an SQLite file, or its beginning is damaged"
                ) from error
            reason = "the file is damaged: restore a backup" if os.access(self._path, os.R_OK) else "it is not readable"
            raise RepositoryError(f"cannot open {self.target}: {error}; {reason}") from error

    @contextlib.contextmanager
    def founding(self) -> Iterator[Connection]:
        """Yield a connection to a new file that appears under its name only when it is complete, and on the disk."""
        self._must_be_new()
        for left in self._path.parent.glob(f".{glob.escape(self._path.name)}.????????.new*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    left.unlink()
        draft = SqliteFile(self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex[:8]}.new"), self.target)
        writer = draft._engine("rwc", _PRIVATE)
        try:
            with writer.begin() as connection:
                yield connection
            with contextlib.closing(writer.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode=WAL")  # kept in the file, for those who open it
            writer.dispose()
            try:
                _flush(draft._path)
            except OSError as error:
                raise RepositoryError(f"{self.target} cannot be created: {_ROOM}") from error
            self._publish(draft._path)
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
        if "malformed" in reason or "is not a database" in reason:
            return "; the file is damaged: restore a backup"
        if "readonly" in reason or "unable to open" in reason:
            return "; the file or its folder cannot be written: check their permissions"
        return busy_hint() if "locked" in reason else ""

    def shrink_log(self, writer: Engine, patience_seconds: float) -> None:
        """Fold the write-ahead log into the file; what a reader still needs stays until the last one closes."""
        raw = writer.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute(f"PRAGMA busy_timeout={int(patience_seconds * 1000)}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.execute("PRAGMA busy_timeout=0")
        except sqlite3.Error:
            raw.invalidate()  # with its short patience it must not be used again
        else:
            raw.close()

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[bool]:
        """Yield whether the lock file beside the database is ours; the system drops its lock with the process."""
        import filelock

        short = hashlib.sha256(name.encode()).hexdigest()[:12]  # a name may hold what a file's cannot
        lock = filelock.FileLock(f"{self._path}.{short}.lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        except OSError as error:
            raise RepositoryError(
                f"cannot lock {self.target}: its folder cannot be written ({error.strerror})"
            ) from error
        try:
            yield True
        finally:
            lock.release()

    def _publish(self, draft: Path) -> None:
        """Give a finished draft the file's name, unless somebody else's repository has it by now."""
        if not self._path.exists():
            try:
                os.link(draft, self._path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                draft.replace(self._path)
                return
            else:
                return
        self._must_be_new()
        draft.replace(self._path)  # over an empty file

    def _must_be_new(self) -> None:
        """Raise where something with content is already there, or nothing can be made there."""
        if self._path.is_dir() or self.present():
            raise RepositoryError(f"{self.target} exists already; open it with ArtifactDAG.load, or name another path")
        if not self._path.parent.is_dir():
            raise RepositoryError(f"cannot create {self.target}: the folder {self._path.parent} does not exist")
        if not os.access(self._path.parent, os.W_OK):
            raise RepositoryError(f"cannot create {self.target}: the folder {self._path.parent} is not writable")

    def _engine(self, mode: str, settings: Sequence[str] = _SHARED) -> Engine:
        uri = f"{self._path.as_uri()}?{_open_mode(self._path) if mode == 'ro' else f'mode={mode}'}"

        patience = busy_seconds()

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(uri, uri=True, timeout=patience, isolation_level=None, check_same_thread=False)
            if mode == "ro":
                connection.execute("PRAGMA query_only=ON")
            else:
                connection.execute(f"PRAGMA page_size={PAGE_BYTES}")  # heeded by a new file only
                for setting in settings:
                    connection.execute(f"PRAGMA {setting}")
                connection.execute(f"PRAGMA cache_size={-CACHE_KIB}")
                connection.execute("PRAGMA busy_timeout=0")  # who waits, waits in _begin_immediate
            return connection

        engine = sa.create_engine("sqlite+pysqlite://", creator=connect, poolclass=sa.pool.QueuePool)

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            if mode == "ro":
                connection.exec_driver_sql("BEGIN")
            else:
                _begin_immediate(connection, patience)

        return engine


def _begin_immediate(connection: Connection, patience_seconds: float) -> None:
    """Begin with the write lock; while somebody else has it, ask often and at random, so that everybody gets a turn."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    give_up = time.monotonic() + patience_seconds
    while time.monotonic() < give_up:
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                break  # raised below as SQLAlchemy's
            time.sleep(random.uniform(0, 2 * _ASK_AGAIN_SECONDS))
        else:
            return
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _flush(path: Path) -> None:
    """Return when the disk has the file; SQLite must have closed it."""
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


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
