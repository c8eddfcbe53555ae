"""Opens the database of ℛ: one engine that can only read, one that may write.

Reading never changes a cleanly closed file (Theorem 3): readers cannot write, and the writing engine opens only when
something is written. Writers take their lock at once (BEGIN IMMEDIATE), wait for each other, and fold the
write-ahead log into the file when they close.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoResultFound

from guardlearn.errors import RepositoryError

__all__ = ["Database"]

PAGE_BYTES = 16384
"""SQLite's page: with its default of 4096, a 2 kB artifact would leave half of its page empty."""

BUSY_SECONDS = 30
"""How long a writer waits for another one before it gives up."""

_ROOM = "the disk is full or failing; make room, then run the same command again"


class Database:
    """Engines for one database; `target` is a path or a SQLAlchemy URL."""

    def __init__(self, target: str | os.PathLike[str], *, read_only: bool) -> None:
        self.target = str(target)
        self.read_only = read_only
        self._path = _path_of(self.target).absolute()
        self._reader: Engine | None = None
        self._writer: Engine | None = None

    @property
    def path(self) -> Path:
        """File of the database."""
        return self._path

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

    def must_be_new(self) -> None:
        """Raise where something with content is already there, or nothing can be made there."""
        if self._path.is_dir() or (self._path.exists() and self._path.stat().st_size):
            raise RepositoryError(f"{self.target} exists already; open it with ArtifactDAG.load, or name another path")
        if not self._path.parent.is_dir():
            raise RepositoryError(f"cannot create {self.target}: the folder {self._path.parent} does not exist")
        if not os.access(self._path.parent, os.W_OK):
            raise RepositoryError(f"cannot create {self.target}: the folder {self._path.parent} is not writable")

    @contextlib.contextmanager
    def founding(self) -> Iterator[Connection]:
        """Yield a connection to a new database that appears under its name only when it is complete."""
        self.must_be_new()
        draft = Database(self._path.with_name(f".{self._path.name}.{os.getpid()}"), read_only=False)
        draft.target = self.target  # what an error names
        try:
            with draft.writing() as connection:
                yield connection
            draft.close()
            log = Path(f"{draft._path}-wal")
            if log.exists() and log.stat().st_size:  # it could not be folded into the file, which lacks it
                raise RepositoryError(f"{self.target} cannot be created: {_ROOM}")
            draft._path.replace(self._path)
        finally:
            draft.close()
            for ending in ("", "-wal", "-shm"):
                Path(f"{draft._path}{ending}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of ℛ throughout and cannot write."""
        if self._reader is None:
            self._reader = self._engine("ro")
        with self._translated(), self._reader.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection that holds the write lock; commits at the end, rolls everything back on an error."""
        if self.read_only:
            raise RepositoryError(f"{self.target} was opened read-only; open it with ArtifactDAG.load(target)")
        if self._writer is None:
            self._writer = self._engine("rw" if self._path.exists() else "rwc")
        with self._translated(), self._writer.begin() as connection:
            yield connection

    def shrink_log(self, patience_seconds: float = 0.1) -> None:
        """Fold the write-ahead log into the file; what a reader still needs stays until the last one closes."""
        if self._writer is None:
            return
        raw = self._writer.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute(f"PRAGMA busy_timeout={int(patience_seconds * 1000)}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        except sqlite3.Error:
            raw.invalidate()  # with its short patience it must not be used again
        else:
            raw.close()

    def close(self) -> None:
        """Close every connection; after a write the file is complete by itself."""
        if self._reader is not None:
            self._reader.dispose()  # first: a reader that closes last could not remove the log
        self.shrink_log()
        if self._writer is not None:
            self._writer.dispose()
        self._reader = self._writer = None

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

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            hint = "; another process is writing, try again" if "locked" in reason else ""
            hint = f"; {_ROOM}" if "disk I/O error" in reason or "disk is full" in reason else hint
            raise RepositoryError(f"{self.target}: {reason}{hint}") from error
        except NoResultFound as error:
            raise RepositoryError(f"{self.target} is damaged: a row that must be there is not; run verify") from error


def _path_of(target: str) -> Path:
    if "://" not in target:
        if target == ":memory:":
            raise RepositoryError("a repository outlives its process: give a path instead of ':memory:'")
        return Path(target)
    try:
        url: URL = make_url(target)
    except ArgumentError as error:
        raise RepositoryError(f"{target!r} is neither a path nor a database URL") from error
    if url.get_backend_name() != "sqlite":
        raise RepositoryError(
            f"{url.render_as_string()}: this version keeps repositories in SQLite; give a path or sqlite:///path"
        )
    if not url.database or url.database == ":memory:":
        raise RepositoryError(f"{target}: a repository needs a path, as in sqlite:///runs.db")
    return Path(url.database)


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
