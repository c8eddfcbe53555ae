"""ℛ in a schema of a PostgreSQL database: the first schema on the search path, which is `public` unless the URL's
options say otherwise (`?options=-csearch_path%3Dteam_a`).

Readers run REPEATABLE READ, READ ONLY: one state throughout, rows fetched in batches by a cursor on the server.
Writers run READ COMMITTED and take a lock of their schema as the first thing in their transaction; it goes with the
commit. So numbers are given out in the order of commits, and whoever has read up to one of them never misses an
earlier one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from guardlearn.dag.patience import busy_hint, busy_seconds
from guardlearn.errors import RepositoryError, missing_library

__all__ = ["PostgresSchema"]

CONNECT_SECONDS = 10
"""How long connecting may take, unless the URL sets connect_timeout."""

_LOCK = "SELECT pg_advisory_xact_lock(('x' || left(md5('guardlearn ' || current_schema()), 16))::bit(64)::bigint)"
_LEASE = (
    "SELECT pg_try_advisory_lock(('x' || left(md5('lease ' || current_schema() || ' ' || %s), 16))::bit(64)::bigint)"
)
_PATIENCE = "SELECT set_config('lock_timeout', %s, false) WHERE current_setting('lock_timeout') = '0'"
"""Where the URL's options set lock_timeout, that holds."""

_TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'f', 'v', 'm')
AND NOT EXISTS (SELECT 1 FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
ORDER BY relname
"""  # what an extension brought along is nobody's table


class PostgresSchema:
    """The `Backend` of one schema.

    Raises:
        RepositoryError: the URL asks for another driver than psycopg.
    """

    def __init__(self, url: URL) -> None:
        if url.drivername not in ("postgresql", "postgresql+psycopg"):
            raise RepositoryError(
                f"{url.render_as_string()}: ℛ speaks to PostgreSQL through psycopg; write postgresql+psycopg://…"
            )
        self._url = url.set(drivername="postgresql+psycopg")
        secrets = {name: "***" for name in url.query if "password" in name}
        self.target = url.update_query_dict(secrets).render_as_string(hide_password=True)

    def present(self) -> bool:
        """Whether the schema holds tables."""
        return bool(self._tables())

    def must_exist(self) -> None:
        """Raise unless the server can be reached and the schema holds tables."""
        if not self._tables():
            raise RepositoryError(
                f"no repository at {self.target}: it holds no tables; make one with `guardlearn import --into URL`, "
                "`guardlearn collect --db URL`, or ArtifactDAG.create"
            )

    @contextlib.contextmanager
    def founding(self) -> Iterator[Connection]:
        """Yield a writing transaction on a schema without tables."""
        writer = self.writer()
        try:
            with writer.begin() as connection:
                if held := _tables_of(connection, self.target):
                    raise RepositoryError(
                        f"{self.target} holds tables already ({', '.join(held[:3])}{', …' if len(held) > 3 else ''}); "
                        "open it with ArtifactDAG.load, or name another database or schema "
                        "(?options=-csearch_path%3Dname)"
                    )
                yield connection
        finally:
            writer.dispose()

    def reader(self) -> Engine:
        """Return an engine whose transactions see one state throughout and cannot write."""
        return self._engine(execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True})

    def writer(self) -> Engine:
        """Return an engine whose transactions begin with the write lock."""
        engine = self._engine(execution_options={"isolation_level": "READ COMMITTED"})

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(_LOCK)

        return engine

    def hint(self, error: DBAPIError) -> str:
        """Return what to do about a driver's error."""
        state = getattr(error.orig, "sqlstate", None) or ""
        if state == "55P03":
            return busy_hint()
        if state.startswith("53") and state != "53300":
            return "; make room on the server, then run the same command again"
        if error.connection_invalidated or state.startswith(("57P", "08")):
            return (
                "; the connection was lost, so what was being stored is there whole or not at all: "
                "run the same command again"
            )
        return ""

    def shrink_log(self, writer: Engine, patience_seconds: float) -> None:
        """Do nothing: PostgreSQL's log is its server's, which recycles it."""

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[bool]:
        """Yield whether the server gave this session the lock; it takes it back when the connection ends."""
        engine = self._engine(execution_options={"isolation_level": "AUTOCOMMIT"})
        try:
            with engine.connect() as connection:
                yield bool(connection.exec_driver_sql(_LEASE, (name,)).scalar_one())
        finally:
            engine.dispose()

    def _tables(self) -> list[str]:
        engine = self.reader()
        try:
            with engine.connect() as connection:
                return _tables_of(connection, self.target)
        finally:
            engine.dispose()

    def _engine(self, **options: Any) -> Engine:
        patience = busy_seconds()
        waits = {} if "connect_timeout" in self._url.query else {"connect_timeout": CONNECT_SECONDS}
        try:
            engine = sa.create_engine(self._url, connect_args=waits, pool_pre_ping=True, **options)
        except ImportError as error:
            raise missing_library("psycopg", "postgres", f"the repository at {self.target}") from error

        @sa.event.listens_for(engine, "connect")
        def _connected(connection: Any, record: Any) -> None:
            connection.execute(_PATIENCE, [f"{max(1, round(patience * 1000))}ms"])  # 0 would be for ever
            connection.commit()

        return engine


def _tables_of(connection: Connection, target: str) -> list[str]:
    if connection.exec_driver_sql("SELECT current_schema()").scalar_one() is None:
        raise RepositoryError(
            f"{target}: no schema on its search path exists; make it first with CREATE SCHEMA, or name another one "
            "(?options=-csearch_path%3Dname)"
        )
    return [str(name) for name in connection.exec_driver_sql(_TABLES).scalars()]
