"""Turns a predicate into SQL that selects the same items as `matches` does.

Only `satisfies` has no SQL. It becomes TRUE where the bound may be too wide and FALSE under a negation, so that the SQL
never misses an item; whoever runs it applies `matches` afterwards when `runs_in_python` says so.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from guardlearn.dag.rows import storable, to_micros
from guardlearn.dag.tables import facts, items, specifications
from guardlearn.errors import UsageError
from guardlearn.predicates.expression import All, Any_, Comparison, Not, Predicate, Satisfies, Word

__all__ = ["COUNTABLE", "condition", "runs_in_python", "selection"]

_COLUMNS: dict[str, sa.Column[Any]] = {
    **{
        name: items.c[name]
        for name in "id seq source action_pair_id workflow_id workflow_ref guard guard_version model adapter".split()
    },
    "created_at": items.c.created_at,
    "group": items.c.spec_group,
    "side": specifications.c.side,
    **{name: facts.c[name] for name in "status rejected_ancestors excluded reviewed stale redacted broken".split()},
}

COUNTABLE: dict[str, sa.Column[Any]] = {
    name: _COLUMNS[name]
    for name in "status source action_pair_id workflow_id guard guard_version model adapter group side".split()
} | {
    "cause": items.c.cause,
    "attempt": facts.c.attempt,
    "retries": facts.c.rejected_ancestors,
    "cluster": specifications.c.cluster,
}
"""Fields that items can be counted by."""


_TESTS: dict[str, Callable[[Any, Any], sa.ColumnElement[bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def selection(columns: Sequence[Any], predicate: Predicate | None = None, also: Sequence[Any] = ()) -> sa.Select[Any]:
    """Return SELECT columns of the items that `predicate` selects.

    Args:
        columns: of items, facts and specifications; tables that nobody asks for are not joined.
        predicate: None selects every item.
        also: more columns that will be used in conditions or for sorting.
    """
    where = sa.true() if predicate is None else condition(predicate)
    used = {column.table for column in _columns_of(where, *columns, *also)}
    # facts has a row for each item: with no other column wanted, the narrow table is read alone
    source: Any = items if items in used or not used or specifications in used else facts
    if source is items and facts in used:
        source = source.join(facts, facts.c.seq == items.c.seq)
    if specifications in used:
        source = source.join(specifications, specifications.c.key == items.c.specification)
    return sa.select(*columns).select_from(source).where(where)


def condition(predicate: Predicate | Comparison, *, wide: bool = True) -> sa.ColumnElement[bool]:
    """Return the WHERE clause of a resolved predicate.

    Args:
        predicate: Φ, or one comparison of a word.
        wide: what `satisfies` becomes: TRUE (nothing is missed) or, under a negation, FALSE.
    """
    match predicate:
        case Comparison():
            return _comparison(predicate)
        case Word():
            return _all([_comparison(part) for part in predicate.meaning(datetime.now(UTC))])
        case All():
            return _all([condition(term, wide=wide) for term in predicate.terms])
        case Any_():
            return sa.or_(sa.false(), *(condition(term, wide=wide) for term in predicate.terms))
        case Not():
            return sa.not_(condition(predicate.term, wide=not wide).self_group())
        case Satisfies():
            return sa.true() if wide else sa.false()
    raise UsageError(f"{predicate!r} is no predicate of the vocabulary; wrap your own in satisfies(...)")


def runs_in_python(predicate: Predicate) -> bool:
    """Whether `predicate` holds a function, so that its SQL is only a bound."""
    match predicate:
        case Satisfies():
            return True
        case All() | Any_():
            return any(runs_in_python(term) for term in predicate.terms)
        case Not():
            return runs_in_python(predicate.term)
    return not isinstance(predicate, Word)


def _all(conditions: Sequence[sa.ColumnElement[bool]]) -> sa.ColumnElement[bool]:
    return sa.and_(sa.true(), *conditions)


def _comparison(comparison: Comparison) -> sa.ColumnElement[bool]:
    column = _COLUMNS[comparison.field]
    if comparison.test == "in":
        # a name that cannot be stored is the name of nothing
        values = [v for v in map(_value, comparison.value) if not isinstance(v, str) or storable(v)]
        if not values:
            return sa.false()
        return column == values[0] if len(values) == 1 else column.in_(values)
    value = _value(comparison.value)
    return _TESTS[comparison.test](column, value)


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return to_micros(value)
    return value.value if isinstance(value, enum.Enum) else value


def _columns_of(*expressions: Any) -> list[sa.Column[Any]]:
    found: list[sa.Column[Any]] = []
    for expression in expressions:
        element = expression if hasattr(expression, "get_children") else sa.literal(expression)
        found += [each for each in sa.sql.visitors.iterate(element) if isinstance(each, sa.Column)]
    return found
