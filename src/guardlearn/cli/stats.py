"""`guardlearn stats`: what ℛ holds, how often which attempt is accepted, and why a policy selects what it does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen
from guardlearn.types import OnProgress

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.dag.breakdown import BreakdownRow
    from guardlearn.predicates import Predicate
    from guardlearn.selections import SelectionReport

_ROWS_AN_AXIS = 6
_QUIET_SECONDS = 2.0
_AXES = {"action_pair": "by action pair", "source": "by source", "guard": "by guard", "week": "by week"}
_EMPTY = [None] * 6
_COLUMNS = ["", "items", "refined", "chains", "first", "solved", "E[retries]"]


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    policy: PolicyOption = None,
    where: WhereOption = None,
    as_json: console.Json = False,
) -> None:
    """Count what is there and how attempts fare, by action pair, source, guard and week.

    With --policy or --where: why items are selected or not, and what becomes of those that are.
    """
    predicate = chosen(policy, where) if policy or where else None
    with opened(db) as dag, _progress() as on_progress:
        found, total, report = _gather(dag, predicate, on_progress)
    if as_json:
        console.emit(found)
        return
    _show(db, found, total)
    if report is not None:
        _explain(report)


@contextlib.contextmanager
def _progress() -> Iterator[OnProgress]:
    """Show progress once counting has taken longer than a moment."""
    started, shown = time.monotonic(), list[OnProgress]()
    with contextlib.ExitStack() as stack:

        def update(done: int, total: int, note: str) -> None:
            if not shown and time.monotonic() - started > _QUIET_SECONDS:
                shown.append(stack.enter_context(console.progress("stats")))
            for show in shown:
                show(done, total, note)

        yield update


def _gather(
    dag: ArtifactDAG, predicate: Predicate | None, update: OnProgress
) -> tuple[dict[str, Any], BreakdownRow | None, SelectionReport | None]:
    from guardlearn.selections import policy_counts
    from guardlearn.traces import explain_selection

    rows: dict[str, list[BreakdownRow]] = {}
    for done, axis in enumerate(_AXES):
        rows[axis] = dag.breakdown(axis)
        update(done + 1, len(_AXES), axis)
    total = next(iter(dag.breakdown(None)), None)
    report = None if predicate is None else explain_selection(dag, predicate, on_progress=update)
    found = {
        "items": total.items if total else 0,
        "by_status": dag.count_by(None, "status"),
        "policies": report.policies if report else policy_counts(dag),
        "expected_attempts": total.expected_attempts if total else None,
        "expected_retries": total.expected_retries if total else None,
        "attempts": total.attempts if total else (),
        "by_action_pair": {row.value: row.items for row in rows["action_pair"]},
        "by_source": {row.value: row.items for row in rows["source"]},
        "sides": {side.value: count for side, count in dag.sides().items()},
        "breakdown": rows,
    }
    return found if report is None else found | {"selection": report}, total, report


def _show(db: str, found: dict[str, Any], total: BreakdownRow | None) -> None:
    console.table(f"{found['items']} items in {db}", ["status", "items"], _rows(found["by_status"]))
    console.table("What each policy selects", ["policy", "items"], _rows(found["policies"]))
    attempts = [[row.attempt, row.judged, row.accepted, f"{row.rate:.0%}"] for row in found["attempts"]]
    console.table("Acceptance by attempt", ["attempt", "judged", "accepted", "rate"], attempts)
    lines = [line for axis, rows in found["breakdown"].items() for line in _axis_lines(axis, rows)]
    console.table("Retries: accepted at first, solved in the end, expected retries", _COLUMNS, lines)
    console.table("Specifications by side", ["side", "specifications"], _rows(found["sides"]))
    if total is not None and total.expected_attempts is not None:
        print(
            f"expected attempts within {total.largest_attempt}: {total.expected_attempts:.2f}, so E[retries] is "
            f"{total.expected_retries:.2f}; solved by then: {total.solved:.0%}"
        )
    if total is not None and total.broken:
        print(f"{total.broken} items of broken chains are in no figure of attempts: their beginning is missing")


def _axis_lines(axis: str, rows: list[BreakdownRow]) -> list[list[Any]]:
    """Return the rows of one axis that a person wants to see: the latest weeks, or what has the most items."""
    shown = rows[-_ROWS_AN_AXIS:] if axis == "week" else rows[:_ROWS_AN_AXIS]
    lines = [_line(row) for row in shown]
    if hidden := len(rows) - len(shown):
        note = f"  ({hidden} {'earlier' if axis == 'week' else 'more'}: --json)"
        lines.insert(0 if axis == "week" else len(lines), [note, *_EMPTY])
    return [[_AXES[axis], *_EMPTY], *lines]


def _line(row: BreakdownRow) -> list[Any]:
    version = f" {row.guard_version[:8]}" if row.guard_version else ""
    first, solved = (None if share is None else f"{share:.0%}" for share in (row.first_rate, row.solved))
    retries = None if row.expected_retries is None else f"{row.expected_retries:.2f}"
    return [f"  {row.value or '(none)'}{version}", row.items, row.refinements, row.chains, first, solved, retries]


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
