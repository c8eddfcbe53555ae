"""Sends many rows or keys to the database in few statements."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, Select, Table
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.exc import DBAPIError

__all__ = ["batches", "flag_type", "insert", "select_in"]

_ROWS_AT_ONCE = 100


def batches(values: Sequence[Any], size: int = 500) -> Iterator[Sequence[Any]]:
    """Yield `values` in slices that fit into one IN (...)."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows that have every column of `table`, with the statement Core compiles and the driver's own types.

    Core would convert each value of each row anew, which costs as much as the insert itself; ours need none: text,
    bytes, whole numbers and flags are what drivers take. SQLite takes many rows in one statement faster than many
    statements of one row.
    """
    statement, values_of = _insert(connection.dialect, table)
    if values_of is None:
        if rows:
            connection.exec_driver_sql(statement, rows)
        return
    size = min(_ROWS_AT_ONCE, _most_values() // len(table.c))
    whole = len(rows) - len(rows) % size
    for first in range(0, whole, size):
        values = tuple(chain.from_iterable(map(values_of, rows[first : first + size])))
        connection.exec_driver_sql(_many(statement, size), values)
    if whole < len(rows):
        connection.exec_driver_sql(statement, list(map(values_of, rows[whole:])))


@lru_cache(maxsize=64)
def _many(statement: str, rows: int) -> str:
    start, place = statement.rsplit("VALUES ", 1)
    return f"{start}VALUES {', '.join([place] * rows)}"


@lru_cache(maxsize=1)
def _most_values() -> int:
    """Return how many values SQLite takes in one statement: 999 before 3.32, unless it was built otherwise."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        return connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)


def select_in(
    connection: Connection, query: Select[Any], column: Column[Any], values: Sequence[Any]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of `query` whose `column` is one of `values`, as the driver gives them.

    Core would render the IN anew for each batch, and wrap each row: together several times what the look-up costs.

    Args:
        connection: any transaction.
        query: without parameters of its own and without an order; keep it, its statement is kept too.
        column: a column of `query`'s tables.
        values: as many as wanted.
    """
    start, place = _select(connection.dialect, query, column)
    for batch in batches(values):
        places = ", ".join([place] * len(batch))
        yield from _fetched(connection, f"{start} IN ({places})", tuple(batch))


def flag_type(dialect: Dialect) -> type[int]:
    """Return how a flag is handed to `insert`: SQLite keeps numbers, and its driver takes them four times as fast."""
    return bool if dialect.name == "postgresql" else int


def _fetched(connection: Connection, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return a statement's rows by way of the driver's cursor, inside the connection's transaction."""
    if not connection.in_transaction():
        connection.begin()
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement, values)
        return list(cursor.fetchall())
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError(statement, None, error) from error  # as Core would: the engine turns it into one line
    finally:
        cursor.close()


@lru_cache(maxsize=64)
def _insert(dialect: Dialect, table: Table) -> tuple[str, Callable[[dict[str, Any]], Any] | None]:
    """Return INSERT in the driver's spelling, and what puts a row in its order (None where it takes names)."""
    compiled = table.insert().compile(dialect=dialect)
    columns = tuple(getattr(compiled, "positiontup", None) or ())
    return str(compiled), itemgetter(*columns) if columns else None


@lru_cache(maxsize=64)
def _select(dialect: Dialect, query: Select[Any], column: Column[Any]) -> tuple[str, str]:
    """Return a query up to its IN, and how the driver spells a place for a value."""
    place = "?" if dialect.paramstyle == "qmark" else "%s"
    joined = "WHERE" if query.whereclause is None else "AND"
    return f"{query.compile(dialect=dialect)} {joined} {column.compile(dialect=dialect)}", place
