"""Sends many rows or keys to the database in few statements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Table
from sqlalchemy.engine import Connection, Dialect

__all__ = ["batches", "insert"]


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
        statement, columns = _statement(connection.dialect, table)
        parameters: Any = [tuple([row[column] for column in columns]) for row in rows] if columns else rows
        connection.exec_driver_sql(statement, parameters)


@lru_cache(maxsize=64)
def _statement(dialect: Dialect, table: Table) -> tuple[str, tuple[str, ...]]:
    """Return INSERT in the driver's spelling, with the order of its parameters ("" where it takes names)."""
    compiled = table.insert().compile(dialect=dialect)
    return str(compiled), tuple(getattr(compiled, "positiontup", None) or ())
