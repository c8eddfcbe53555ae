"""Reads the rows of a query a page at a time, pages of a bounded size: what is large comes alone."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Generator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

__all__ = ["rows", "rows_by_size"]

_PAGE = 500
_LARGE = 65_536
"""Bytes from which on a row is read alone: a page holds at most 32 MB."""


def rows(connection: Connection, query: sa.Select[Any], at_once: int = _PAGE) -> Generator[Any, None, None]:
    """Yield a query's rows as mappings; the cursor ends with the generator."""
    with connection.execute(query, execution_options={"yield_per": at_once}) as result:
        yield from result.mappings()


def rows_by_size(
    connection: Connection, query: sa.Select[Any], key: sa.Column[int], *texts: sa.ColumnElement[bytes]
) -> Generator[Any, None, None]:
    """Yield a query's rows in the order of `key`; those with long texts are read one at a time.

    Args:
        connection: any transaction.
        query: selects `key` under its own name; in any order.
        key: what is unique to a row.
        texts: columns whose lengths count; a missing text has none.
    """
    size = sum((sa.func.coalesce(sa.func.length(text), 0) for text in texts), sa.literal(0))
    ordered = query.order_by(None).order_by(key)
    with (
        contextlib.closing(rows(connection, ordered.where(size <= _LARGE))) as small,
        contextlib.closing(rows(connection, ordered.where(size > _LARGE), 1)) as large,
    ):
        yield from heapq.merge(small, large, key=lambda row: row[key.name])
