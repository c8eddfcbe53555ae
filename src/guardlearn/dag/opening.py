"""An open ℛ: how it is made, opened, read from, written to and closed; `store.ArtifactDAG` is what one does with it."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import Self

from sqlalchemy.engine import Connection

from guardlearn.dag import schema
from guardlearn.dag.engine import Database
from guardlearn.dag.importers import by_way_of
from guardlearn.errors import RepositoryError
from guardlearn.types import OnProgress

__all__ = ["OpenRepository"]


class OpenRepository:
    """ℛ on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def create(cls, target: str | os.PathLike[str], *, side_salt: str = schema.SIDE_SALT) -> Self:
        """Create an empty repository and open it.

        Args:
            target: a path, or a URL such as postgresql+psycopg://user@host/database.
            side_salt: seeds the division of specifications into sides; equal salts divide equal ones equally.

        Raises:
            RepositoryError: something is there already, or nothing can be made there.
        """
        database = Database(target, read_only=False)
        schema.install(database, side_salt)
        return cls(database)

    @classmethod
    def load(
        cls, target: str | os.PathLike[str], *, read_only: bool = False, on_progress: OnProgress | None = None
    ) -> Self:
        """Open an existing repository; never creates one.

        Args:
            target: a path or URL; a folder of AtomicGuard stores is read by way of a side file in the user's cache.
            read_only: refuse every append. Reading alone never changes ℛ, whatever this says.
            on_progress: called with (done, total, note) while a folder's side file is made or brought up to date.

        Raises:
            RepositoryError: nothing is there, it is no repository, or it is of another schema version.
        """
        target, read_only = by_way_of(target, read_only, on_progress)
        database = Database(target, read_only=read_only)
        database.must_exist()
        with contextlib.ExitStack() as unless_good:
            unless_good.callback(database.close)
            schema.check(database)
            unless_good.pop_all()
        return cls(database)

    @classmethod
    def open_or_create(cls, target: str | os.PathLike[str], *, side_salt: str = schema.SIDE_SALT) -> Self:
        """Open the repository at `target` for writing, or create it where nothing is."""
        place = Database(target, read_only=False)
        if not place.present():
            try:
                return cls.create(target, side_salt=side_salt)
            except RepositoryError:
                if not place.present():  # else another process was faster
                    raise
        return cls.load(target)

    @property
    def target(self) -> str:
        """What it was opened with, a password hidden."""
        return self._database.target

    @property
    def read_only(self) -> bool:
        """Whether every append is refused."""
        return self._database.read_only

    def close(self) -> None:
        """Close every connection; the file is complete by itself then. It opens again when used again."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reading(self) -> contextlib.AbstractContextManager[Connection]:
        """Return a read-only connection for stages that query the tables themselves; one state of ℛ throughout."""
        return self._database.reading()

    def writing(self) -> contextlib.AbstractContextManager[Connection]:
        """Return one writing transaction, for stages that keep tables of their own in ℛ."""
        return self._database.writing()

    def lease(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold what one process at a time may hold, until the end of the block or of the process, however it ends.

        Raises:
            RepositoryError: another process holds it.
        """
        return self._database.lease(name)
