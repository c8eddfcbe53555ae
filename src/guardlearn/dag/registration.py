"""Specifications and their sides as ℛ keeps them, and the readings of held-out ones.

Who gets which side is decided in `sides.py`; here it is asked for, pinned, counted and digested.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.appending import Appender, add_to_sides, advance_sides, side_digest
from guardlearn.dag.rows import digest_of, encode_text, from_micros, storable, to_micros
from guardlearn.dag.sides import PendingSpecification
from guardlearn.dag.tables import head, pinned_groups, specifications, texts
from guardlearn.dag.tables import readings as readings_table
from guardlearn.digests import digest_json
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.types import Side, Specification

__all__ = ["Reading", "count_sides", "pin", "reading_digest", "readings", "record_reading", "register", "side_of"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One time that held-out specifications were read."""

    number: int
    adapter: str
    sides_digest: str
    specs: int
    purpose: str
    created_at: datetime


def register(appender: Appender, given: Sequence[Specification]) -> int:
    """Give specifications their sides in one batch; returns how many were new."""
    encoded = [encode_text(each.specification) for each in given]
    keys = appender.text_keys({digest_of(body): body for body in encoded})
    pending: dict[int, PendingSpecification] = {}
    for each, body in zip(given, encoded, strict=True):
        if each.group and not storable(each.group):
            raise RepositoryError(f"group {each.group!r} holds NUL or a lone surrogate; databases refuse them in names")
        key = keys[digest_of(body)]
        pending.setdefault(key, PendingSpecification(key, each.specification, each.group or None))
    return advance_sides(appender.connection, list(pending.values()))


def pin(connection: Connection, group: str, side: Side | str) -> None:
    """Pin a group to a side before it has one; the same side again changes nothing."""
    try:
        side = Side(side)
    except ValueError as error:
        raise UsageError(f"unknown side {side!r}; allowed are: {', '.join(Side)}") from error
    if not group or not storable(group):
        raise UsageError(f"group {group!r} cannot be pinned: give a name without NUL and lone surrogates")
    present = _group_sides(connection, group)
    if present and present != {side}:
        raise RepositoryError(
            f"group {group!r} is on side {', '.join(sorted(present))} already, and sides never change; "
            "use another group or a new repository"
        )
    if not present:
        connection.execute(sa.insert(pinned_groups).values(spec_group=group, side=side.value))
        add_to_sides(connection, side_digest("", group, side.value), 1)


def side_of(connection: Connection, specification: str, group: str | None) -> Side | None:
    """Return the side of a specification, or of the group it would join."""
    query = (
        sa.select(specifications.c.side)
        .join(texts, texts.c.key == specifications.c.key)
        .where(texts.c.digest == digest_of(encode_text(specification)))
    )
    found = connection.execute(query).scalar_one_or_none()
    if found is not None:
        return Side(found)
    return min(_group_sides(connection, group), default=None) if group and storable(group) else None


def count_sides(connection: Connection) -> dict[Side, int]:
    """Return how many specifications are on each side."""
    query = sa.select(specifications.c.side, sa.func.count()).group_by(specifications.c.side)
    found = {side: int(count) for side, count in connection.execute(query)}
    return {side: found.get(side.value, 0) for side in Side}


def sides_digest(connection: Connection) -> str:
    """Return the digest of all assignments and pins."""
    return bytes(connection.execute(sa.select(head.c.digest).where(head.c.name == "sides")).scalar_one()).hex()


def record_reading(connection: Connection, adapter: str, sides: str, specs: int, purpose: str) -> int:
    """Store one reading; returns its number."""
    chosen = head.c.name == "readings"
    number, running = connection.execute(sa.select(head.c.seq, head.c.digest).where(chosen)).one()
    row: dict[str, Any] = {
        "number": int(number) + 1,
        "adapter": adapter,
        "sides_digest": sides,
        "specs": specs,
        "purpose": purpose,
        "created_at": to_micros(datetime.now(UTC)),
    }
    row["digest"] = reading_digest(row, running)
    connection.execute(sa.insert(readings_table).values(**row))
    connection.execute(sa.update(head).where(chosen).values(seq=row["number"], digest=row["digest"]))
    return int(row["number"])


def reading_digest(row: Any, before: bytes) -> bytes:
    """Return the digest of a reading's row, which covers the reading `before` it."""
    names = ("number", "adapter", "sides_digest", "specs", "purpose", "created_at")
    return bytes.fromhex(digest_json(["reading", *(row[name] for name in names), before.hex()]))


def readings(connection: Connection) -> list[Reading]:
    """Return every reading, the first one first."""
    columns = [column for column in readings_table.c if column.name != "digest"]
    rows = connection.execute(sa.select(*columns).order_by(readings_table.c.number)).mappings().all()
    return [Reading(**{**row, "created_at": from_micros(row["created_at"])}) for row in rows]


def _group_sides(connection: Connection, group: str) -> set[Side]:
    """Sides of a group's specifications and its pin; those set aside for their neighbours do not speak for it."""
    queries = [sa.select(table.c.side).where(table.c.spec_group == group) for table in (specifications, pinned_groups)]
    return {Side(side) for query in queries for side in connection.execute(query).scalars()}
