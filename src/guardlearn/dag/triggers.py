"""Keeps ℛ append-only inside the database: triggers that refuse UPDATE, DELETE, INSERT OR REPLACE and upsert.

A BEFORE INSERT trigger is needed beside the other two, because INSERT OR REPLACE deletes the old row without asking a
DELETE trigger. Two openings are left: a body may be blanked once its redaction is an event, and a specification's
cluster may be relabelled; its side never changes.
"""

from __future__ import annotations

from sqlalchemy import Table
from sqlalchemy.engine import Connection

from guardlearn.dag import tables

__all__ = ["altered", "install"]

_UNIQUE = {
    "items": ("seq", "id"),
    "events": ("seq",),
    "bodies": ("seq",),
    "texts": ("key", "digest"),
    "specifications": ("key",),
    "pinned_groups": ("spec_group",),
    "readings": ("number",),
    "checkpoints": ("number",),
    "trained": ("learner seq",),
    "meta": ("name",),
}
"""Each table's keys; a key of several columns with blanks between them."""
_BODY_COLUMNS = ("artifact", "feedback", "details", "seen")


def install(connection: Connection) -> None:
    """Create the triggers; call it in the transaction that creates the tables."""
    for statement in _statements().values():
        connection.exec_driver_sql(statement)


def altered(connection: Connection) -> list[str]:
    """Return the names of triggers that are missing or not as installed."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    found = {name: sql for name, sql in rows}
    return sorted(name for name, statement in _statements().items() if found.get(name) != statement)


def _statements() -> dict[str, str]:
    made: dict[str, str] = {}
    for name, unique in _UNIQUE.items():
        table = tables.metadata.tables[name]
        exists = " OR ".join(f"EXISTS (SELECT 1 FROM {name} WHERE {_same(key)})" for key in unique)
        made |= _refusal(table, "INSERT", exists, "already holds this key")
        made |= _refusal(table, "DELETE", "", "rows are never deleted")
    for table in tables.IMMUTABLE:
        made |= _refusal(table, "UPDATE", "", "rows are never changed")
    kept = " AND ".join(f"(NEW.{column} = OLD.{column} OR NEW.{column} = x'')" for column in _BODY_COLUMNS)
    noted = (
        "EXISTS (SELECT 1 FROM events JOIN items ON items.id = events.item_id "
        "WHERE items.seq = OLD.seq AND events.kind = 'redact')"
    )
    made |= _refusal(tables.bodies, "UPDATE", f"NOT (NEW.seq = OLD.seq AND {kept} AND {noted})", "only redact blanks")
    fixed = " AND ".join(f"NEW.{column} = OLD.{column}" for column in ("key", "spec_group", "side"))
    made |= _refusal(tables.specifications, "UPDATE", f"NOT ({fixed})", "a side never changes")
    made |= _refusal(tables.head, "DELETE", "", "rows are never deleted")
    made |= _refusal(tables.head, "UPDATE", "NEW.name <> OLD.name OR NEW.seq < OLD.seq", "never goes back")
    return made


def _same(key: str) -> str:
    return " AND ".join(f"{column} = NEW.{column}" for column in key.split())


def _refusal(table: Table, verb: str, condition: str, reason: str) -> dict[str, str]:
    name = f"{table.name}_refuse_{verb.lower()}"
    when = f" WHEN {condition}" if condition else ""
    message = f"append-only: {table.name} {reason}"
    return {
        name: f"CREATE TRIGGER {name} BEFORE {verb} ON {table.name}{when} BEGIN SELECT RAISE(ABORT, '{message}'); END"
    }
