"""Making the tables of ℛ in an empty database, and recognising a database that holds them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from guardlearn.dag import triggers
from guardlearn.dag.engine import Database
from guardlearn.dag.rows import storable
from guardlearn.dag.tables import SCHEMA_VERSION, head, meta, metadata
from guardlearn.digests import digest_json
from guardlearn.errors import RepositoryError, UsageError

__all__ = ["check", "install"]

_NO_SUCH = ("42P01", "42703")
"""PostgreSQL has no such table; it has no such column."""


def install(database: Database, side_salt: str) -> None:
    """Make tables, triggers and the first heads, in one transaction.

    Raises:
        UsageError: the salt cannot be stored.
        RepositoryError: something is there already, or nothing can be made there.
    """
    if not storable(side_salt):
        raise UsageError(f"side_salt={side_salt!r} holds NUL or a lone surrogate; leave them out")
    fixed = {"format": "guardlearn", "schema_version": str(SCHEMA_VERSION), "side_salt": side_salt}
    with database.founding() as connection:
        metadata.create_all(connection)
        triggers.install(connection)
        connection.execute(sa.insert(meta), [{"name": name, "value": value} for name, value in fixed.items()])
        start = bytes.fromhex(digest_json(fixed))
        digests = dict.fromkeys(("log", "readings", "checkpoints", "imports"), start) | {"sides": bytes(32)}
        connection.execute(
            sa.insert(head), [{"name": name, "seq": 0, "digest": digest} for name, digest in digests.items()]
        )


def check(database: Database) -> None:
    """Refuse what is no repository, or one of another schema version.

    Raises:
        RepositoryError: says which, and the command that helps.
    """
    with database.reading() as connection:
        try:
            found = {row.name: row.value for row in connection.execute(sa.select(meta.c.name, meta.c.value))}
        except DBAPIError as error:
            if "no such" not in str(error.orig) and getattr(error.orig, "sqlstate", None) not in _NO_SUCH:
                raise
            found = {}
    if found.get("format") != "guardlearn":
        raise RepositoryError(
            f"{database.target} is no guardlearn repository: its tables are another program's; "
            "make one with ArtifactDAG.create, or import a log with `guardlearn import`"
        )
    version = found.get("schema_version")
    if version != str(SCHEMA_VERSION):
        older = version is not None and version.isdecimal() and int(version) < SCHEMA_VERSION
        helps = (
            "fill a new one with `guardlearn import` or `guardlearn collect`, as this one was filled"
            if older
            else "run: pip install --upgrade guardlearn"
        )
        raise RepositoryError(
            f"{database.target} has schema version {version}, this guardlearn reads {SCHEMA_VERSION}; {helps}"
        )
