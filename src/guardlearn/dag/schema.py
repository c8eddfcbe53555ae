"""Making the tables of ℛ in an empty database, and recognising a database that holds them.

What was fixed when ℛ was made is where every running digest begins, so an upgrade keeps the version it was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from guardlearn.dag import triggers
from guardlearn.dag.engine import Database
from guardlearn.dag.rows import storable, to_micros
from guardlearn.dag.tables import SCHEMA_VERSION, head, meta, metadata
from guardlearn.digests import digest_json
from guardlearn.errors import RepositoryError, UsageError

__all__ = ["SIDE_SALT", "add_heads", "check", "founding_digest", "install", "move_on", "odd_rows", "version_of"]

SIDE_SALT = "guardlearn"
"""What seeds the division into sides where nobody chose a salt: every ℛ divides equal specifications equally."""

_MADE = ("format", "schema_version", "side_salt")
_FOUNDED = "founded_version"
"""Row of `meta` in an upgraded ℛ: the schema version it was made with."""
_UPGRADED = "upgraded_to_"
"""Start of the rows of `meta` that say when ℛ was upgraded to which version."""

_NO_SUCH = ("42P01", "42703")
"""PostgreSQL has no such table; it has no such column."""


def install(database: Database, side_salt: str, fill: Callable[[Connection], None] | None = None) -> None:
    """Make tables, triggers and the first heads, in one transaction.

    Args:
        database: nothing is there.
        side_salt: see `ArtifactDAG.create`.
        fill: appends what it shall hold from the beginning; nobody sees it before.

    Raises:
        UsageError: the salt cannot be stored.
        RepositoryError: something is there already, or nothing can be made there.
    """
    if not storable(side_salt):
        raise UsageError(f"side_salt={side_salt!r} holds NUL or a lone surrogate; leave them out")
    values = {"format": "guardlearn", "schema_version": str(SCHEMA_VERSION), "side_salt": side_salt}
    with database.founding() as connection:
        metadata.create_all(connection)
        connection.execute(sa.insert(meta), [{"name": name, "value": value} for name, value in values.items()])
        add_heads(connection)
        if fill is not None:
            fill(connection)
        triggers.install(connection)  # last: what is filled in here needs no watching


def add_heads(connection: Connection) -> None:
    """Write the first head of whatever has none."""
    start = founding_digest(connection)
    first = dict.fromkeys(("log", "readings", "checkpoints", "rounds", "promotions", "imports"), start) | {
        "sides": bytes(32)
    }
    present = set(connection.execute(sa.select(head.c.name)).scalars())
    missing = [{"name": name, "seq": 0, "digest": digest} for name, digest in first.items() if name not in present]
    if missing:
        connection.execute(sa.insert(head), missing)


def founding_digest(connection: Connection) -> bytes:
    """Return the digest of what was fixed when ℛ was made, where every running digest begins."""
    held = _fixed(connection)
    made = {name: held.get(name, "") for name in _MADE}
    return bytes.fromhex(digest_json(made | {"schema_version": held.get(_FOUNDED, made["schema_version"])}))


def move_on(connection: Connection, moment: datetime) -> None:
    """Note in an older ℛ that it is of this schema version now; its triggers must be out of the way."""
    held = _fixed(connection)
    name = f"{_UPGRADED}{SCHEMA_VERSION}"
    rows = {_FOUNDED: held["schema_version"]} if _FOUNDED not in held else {}
    rows[name] = _upgrade_value(name, str(to_micros(moment)), founding_digest(connection))
    connection.execute(sa.insert(meta), [{"name": key, "value": value} for key, value in rows.items()])
    current = sa.update(meta).where(meta.c.name == "schema_version")
    connection.execute(current.values(value=str(SCHEMA_VERSION)))


def odd_rows(connection: Connection) -> Iterator[str]:
    """Yield what is wrong with the rows of `meta` that the running digests do not cover."""
    held = _fixed(connection)
    upgrades = {name: value for name, value in held.items() if name.startswith(_UPGRADED)}
    for name in held.keys() - upgrades.keys() - {*_MADE, _FOUNDED}:
        yield f"meta holds {name!r}, which is none of its names"
    start = founding_digest(connection)
    for name, value in upgrades.items():
        if value != _upgrade_value(name, value.partition(" ")[0], start):
            yield f"{name} in meta was altered"
    if bool(upgrades) != (_FOUNDED in held) or (
        upgrades and f"{_UPGRADED}{held.get('schema_version')}" not in upgrades
    ):
        yield "what meta says about upgrades was altered, or is missing"


def _upgrade_value(name: str, micros: str, start: bytes) -> str:
    """Return the value of an upgrade's row: when, in microseconds since 1970, and a digest of the row."""
    return f"{micros} {digest_json([name, micros, start.hex()])}"


def _fixed(connection: Connection) -> dict[str, str]:
    return {row.name: row.value for row in connection.execute(sa.select(meta.c.name, meta.c.value))}


def version_of(connection: Connection, target: str) -> str:
    """Return the schema version of what a database holds.

    Args:
        connection: on the database.
        target: what errors name.

    Raises:
        RepositoryError: it is no repository.
    """
    try:
        held = _fixed(connection)
    except DBAPIError as error:
        if "no such" not in str(error.orig) and getattr(error.orig, "sqlstate", None) not in _NO_SUCH:
            raise
        held = {}
    if held.get("format") != "guardlearn":
        raise RepositoryError(
            f"{target} is no guardlearn repository: its tables are another program's; "
            "make one with ArtifactDAG.create, or import a log with `guardlearn import`"
        )
    return held.get("schema_version", "none")


def check(database: Database) -> None:
    """Refuse what is no repository, or one of another schema version.

    Raises:
        RepositoryError: says which, and the command that helps.
    """
    with database.reading() as connection:
        version = version_of(connection, database.target)
    if version != str(SCHEMA_VERSION):
        older = version.isdecimal() and int(version) < SCHEMA_VERSION
        helps = f"guardlearn upgrade {database.target}" if older else "pip install --upgrade guardlearn"
        raise RepositoryError(
            f"{database.target} has schema version {version}, this guardlearn reads {SCHEMA_VERSION}; run: {helps}"
        )
