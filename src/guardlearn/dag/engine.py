"""Opens the database of ℛ: one engine that can only read, one that may write, on SQLite or PostgreSQL.

Reading changes nothing (Theorem 3): readers cannot write, see one state throughout, and the writing engine opens only
when something is written. Writers take their lock at once and wait for each other, so that `seq` is the order of
commits. What differs between the databases is a `Backend`: `sqlite.py`, `postgres.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoResultFound

from guardlearn.dag.postgres import PostgresSchema
from guardlearn.dag.sqlite import SqliteFile
from guardlearn.errors import RepositoryError

__all__ = ["Backend", "Database"]


class Backend(Protocol):
    """What differs between databases."""

    target: str
    """What errors name; holds no password."""

    def present(self) -> bool:
        """Whether something is there that `create` would refuse to take over."""
        ...

    def must_exist(self) -> None:
        """Raise unless there is something that can be opened."""
        ...

    def founding(self) -> contextlib.AbstractContextManager[Connection]:
        """Return a transaction on an empty database; nobody sees it before it is complete."""
        ...

    def reader(self) -> Engine:
        """Return an engine whose transactions see one state throughout and cannot write."""
        ...

    def writer(self) -> Engine:
        """Return an engine whose transactions begin with the write lock."""
        ...

    def hint(self, error: DBAPIError) -> str:
        """Return what to do about a driver's error; "" where nothing is known."""
        ...

    def shrink_log(self, writer: Engine, patience_seconds: float) -> None:
        """Make what was blanked disappear from logs that the database keeps beside its tables."""
        ...

    def lease(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """Yield whether this process holds the lease `name` now; nobody else gets it until then, or until it dies."""
        ...


class Database:
    """Engines for one database; `target` is a path or a SQLAlchemy URL."""

    def __init__(self, target: str | os.PathLike[str], *, read_only: bool) -> None:
        self._backend = _backend_of(str(target))
        self.target = self._backend.target
        self.read_only = read_only
        self._reader: Engine | None = None
        self._writer: Engine | None = None

    def present(self) -> bool:
        """Whether something is there that `create` would refuse to take over."""
        with self._translated():
            return self._backend.present()

    def must_exist(self) -> None:
        """Raise unless there is something that can be opened."""
        with self._translated():
            self._backend.must_exist()

    @contextlib.contextmanager
    def founding(self) -> Iterator[Connection]:
        """Yield a connection to a new database that others see only when it is complete."""
        with self._translated(), self._backend.founding() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that sees one state of ℛ throughout and cannot write."""
        if self._reader is None:
            self._reader = self._backend.reader()
        with self._translated(), self._reader.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection that holds the write lock; commits at the end, rolls everything back on an error."""
        if self.read_only:
            raise RepositoryError(f"{self.target} was opened read-only; open it with ArtifactDAG.load(target)")
        if self._writer is None:
            self._writer = self._backend.writer()
        with self._translated(), self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[None]:
        """Hold what only one process may hold at a time, beside transactions; it goes when the process does."""
        with self._translated(), self._backend.lease(name) as held:
            if not held:
                raise RepositoryError(
                    f"another process holds {name} on {self.target}; wait for it, or end it: its lease ends with it"
                )
            yield

    def shrink_log(self, patience_seconds: float = 0.1) -> None:
        """Make what was blanked disappear from the database's log too; waits that long for readers."""
        if self._writer is not None:
            self._backend.shrink_log(self._writer, patience_seconds)

    def close(self) -> None:
        """Close every connection; after a write an SQLite file is complete by itself."""
        if self._reader is not None:
            self._reader.dispose()  # first: a reader that closes last could not remove SQLite's log
        self.shrink_log()
        if self._writer is not None:
            self._writer.dispose()
        self._reader = self._writer = None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            raise RepositoryError(f"{self.target}: {reason}{self._backend.hint(error)}") from error
        except UnicodeDecodeError as error:  # SQLite quotes damaged SQL, its driver expects UTF-8
            if not error.object.startswith(b"malformed database schema"):
                raise
            reason = ascii(error.object.decode("utf-8", "replace"))
            raise RepositoryError(f"{self.target} is damaged: {reason}; restore a backup") from error
        except NoResultFound as error:
            raise RepositoryError(f"{self.target} is damaged: a row that must be there is not; run verify") from error


def _backend_of(target: str) -> Backend:
    if "://" not in target:
        if target == ":memory:":
            raise RepositoryError("a repository outlives its process: give a path instead of ':memory:'")
        return SqliteFile(Path(target), target)
    try:
        url: URL = make_url(target)
    except (ArgumentError, ValueError) as error:  # which may name a password: neither is shown
        scheme = target.partition("://")[0]
        raise RepositoryError(
            f"what begins with {scheme}:// is no database URL; write sqlite:///path or "
            "postgresql+psycopg://user@host/database, with a port that is a number"
        ) from error
    match url.get_backend_name():
        case "sqlite":
            if not url.database or url.database == ":memory:":
                raise RepositoryError(f"{target}: a repository needs a path, as in sqlite:///runs.db")
            return SqliteFile(Path(url.database), target)
        case "postgresql":
            return PostgresSchema(url)
    raise RepositoryError(
        f"{url.render_as_string()}: repositories are kept in SQLite or PostgreSQL; give a path, sqlite:///path or "
        "postgresql+psycopg://user@host/database"
    )
