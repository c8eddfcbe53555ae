"""Checks that tables and indexes are as declared, and that each value is of its column's kind. SQLite only.

PostgreSQL guards its catalogue and the types of values itself; in an SQLite file both are bytes like any others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.side_tables import side_bands, side_index
from guardlearn.dag.tables import metadata

__all__ = ["check_structure"]

_TABLES = tuple(dict.fromkeys((*metadata.sorted_tables, side_bands, side_index)))
_KINDS = {str: "text", bytes: "blob", int: "integer", bool: "integer"}


def check_structure(connection: Connection) -> Iterator[str]:
    """Yield one line for each table that is not as declared, or that holds a value of another kind."""
    for table in _TABLES:
        if _structure(connection, table) != _declared()[table.name]:
            yield f"table {table.name} or an index of it is not as it was made"
    for table in _TABLES:
        odd = f"SELECT count(*) FROM {table.name} WHERE {_of_another_kind(table)}"
        if count := connection.exec_driver_sql(odd).scalar_one():
            yield f"table {table.name}: {count} rows hold a value that is not of its column's kind"


@functools.cache
def _declared() -> dict[str, list[object]]:
    """Return the structure of each table in a database that was just made."""
    engine = sa.create_engine("sqlite://")
    try:
        with engine.begin() as fresh:
            metadata.create_all(fresh)
            return {table.name: _structure(fresh, table) for table in _TABLES}
    finally:
        engine.dispose()


def _structure(connection: Connection, table: sa.Table) -> list[object]:
    """Return columns and indexes of a table, by name: what follows from their declaration and from nothing else."""
    columns = connection.exec_driver_sql(f"PRAGMA table_xinfo({table.name})")
    found: list[object] = [*sorted(tuple(row)[1:] for row in columns)]
    found += [tuple(row)[2:] for row in connection.exec_driver_sql(f"PRAGMA table_list({table.name})")]
    for row in sorted(tuple(row)[1:] for row in connection.exec_driver_sql(f"PRAGMA index_list({table.name})")):
        found.append(row)
        found += [tuple(each)[2:] for each in connection.exec_driver_sql(f"PRAGMA index_xinfo({row[0]})")]
    return found


@functools.cache
def _of_another_kind(table: sa.Table) -> str:
    wrong = []
    for column in table.columns:
        kind = column.type.python_type
        null = "" if not column.nullable else f"{column.name} IS NOT NULL AND "
        flag = f" OR {column.name} NOT IN (0, 1)" if kind is bool else ""
        wrong.append(f"{null}(typeof({column.name}) <> '{_KINDS[kind]}'{flag})")
    return " OR ".join(wrong)
