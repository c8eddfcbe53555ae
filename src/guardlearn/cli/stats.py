"""`guardlearn stats`: what ℛ holds, how often which attempt is accepted, and why a policy selects what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen
from guardlearn.errors import UsageError
from guardlearn.printing import printable
from guardlearn.types import OnProgress

if TYPE_CHECKING:
    from guardlearn.comparing.promises import AdapterFigures
    from guardlearn.dag import ArtifactDAG
    from guardlearn.dag.breakdown import BreakdownRow
    from guardlearn.predicates import Predicate
    from guardlearn.selections import SelectionReport

_ROWS_AN_AXIS = 6
_AXES = {
    "action_pair": "by action pair",
    "source": "by source",
    "guard": "by guard",
    "week": "by week",
    "adapter": "by adapter",
}
_ADAPTER_AXES = ("adapter", "adapter,week")
_BY = "One axis only, all its rows: " + " | ".join([*_AXES, "adapter,week"])
_NONE = {"adapter": "(no adapter)"}
"""What stands for a value that items do not say."""
_EMPTY = [None] * 6
_COLUMNS = ["", "items", "refined", "chains", "first", "solved", "E[retries]"]


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    policy: PolicyOption = None,
    where: WhereOption = None,
    by: Annotated[str | None, typer.Option("--by", help=_BY)] = None,
    as_json: console.Json = False,
) -> None:
    """Count what is there and how attempts fare, by action pair, source, guard, week and adapter.

    With --policy or --where: why items are selected or not, and what becomes of those that are. With --by adapter: what
    the chains of each adapter show beside the evidence it was promoted on; a chain belongs to the adapter of its first
    attempt.
    """
    if by is not None and by not in (*_AXES, "adapter,week"):
        raise UsageError(f"--by is {by!r}; allowed: {' | '.join([*_AXES, 'adapter,week'])}")
    predicate = chosen(policy, where) if policy or where else None
    with opened(db) as dag, console.late_progress("stats") as on_progress:
        found, total, report = _gather(dag, predicate, by, on_progress)
    if as_json:
        console.emit(found)
        return
    _show(db, found, total, by)
    if report is not None:
        _explain(report)


def _gather(
    dag: ArtifactDAG, predicate: Predicate | None, by: str | None, update: OnProgress
) -> tuple[dict[str, Any], BreakdownRow | None, SelectionReport | None]:
    from guardlearn.selections import policy_counts
    from guardlearn.traces import explain_selection

    rows: dict[str, list[BreakdownRow]] = {}
    axes = [by] if by else list(_AXES)
    adapters = _adapters(dag, by)
    for done, axis in enumerate(axes):
        rows[axis] = [each.row for each in adapters] if by in _ADAPTER_AXES else dag.breakdown(axis)
        update(done + 1, len(axes), axis)
    total = next(iter(dag.breakdown(None)), None)
    report = None if predicate is None else explain_selection(dag, predicate, on_progress=update)
    found = {
        "items": total.items if total else 0,
        "by_status": dag.count_by(None, "status"),
        "policies": report.policies if report else policy_counts(dag),
        "expected_attempts": total.expected_attempts if total else None,
        "expected_retries": total.expected_retries if total else None,
        "attempts": total.attempts if total else (),
        "by_action_pair": _items(rows, "action_pair") or dag.count_by(None, "action_pair_id"),
        "by_source": _items(rows, "source") or dag.count_by(None, "source"),
        "sides": {side.value: count for side, count in dag.sides().items()},
        "breakdown": rows,
        "adapters": adapters,
        "warnings": [each.warning for each in adapters if each.warning],
    }
    return found if report is None else found | {"selection": report}, total, report


def _items(rows: dict[str, list[BreakdownRow]], axis: str) -> dict[str, int]:
    return {row.value: row.items for row in rows.get(axis, [])}


def _adapters(dag: ArtifactDAG, by: str | None) -> list[AdapterFigures]:
    """Return what ℛ shows of each adapter where that is asked for, or where a round has promoted one."""
    from guardlearn.dag.rounds import read_promotions

    with dag.reading() as connection:
        if by not in _ADAPTER_AXES and (by is not None or not read_promotions(connection)):
            return []
        from guardlearn.comparing.promises import figures_of_adapters

        return figures_of_adapters(connection, by_week=by == "adapter,week")


def _show(db: str, found: dict[str, Any], total: BreakdownRow | None, by: str | None) -> None:
    if by in _ADAPTER_AXES:
        _show_adapters(db, found["adapters"])
    elif by is not None:
        lines = [_line(row, by) for row in found["breakdown"][by]]
        console.table(f"{found['items']} items in {db}, {_AXES[by]}", _COLUMNS, lines)
    else:
        _show_all(db, found, total)
    for warning in found["warnings"]:
        print(printable(f"warning: {warning}"))


def _show_all(db: str, found: dict[str, Any], total: BreakdownRow | None) -> None:
    console.table(f"{found['items']} items in {db}", ["status", "items"], _rows(found["by_status"]))
    console.table("What each policy selects", ["policy", "items"], _rows(found["policies"]))
    attempts = [[row.attempt, row.judged, row.accepted, f"{row.rate:.0%}"] for row in found["attempts"]]
    console.table("Acceptance by attempt", ["attempt", "judged", "accepted", "rate"], attempts)
    shown = {axis: rows for axis, rows in found["breakdown"].items() if axis != "adapter" or _names_any(rows)}
    lines = [line for axis, rows in shown.items() for line in _axis_lines(axis, rows)]
    console.table("Retries: accepted at first, solved in the end, expected retries", _COLUMNS, lines)
    console.table("Specifications by side", ["side", "specifications"], _rows(found["sides"]))
    if total is not None and total.expected_attempts is not None:
        print(
            f"expected attempts within {total.largest_attempt}: {total.expected_attempts:.2f}, so E[retries] is "
            f"{total.expected_retries:.2f}; solved by then: {total.solved:.0%}"
        )
    if total is not None and total.broken:
        print(f"{total.broken} items of broken chains are in no figure of attempts: their beginning is missing")


def _names_any(rows: list[BreakdownRow]) -> bool:
    return any(row.value for row in rows)


def _axis_lines(axis: str, rows: list[BreakdownRow]) -> list[list[Any]]:
    """Return the rows of one axis that a person wants to see: the latest weeks, or what has the most items."""
    shown = rows[-_ROWS_AN_AXIS:] if axis == "week" else rows[:_ROWS_AN_AXIS]
    lines = [_line(row, axis) for row in shown]
    if hidden := len(rows) - len(shown):
        note = f"  ({hidden} {'earlier' if axis == 'week' else 'more'}: --json)"
        lines.insert(0 if axis == "week" else len(lines), [note, *_EMPTY])
    return [[_AXES[axis], *_EMPTY], *lines]


def _line(row: BreakdownRow, axis: str) -> list[Any]:
    version = f" {row.guard_version[:8]}" if row.guard_version else ""
    first, solved = (None if share is None else f"{share:.0%}" for share in (row.first_rate, row.solved))
    retries = None if row.expected_retries is None else f"{row.expected_retries:.2f}"
    value = row.value[:12] if axis == "adapter" else row.value
    return [
        f"  {value or _NONE.get(axis, '(none)')}{version}",
        row.items,
        row.refinements,
        row.chains,
        first,
        solved,
        retries,
    ]


def _show_adapters(db: str, adapters: list[AdapterFigures]) -> None:
    from guardlearn.report.words import interval, number, percent

    lines: list[dict[str, Any]] = []
    for each in adapters:
        row, promise = each.row, each.promise
        attempts = interval(each.expected_attempts_low, each.expected_attempts_high, scale=1, digits=2)
        said = f"{percent(promise.rate)} ({interval(promise.low, promise.high)})" if promise else None
        line = {
            "adapter": row.value[:12] or _NONE["adapter"],
            "week": row.week,
            "items": row.items,
            "chains": row.chains,
            "first (95 %, by group)": f"{percent(each.first_rate)} ({interval(each.first_low, each.first_high)})",
            "by attempt": ", ".join(percent(attempt.rate) for attempt in row.attempts),
            "E[attempts]": f"{number(row.expected_attempts)} ({attempts})",
            "solved": percent(row.solved),
            "its evidence": said,
        }
        for name in ("by attempt", "its evidence") if row.week else ("week",):
            del line[name]
        lines.append(line)
    columns = list(lines[0]) if lines else ["adapter"]
    console.table(f"What adapters began in {db}", columns, [list(line.values()) for line in lines])


def _explain(report: SelectionReport) -> None:
    counts = [[report.items, report.selected, sum(report.traces.values())]]
    console.table(report.predicate, ["items", "selected", "traces"], counts)
    if report.turned_away:
        console.table("Why the others are not selected", ["reason", "items"], _rows(report.turned_away))
    if report.dropped:
        console.table("Why selected items are no traces", ["reason", "items"], _rows(report.dropped))
    if report.traces:
        by_side = [[side.value, count] for side, count in report.traces.items()]
        console.table("Traces by side", ["side", "traces"], by_side)
    if report.refusal:
        console.say(f"an extraction refuses this repository: {report.refusal}")


def _rows(counts: dict[str, int]) -> list[list[Any]]:
    return [[name, count] for name, count in counts.items()]
