"""Counts of what a predicate selects and turns away: grouped queries, no text is read unless a function must see it.

The account of a selection is complete: an item is selected, or counted under the first condition it fails
(`Predicate.conditions`), in words. Definitions 17 and 18.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.batching import batches
from guardlearn.dag.reading import Query, stream
from guardlearn.dag.sql import COUNTABLE, condition, runs_in_python, selection
from guardlearn.dag.tables import items
from guardlearn.errors import UsageError
from guardlearn.predicates.expression import Condition, Predicate, and_
from guardlearn.types import RepositoryItem

__all__ = ["count", "count_by", "explain_drops"]


def count(connection: Connection, predicate: Predicate, at_most: int | None = None) -> int:
    """Return how many items a resolved predicate selects.

    Args:
        connection: one state of ℛ.
        predicate: Φ, resolved.
        at_most: where counting ends, 1 or more; None: nowhere.

    Raises:
        UsageError: `at_most` is below 1.
    """
    if at_most is not None and at_most < 1:
        raise UsageError(f"at_most={at_most} must be 1 or more, or None for all")
    if runs_in_python(predicate):
        return sum(1 for _ in itertools.islice(_in_order(connection, predicate), at_most))
    if at_most is None:
        return int(connection.execute(selection([sa.func.count()], predicate)).scalar_one())
    some = selection([sa.literal_column("1")], predicate).limit(at_most).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one())


def count_by(connection: Connection, predicate: Predicate, field: str) -> dict[str, int]:
    """Return how many of the selected items have each value of `field`, by value.

    Raises:
        UsageError: items cannot be counted by this field.
    """
    if field not in COUNTABLE:
        raise UsageError(f"items cannot be counted by {field!r}; allowed are: {', '.join(COUNTABLE)}")
    column, counts = COUNTABLE[field], Counter[str]()
    if runs_in_python(predicate):
        chosen = [item.seq for item in _in_order(connection, predicate)]
        every = selection([column, sa.func.count()], None, [items.c.seq]).group_by(column)
        queries = [every.where(items.c.seq.in_(batch)) for batch in batches(chosen)]
    else:
        queries = [selection([column, sa.func.count()], predicate).group_by(column)]
    for query in queries:
        counts.update({str(value): found for value, found in connection.execute(query)})
    return dict(sorted(counts.items()))


def explain_drops(connection: Connection, predicate: Predicate, among: Predicate) -> dict[str, int]:
    """Return why items are turned away: the first condition that each fails, in words, with how many fail it.

    Args:
        connection: one state of ℛ.
        predicate: Φ, resolved.
        among: items that are looked at, resolved.
    """
    parts = () if runs_in_python(among) else predicate.conjuncts()
    queried = list(itertools.takewhile(lambda part: not runs_in_python(part), parts))
    drops = _grouped(connection, and_(*queried).conditions(), among)
    if called := predicate.conjuncts()[len(queried) :]:
        functions = and_(*called)  # from the first function on, whole items are needed; those that got so far
        reasons = (functions.rejection(item) for item in _in_order(connection, and_(among, *queried)))
        drops.update(reason for reason in reasons if reason is not None)
    return dict(drops)


def _grouped(connection: Connection, conditions: Sequence[Condition], among: Predicate) -> Counter[str]:
    if not conditions:
        return Counter()
    first = sa.case(*((sa.not_(condition(each.test).self_group()), n) for n, each in enumerate(conditions)), else_=-1)
    named = {each.named for each in conditions if each.named}
    judged = selection([first.label("first"), *(COUNTABLE[field].label(field) for field in named)], among).subquery()
    values = [(judged.c.first == n, judged.c[each.named]) for n, each in enumerate(conditions) if each.named]
    actual = sa.case(*values, else_="") if values else sa.literal("")
    # grouping by the columns of a subquery: databases disagree on whether two equal expressions are one
    failed = sa.select(judged.c.first, actual.label("actual")).where(judged.c.first >= 0).subquery()
    query = sa.select(failed.c.first, failed.c.actual, sa.func.count()).group_by(failed.c.first, failed.c.actual)
    drops = Counter[str]()
    for place, value, found in sorted(map(tuple, connection.execute(query)), key=lambda row: (row[0], -row[2])):
        drops[conditions[place].reason(value)] += found
    return drops


def _in_order(connection: Connection, predicate: Predicate) -> Iterator[RepositoryItem]:
    return stream(connection, Query(predicate, order_by="seq"))
