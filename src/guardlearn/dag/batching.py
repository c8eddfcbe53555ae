"""Sends many rows or keys to the database in few statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, Select, Table
from sqlalchemy.engine import Connection, Dialect

__all__ = ["batches", "flag_type", "insert", "select_in"]


def batches(values: Sequence[Any], size: int = 500) -> Iterator[Sequence[Any]]:
    """Yield `values` in slices that fit into one IN (...)."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows that have every column of `table`, with the statement Core compiles and the driver's own types.

    Core would convert each value of each row anew, which costs as much as the insert itself; ours need none: text,
    bytes, whole numbers and flags are what drivers take.
    """
    if rows:
        statement, values_of = _insert(connection.dialect, table)
        parameters: Any = list(map(values_of, rows)) if values_of else rows
        connection.exec_driver_sql(statement, parameters)


def select_in(connection: Connection, query: Select[Any], column: Column[Any], values: Sequence[Any]) -> Iterator[Any]:
    """Yield the rows of `query` whose `column` is one of `values`, as the driver gives them.

    Core would render the IN anew for each batch, which costs several times what the look-up does.

    Args:
        connection: any transaction.
        query: without parameters of its own; keep it, its statement is kept too.
        column: a column of `query`'s tables.
        values: as many as wanted.
    """
    start, place = _select(connection.dialect, query, column)
    for batch in batches(values):
        yield from connection.exec_driver_sql(f"{start} IN ({', '.join([place] * len(batch))})", tuple(batch))


def flag_type(dialect: Dialect) -> type[int]:
    """Return how a flag is handed to `insert`: SQLite keeps numbers, and its driver takes them four times as fast."""
    return bool if dialect.name == "postgresql" else int


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
    return f"{query.compile(dialect=dialect)} WHERE {column.compile(dialect=dialect)}", place
