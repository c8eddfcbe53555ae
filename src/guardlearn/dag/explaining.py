"""Shows the query behind an extraction and how the database carries it out.

SQLite: https://sqlite.org/eqp.html; PostgreSQL: https://www.postgresql.org/docs/current/sql-explain.html. Nothing is
run but the planner.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ClauseElement, Executable

from guardlearn.dag.reading import Query
from guardlearn.dag.tables import metadata

__all__ = ["QueryPlan", "explain"]


class QueryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an extraction asks of its database."""

    database: str
    """sqlite or postgresql."""
    sql: str
    """The query for the items' keys, values written out; what each batch of keys still lacks is read by key."""
    steps: list[str]
    """The planner's words, one step each, indented below the step it serves."""
    indexes: list[str]
    """Indexes that the steps name, without the tables' own keys."""
    in_python: bool
    """Whether a function looks at every item that the query yields, and has the last word."""


class _Explain(Executable, ClauseElement):
    """EXPLAIN of a statement, with its parameters."""

    inherit_cache = False

    def __init__(self, statement: sa.Select[Any]) -> None:
        self.statement = statement


@compiles(_Explain, "sqlite")
def _of_sqlite(element: _Explain, compiler: Any, **options: Any) -> str:
    return f"EXPLAIN QUERY PLAN {compiler.process(element.statement, **options)}"


@compiles(_Explain, "postgresql")
def _of_postgres(element: _Explain, compiler: Any, **options: Any) -> str:
    return f"EXPLAIN (COSTS OFF) {compiler.process(element.statement, **options)}"


def explain(connection: Connection, query: Query) -> QueryPlan:
    """Return the plan of a query, as the database makes it now.

    Args:
        connection: a reading transaction.
        query: what would be read.
    """
    statement, dialect = query.statement(), connection.dialect
    rows = connection.execute(_Explain(statement)).all()
    steps = _indented(rows) if dialect.name == "sqlite" else [str(line) for (line,) in rows]
    words = {word for step in steps for word in re.findall(r"\w+", step)}
    named = sorted(str(index.name) for table in metadata.tables.values() for index in table.indexes)
    # with named parameters a driver's own % are not doubled
    plain: Any = type(dialect)
    written = statement.compile(dialect=plain(paramstyle="named"), compile_kwargs={"literal_binds": True})
    return QueryPlan(
        database=dialect.name,
        sql=str(written),
        steps=steps,
        indexes=[name for name in named if name in words],
        in_python=query.by_hand,
    )


def _indented(rows: Sequence[Any]) -> list[str]:
    """Return SQLite's steps, each two blanks deeper than its parent."""
    depth = {0: -1}
    steps = []
    for step, parent, _, words in rows:
        depth[step] = depth[parent] + 1
        steps.append("  " * depth[step] + words)
    return steps
