"""Keeps ℛ append-only inside the database: triggers that refuse UPDATE, DELETE, TRUNCATE, INSERT OR REPLACE and upsert.

On SQLite a BEFORE INSERT trigger is needed beside the others, because INSERT OR REPLACE deletes the old row without
asking a DELETE trigger. PostgreSQL has no such statement, and its upsert asks the UPDATE trigger; there TRUNCATE needs
one. Two openings are left: a body may be blanked once its redaction is an event, and a specification's cluster may be
relabelled; its side never changes.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.engine import Connection

from guardlearn.dag import tables

__all__ = ["altered", "install", "remove"]

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
    "rounds": ("number", "learner round step"),
    "promotions": ("number",),
    "imports": ("number",),
    "meta": ("name",),
}
"""Each table's keys; a key of several columns with blanks between them."""
_BODY_COLUMNS = ("artifact", "feedback", "details", "seen")


class _Refusal(NamedTuple):
    """What one trigger refuses."""

    table: str
    verb: str
    condition: str
    """On the rows OLD and NEW; "" refuses always."""
    reason: str

    @property
    def name(self) -> str:
        return f"{self.table}_refuse_{self.verb.lower()}"


def install(connection: Connection) -> None:
    """Create the triggers; call it in the transaction that creates the tables."""
    if connection.dialect.name == "sqlite":
        for statement in _sqlite_statements().values():
            connection.exec_driver_sql(statement)
        return
    for name, body in _postgres_functions().items():
        statement = f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})  # its % are no placeholders
    for refusal in _postgres_refusals():
        level = "STATEMENT" if refusal.verb == "TRUNCATE" else "ROW"
        connection.exec_driver_sql(
            f"CREATE TRIGGER {refusal.name} BEFORE {refusal.verb} ON {refusal.table} FOR EACH {level} "
            f"EXECUTE FUNCTION {_function(refusal)}('{refusal.reason}')"
        )


def remove(connection: Connection) -> None:
    """Drop the triggers, whichever version installed them, for an upgrade that installs its own before it commits."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '%^_refuse^_%' ESCAPE '^'"
        for name in connection.exec_driver_sql(query).scalars().all():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        return
    dropped = connection.exec_driver_sql(_POSTGRES_FUNCTIONS, execution_options={"no_parameters": True})
    for function in dropped.scalars().all():
        connection.exec_driver_sql(f"DROP FUNCTION {function} CASCADE")


def altered(connection: Connection) -> list[str]:
    """Return the names of triggers that are missing or not as installed."""
    if connection.dialect.name == "sqlite":
        expected: dict[str, object] = dict(_sqlite_statements())
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    else:
        functions = _postgres_functions()
        expected = {
            each.name: (each.table, _bits(each.verb), f"{each.reason}\0".encode(), functions[_function(each)], True)
            for each in _postgres_refusals()
        }
        query = _POSTGRES_TRIGGERS
    found = {name: rest[0] if len(rest) == 1 else tuple(rest) for name, *rest in connection.exec_driver_sql(query)}
    return sorted(name for name, definition in expected.items() if found.get(name) != definition)


def _openings(empty: str, noted: str) -> list[_Refusal]:
    """Return the refusals that leave an opening; `empty` is the database's empty bytes, `noted` its redact event."""
    kept = " AND ".join(f"(NEW.{column} = OLD.{column} OR NEW.{column} = {empty})" for column in _BODY_COLUMNS)
    fixed = " AND ".join(f"NEW.{column} = OLD.{column}" for column in ("key", "spec_group", "side"))
    return [
        _Refusal("bodies", "UPDATE", f"NOT (NEW.seq = OLD.seq AND {kept} AND {noted})", "only redact blanks"),
        _Refusal("specifications", "UPDATE", f"NOT ({fixed})", "a side never changes"),
        _Refusal("head", "UPDATE", "NEW.name <> OLD.name OR NEW.seq < OLD.seq", "never goes back"),
    ]


def _always() -> list[_Refusal]:
    """Return the refusals that both databases have and that leave no opening."""
    deletes = [_Refusal(name, "DELETE", "", "rows are never deleted") for name in (*_UNIQUE, "head")]
    updates = [_Refusal(table.name, "UPDATE", "", "rows are never changed") for table in tables.IMMUTABLE]
    return deletes + updates


def _sqlite_statements() -> dict[str, str]:
    noted = (
        "EXISTS (SELECT 1 FROM events JOIN items ON items.id = events.item_id "
        "WHERE items.seq = OLD.seq AND events.kind = 'redact')"
    )
    refusals = _always() + _openings("x''", noted)
    for name, unique in _UNIQUE.items():
        exists = " OR ".join(f"EXISTS (SELECT 1 FROM {name} WHERE {_same(key)})" for key in unique)
        refusals.append(_Refusal(name, "INSERT", exists, "already holds this key"))
    return {each.name: _sqlite_statement(each) for each in refusals}


def _same(key: str) -> str:
    return " AND ".join(f"{column} = NEW.{column}" for column in key.split())


def _sqlite_statement(refusal: _Refusal) -> str:
    when = f" WHEN {refusal.condition}" if refusal.condition else ""
    return (
        f"CREATE TRIGGER {refusal.name} BEFORE {refusal.verb} ON {refusal.table}{when} "
        f"BEGIN SELECT RAISE(ABORT, 'append-only: {refusal.table} {refusal.reason}'); END"
    )


_REFUSE = """
  RAISE EXCEPTION 'append-only: % %', TG_TABLE_NAME, TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
"""
# in the tables' own schema, whatever the search path of whoever updates, temporary tables included
_NOTED = """
  EXECUTE format('SELECT EXISTS (SELECT 1 FROM %1$I.events JOIN %1$I.items ON items.id = events.item_id '
                 'WHERE items.seq = $1 AND events.kind = ''redact'')', TG_TABLE_SCHEMA) INTO noted USING OLD.seq;
"""
_POSTGRES_TRIGGERS = """
SELECT tgname, relname, tgtype, tgargs, prosrc,
       tgenabled IN ('O', 'A') AND tgqual IS NULL AND tgattr = '' AND pronamespace = relnamespace
FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid JOIN pg_proc ON pg_proc.oid = tgfoid
WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal
"""
_POSTGRES_FUNCTIONS = r"""
SELECT DISTINCT tgfoid::regprocedure FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal AND tgname LIKE '%\_refuse\_%'
"""


def _postgres_refusals() -> list[_Refusal]:
    truncates = [_Refusal(name, "TRUNCATE", "", "is never emptied") for name in (*_UNIQUE, "head")]
    return _always() + truncates + _openings("''::bytea", "noted")


def _postgres_functions() -> dict[str, str]:
    """Return the body of each function; one serves every refusal without a condition."""
    functions = {}
    for refusal in _postgres_refusals():
        declared, look, refuse = "", "", _REFUSE
        if refusal.condition:
            refuse = f"  IF {refusal.condition} THEN{_REFUSE}  END IF;\n"
        if "noted" in refusal.condition:
            declared, look = "DECLARE noted boolean;\n", _NOTED
        functions[_function(refusal)] = f"\n{declared}BEGIN{look}{refuse}  RETURN NEW;\nEND\n"
    return functions


def _function(refusal: _Refusal) -> str:
    return refusal.name if refusal.condition else "append_only"


def _bits(verb: str) -> int:
    """Return pg_trigger.tgtype of a BEFORE trigger: 2, with 1 for each row, and the verb's own bit."""
    return 2 + {"DELETE": 8 + 1, "UPDATE": 16 + 1, "TRUNCATE": 32}[verb]
