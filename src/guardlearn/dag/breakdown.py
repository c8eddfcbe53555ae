"""Figures of ℛ by action pair, source, guard, adapter or week: one grouped query an axis, no text is read.

Two kinds of figures stand in a row. Items, accepted, refinements and no verdict are counted where the item itself
belongs. Chains, first attempts and expected attempts belong to whole chains, whose items can differ (a human finishes
what the generator began, a week ends): they are counted where the chain's first item belongs, so that a chain is one
observation, and never in two rows. So a chain belongs to the adapter that made its first attempt, and what that adapter
began counts as its own to the end.

An attempt's number is 1 + the rejected attempts before it: attempts without a verdict are not counted (errata 3-5), and
what follows an accepted item (an amendment of it, say) is no attempt at getting it accepted. SUPERSEDED was accepted
once, so it counts as accepted here. In a tree each branch is an attempt of its own. Where the beginning of a chain is
missing, numbers are not known, so it is left out of the figures of chains and counted as `broken`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.batching import batches
from guardlearn.dag.reading import Query, stream
from guardlearn.dag.rows import from_micros
from guardlearn.dag.sql import runs_in_python, selection
from guardlearn.dag.tables import facts, items, specifications
from guardlearn.errors import UsageError
from guardlearn.predicates.expression import Predicate
from guardlearn.types import ArtifactStatus

__all__ = ["AXES", "AttemptRow", "BreakdownRow", "GroupRow", "breakdown", "by_group"]

_PASSED = (ArtifactStatus.ACCEPTED.value, ArtifactStatus.SUPERSEDED.value)
_REJECTED, _PENDING = ArtifactStatus.REJECTED.value, ArtifactStatus.PENDING.value
_TIME = "created_at"
_DAY = 24 * 60 * 60 * 1_000_000
_PAGE = 1000
_WEEK, _TO_MONDAY = 7 * _DAY, 3 * _DAY  # 1970-01-01 was a Thursday


class AttemptRow(msgspec.Struct, frozen=True, kw_only=True):
    """The k-th attempts of all chains in a row."""

    attempt: int
    """k, 1 = no rejection before it."""
    judged: int
    """Attempts that got a verdict; at least 1."""
    accepted: int
    rate: float
    """accepted / judged, in [0, 1]."""
    at_risk: int
    """judged, and the chains that a fatal verdict ended before: they stay unsolved for good."""


class BreakdownRow(msgspec.Struct, frozen=True, kw_only=True):
    """One value of an axis; the first five figures count items, the others chains that begin here."""

    value: str
    """The axis' value; a week is the date of its Monday (ISO 8601, UTC); "" where the item does not say."""
    guard_version: str = ""
    """On the axis guard: the guard's version; else ""."""
    week: str = ""
    """On the axis "adapter,week": the date of its Monday; else ""."""
    items: int
    accepted: int
    """Items whose status is ACCEPTED."""
    refinements: int
    """Items that satisfy Definition 21."""
    no_verdict: int
    """Items whose status is PENDING."""
    broken: int
    """Items of chains whose beginning is missing or that run in a circle; no figure below counts them."""
    chains: int
    first_judged: int
    """First attempts that got a verdict."""
    first_accepted: int
    first_rate: float | None
    """first_accepted / first_judged; None: no first attempt was judged."""
    attempts: tuple[AttemptRow, ...]
    """By number of the attempt; numbers that nothing was judged at are left out."""
    expected_attempts: float | None
    """Σ S(k) over k < `largest_attempt`, in [1, largest_attempt]: the restricted mean of the attempts a chain needs.
    S(k), the share unsolved after k attempts, by Kaplan & Meier (1958): a chain cut early counts for what it did. None:
    nothing was judged."""
    expected_retries: float | None
    """expected_attempts - 1, the guide's E[retries]."""
    solved: float | None
    """1 - S(largest_attempt): the share solved within `largest_attempt` attempts."""
    largest_attempt: int
    """Largest number of an attempt that was judged; 0: none was."""


class GroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """The chains of one group in one row of an axis, for intervals by group."""

    value: str
    guard_version: str
    week: str
    judged: dict[int, int]
    """Attempts that got a verdict, by number of the attempt."""
    accepted: dict[int, int]
    ended: dict[int, int]
    """Chains that a fatal verdict ended there."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Axis:
    columns: tuple[str, ...]

    @property
    def by_time(self) -> bool:
        return self.columns == (_TIME,)

    def of(self, table: sa.FromClause) -> list[sa.ColumnElement[Any]]:
        return [_monday(table.c[name]) if name == _TIME else table.c[name] for name in self.columns]

    def shown(self, key: Sequence[Any]) -> dict[str, str]:
        """Return the fields of a row that name it."""
        said = {
            name: from_micros(value).date().isoformat() if name == _TIME else str(value)
            for name, value in zip(self.columns, key, strict=True)
        }
        first = next(iter(said.values()), "")
        week = said.get(_TIME, "") if len(said) > 1 else ""
        return {"value": first, "guard_version": said.get("guard_version", ""), "week": week}


AXES: dict[str, _Axis] = {
    "action_pair": _Axis(("action_pair_id",)),
    "source": _Axis(("source",)),
    "guard": _Axis(("guard", "guard_version")),
    "week": _Axis((_TIME,)),
    "adapter": _Axis(("adapter",)),
    "adapter,week": _Axis(("adapter", _TIME)),
}
"""What figures can be broken down by."""


def breakdown(connection: Connection, by: str | None, predicate: Predicate) -> list[BreakdownRow]:
    """Return the figures of the selected items by an axis; what is not selected counts nowhere.

    Args:
        connection: one state of ℛ.
        by: a key of AXES; None: one row for everything.
        predicate: Φ, resolved.

    Returns:
        Weeks in order of time, those of an adapter together; other values with the most items first, ties by name.

    Raises:
        UsageError: unknown axis.
    """
    axis = _axis(by)
    tallies: dict[tuple[Any, ...], _Tally] = {}
    for each in _counted(connection, axis, predicate):
        _fold(tallies, connection.execute(_query(each)), len(axis.columns))
    rows = [tally.row(axis.shown(key)) for key, tally in tallies.items()]
    return sorted(rows, key=lambda r: (0 if _TIME in axis.columns else -r.items, r.value, r.guard_version, r.week))


def by_group(connection: Connection, by: str) -> Iterator[GroupRow]:
    """Yield the chains of each group in each row of an axis, those of a row together, in constant memory.

    A group is what must not be split: the `group` of the Ψ that the chain began with, else its near-duplicates.

    Args:
        connection: one state of ℛ.
        by: a key of AXES.

    Raises:
        UsageError: unknown axis.
    """
    axis = _axis(by)
    each, width = _each(axis, None, sa.true(), grouped=True), len(axis.columns)
    with connection.execute(_grouped_query(each, width), execution_options={"yield_per": _PAGE}) as found:
        for (*key, _), rows in itertools.groupby(found, key=lambda row: tuple(row[: width + 1])):
            judged, accepted, ended = dict[int, int](), dict[int, int](), dict[int, int]()
            for *_, number, count, passed, ends in rows:
                judged[number], accepted[number], ended[number] = int(count), int(passed), int(ends)
            yield GroupRow(**axis.shown(key), judged=judged, accepted=accepted, ended=ended)


def _axis(by: str | None) -> _Axis:
    if by is not None and by not in AXES:
        raise UsageError(f"items cannot be broken down by {by!r}; allowed are: {'; '.join(AXES)}")
    return AXES[by] if by else _Axis(())


def _counted(connection: Connection, axis: _Axis, predicate: Predicate) -> list[Any]:
    """Return the selected items as queries; a function in the predicate is asked first."""
    if not runs_in_python(predicate):
        return [_each(axis, predicate, sa.true())]
    chosen = [item.seq for item in stream(connection, Query(predicate, order_by="seq"))]
    return [_each(axis, None, items.c.seq.in_(batch)) for batch in batches(chosen)]


def _each(axis: _Axis, predicate: Predicate | None, also: sa.ColumnElement[bool], *, grouped: bool = False) -> Any:
    """Return a row an item: own values, values of the chain's first item, status, number, four flags, its group."""
    root, after, below = items.alias("root"), _after_acceptance(), facts.alias("below")
    unnumbered = sa.or_(facts.c.status == _PENDING, facts.c.broken, after.c.seq.is_not(None))
    ends = sa.and_(
        items.c.fatal,
        facts.c.status == _REJECTED,
        sa.not_(sa.exists().where(below.c.root_seq == facts.c.root_seq, below.c.parent_seq == facts.c.seq)),
    )
    refined = sa.and_(facts.c.status == ArtifactStatus.ACCEPTED.value, facts.c.rejected_ancestors >= 1)
    values = [*axis.of(items), *axis.of(root)]
    columns: list[sa.ColumnElement[Any]] = [
        *(value.label(f"value_{place}") for place, value in enumerate(values)),
        facts.c.status.label("verdict"),
        sa.case((unnumbered, 0), else_=facts.c.rejected_ancestors + 1).label("number"),
        _flag(sa.and_(facts.c.attempt == 1, sa.not_(facts.c.broken))).label("starts"),
        _flag(ends).label("ends"),
        _flag(refined).label("refined"),
        _flag(facts.c.broken).label("breaks"),
    ]
    placed = specifications.alias("placed")
    if grouped:
        columns.append(placed.c.cluster)
    source = (
        selection(columns, predicate, [items.c.seq, facts.c.seq])
        .join(root, root.c.seq == facts.c.root_seq)
        .outerjoin(after, after.c.seq == facts.c.seq)
        .where(also)
    )
    if grouped:
        source = source.join(placed, placed.c.key == root.c.specification)
    return source.subquery()


def _query(each: Any) -> sa.Select[Any]:
    """Return rows of (own values, values of the chain's first item, status, number, five counts)."""
    *keys, starts, ends, refined, breaks = each.c
    counted = (sa.func.sum(column) for column in (starts, ends, refined, breaks))
    return sa.select(*keys, sa.func.count(), *counted).group_by(*keys)


def _grouped_query(each: Any, width: int) -> sa.Select[Any]:
    """Return rows of (values of the chain's first item, group, number, judged, accepted, ended), in order."""
    keys = [*list(each.c)[width : 2 * width], each.c.cluster, each.c.number]
    passed, ended = _flag(each.c.verdict.in_(_PASSED)), each.c.ends
    return (
        sa.select(*keys, sa.func.count(), sa.func.sum(passed), sa.func.sum(ended))
        .where(each.c.number > 0)
        .group_by(*keys)
        .order_by(*keys)
    )


def _after_acceptance() -> sa.CTE:
    """Return the items that descend from an accepted one."""
    parent, child, later = facts.alias("parent"), facts.alias("child"), facts.alias("later")
    accepted = (
        sa.select(child.c.seq, child.c.root_seq)
        .join(parent, parent.c.seq == child.c.parent_seq)
        .where(child.c.parent_seq > 0, parent.c.status.in_(_PASSED))
        .cte("after_acceptance", recursive=True)
    )
    further = sa.and_(later.c.root_seq == accepted.c.root_seq, later.c.parent_seq == accepted.c.seq)
    return accepted.union(sa.select(later.c.seq, later.c.root_seq).join(accepted, further))


def _monday(micros: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    """Return the start of the ISO week in microseconds since 1970; % takes the sign of its left side everywhere."""
    shifted = micros + _TO_MONDAY
    return micros - (shifted % _WEEK + _WEEK) % _WEEK


def _flag(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.case((condition, 1), else_=0)


@dataclasses.dataclass(slots=True)
class _Tally:
    """What is added up for one row."""

    own: Counter[str] = dataclasses.field(default_factory=Counter)
    judged: Counter[int] = dataclasses.field(default_factory=Counter)
    accepted: Counter[int] = dataclasses.field(default_factory=Counter)
    ended: Counter[int] = dataclasses.field(default_factory=Counter)
    chains: int = 0

    def row(self, named: Mapping[str, str]) -> BreakdownRow:
        attempts, expected, unsolved = self._survival()
        judged = bool(attempts)
        return BreakdownRow(
            **named,
            items=self.own["items"],
            accepted=self.own["accepted"],
            refinements=self.own["refinements"],
            no_verdict=self.own["pending"],
            broken=self.own["broken"],
            chains=self.chains,
            first_judged=self.judged[1],
            first_accepted=self.accepted[1],
            first_rate=self.accepted[1] / self.judged[1] if self.judged[1] else None,
            attempts=attempts,
            expected_attempts=expected if judged else None,
            expected_retries=expected - 1 if judged else None,
            solved=1 - unsolved if judged else None,
            largest_attempt=max(self.judged, default=0),
        )

    def _survival(self) -> tuple[tuple[AttemptRow, ...], float, float]:
        """Return the attempts, Σ S(k) over k < largest, and S(largest)."""
        rows: list[AttemptRow] = []
        expected, unsolved, ended = 0.0, 1.0, 0
        for number in range(1, max(self.judged, default=0) + 1):
            expected += unsolved
            judged, accepted = self.judged[number], self.accepted[number]
            if judged:
                unsolved *= 1 - accepted / (judged + ended)
                rate = accepted / judged
                rows.append(
                    AttemptRow(attempt=number, judged=judged, accepted=accepted, rate=rate, at_risk=judged + ended)
                )
            ended += self.ended[number]
        return tuple(rows), expected, unsolved


def _fold(tallies: dict[tuple[Any, ...], _Tally], rows: Iterable[Any], width: int) -> None:
    for row in rows:
        own, start = tuple(row[:width]), tuple(row[width : 2 * width])
        status, number, count, starts, ends, refined, broken = row[2 * width :]
        figures = tallies.setdefault(own, _Tally()).own
        figures["items"] += count
        figures[status] += count
        figures["refinements"] += int(refined)
        figures["broken"] += int(broken)
        if not (starts or number):
            continue
        chain = tallies.setdefault(start, _Tally())
        chain.chains += int(starts)
        if number:
            chain.judged[number] += count
            chain.accepted[number] += count if status in _PASSED else 0
            chain.ended[number] += int(ends)
