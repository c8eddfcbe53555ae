"""The words and numbers every rendering shares."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from guardlearn.comparing.costs import Payback, Saving, cost
from guardlearn.evidence import Comparison, Evidence, Outcome, Pair, Performance, Rate

__all__ = [
    "DASH",
    "GroupRow",
    "Tally",
    "action_pair_columns",
    "action_pair_rows",
    "attempt_rows",
    "attempts",
    "by_group",
    "cause_rows",
    "caveats",
    "changes",
    "comparison",
    "curves",
    "drop_rows",
    "figures",
    "groups",
    "headline",
    "interval",
    "many",
    "number",
    "p_value",
    "payback",
    "percent",
    "points",
    "sides",
    "subject",
    "throughput",
]

DASH = "–"


class Tally(NamedTuple):
    """First attempts of one model in one group."""

    passed: int
    judged: int
    silent: int
    """Without a verdict."""

    @property
    def share(self) -> float | None:
        """Passed of those judged; None where none was."""
        return self.passed / self.judged if self.judged else None

    def __str__(self) -> str:
        said = f"{self.passed} of {self.judged}"
        return f"{said}, {self.silent} no verdict" if self.silent else said


class GroupRow(NamedTuple):
    """One group, before and after."""

    name: str
    chains: int
    base: Tally
    candidate: Tally | None


def percent(share: float | None) -> str:
    """Return a share as a percentage; a decimal only where rounding would claim none or all."""
    if share is None:
        return DASH
    value = 100 * share
    exact = round(value) in (0, 100) and round(value, 6) not in (0, 100)
    return f"{min(99.9, max(0.1, value)):.1f} %" if exact and 0 < value < 100 else f"{value:.0f} %"


def points(difference: float | None) -> str:
    """Return a difference of shares in percentage points, signed."""
    return DASH if difference is None else f"{100 * difference:+.0f} points"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number, or a dash for what could not be said."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else DASH


def interval(low: float | None, high: float | None, scale: float = 100, digits: int = 0) -> str:
    """Return an interval as "86 to 98", or why there is none."""
    if low is None or high is None:
        return "no interval"
    return f"{scale * low + 0.0:.{digits}f} to {scale * high + 0.0:.{digits}f}"


def headline(evidence: Evidence) -> str:
    """Return the result in one sentence."""
    base, candidate = evidence.base.first_attempt, evidence.candidate
    if candidate is None or evidence.difference is None:
        return f"First attempts that pass: {percent(base.rate)} ({_by_group(base)})"
    difference = evidence.difference
    turn = f"{percent(base.rate)} → {percent(candidate.first_attempt.rate)}"
    return f"First attempts that pass: {turn} ({points(difference.rate)}, {_by_group(difference)})"


def attempts(evidence: Evidence) -> str:
    """Return what happened to the expected number of attempts, in one sentence."""
    before, after = evidence.base, evidence.candidate
    turn = number(before.expected_attempts)
    solved = percent(before.solved_within_r_max)
    if after is not None:
        turn = f"{turn} → {number(after.expected_attempts)}"
        solved = f"{solved} → {percent(after.solved_within_r_max)}"
    return f"Attempts needed, at most {evidence.r_max}: {turn}; solved within {evidence.r_max}: {solved}"


def subject(evidence: Evidence) -> str:
    """Return what was measured on how much, in one line."""
    what = f"model {evidence.model}" + (f", adapter {evidence.adapter}" if evidence.adapter else ", no adapter")
    size = f"{evidence.specs} specifications in {groups(evidence)}, {evidence.samples_per_spec} sample(s) each"
    return f"{what}; {size}; guard {evidence.guard}"


def groups(evidence: Evidence) -> str:
    """Return how many groups there are, in words."""
    return many(evidence.groups, "group")


def many(count: int, what: str) -> str:
    """Return a count of something with a plain plural, in words."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def figures(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Return the before and after table: (what, base, candidate)."""
    models: list[Performance | None] = [evidence.base, evidence.candidate]
    rows: list[list[str]] = [
        ["first attempts that pass"],
        ["  95 % interval, by group"],
        ["  passed, of those with a verdict"],
        [f"attempts needed (at most {evidence.r_max})"],
        ["  95 % interval, by group"],
        [f"solved within {evidence.r_max} attempts"],
        ["  chains by outcome"],
        ["attempts made, cut off by the token limit"],
        ["paid for each accepted artifact"],
    ]
    for side in models:
        for row, cell in zip(rows, _column(side) if side is not None else [""] * len(rows), strict=True):
            row.append(cell)
    return [(row[0], row[1], row[2]) for row in rows]


def by_group(evidence: Evidence) -> list[GroupRow]:
    """Return every group's first attempts, by how much the candidate changed; groups without both verdicts last."""
    members: dict[str, list[Pair]] = collections.defaultdict(list)
    for pair in evidence.per_spec:
        members[pair.group].append(pair)
    rows = [
        GroupRow(
            name=name,
            chains=len(pairs),
            base=_tally(pair.base for pair in pairs),
            candidate=_tally(pair.candidate for pair in pairs if pair.candidate) if evidence.candidate else None,
        )
        for name, pairs in members.items()
    ]
    return sorted(rows, key=_by_change)


def curves(evidence: Evidence) -> list[tuple[str, list[float]]]:
    """Return (model, share solved within 1 .. R_max attempts); the list is empty where no chain was judged."""
    sides_ = zip(sides(evidence), (evidence.base, evidence.candidate), strict=False)
    return [(name, side.solved_by_attempt) for name, side in sides_ if side is not None]


def attempt_rows(evidence: Evidence) -> list[list[str]]:
    """Return the share solved by 1 .. R_max attempts: [attempts, base, candidate]."""
    found = curves(evidence)
    return [
        [str(place + 1), *(percent(curve[place]) if curve else DASH for _, curve in found)]
        for place in range(evidence.r_max)
    ]


def action_pair_columns(evidence: Evidence) -> list[str]:
    """Return the columns of `action_pair_rows`."""
    columns = ["action pair", "specifications", "groups", "base"]
    return columns + (["candidate", "difference", "95 % interval", "sign-flip, Holm"] if evidence.candidate else [])


def action_pair_rows(evidence: Evidence) -> list[list[str]]:
    """Return the first attempts of each action pair; the test is adjusted for as many as were tested."""
    rows = []
    for row in evidence.by_action_pair:
        cells = [row.action_pair_id, str(row.specs), str(row.groups), percent(row.base)]
        if evidence.candidate is not None:
            cells += [percent(row.candidate), points(row.difference), interval(row.low, row.high)]
            cells.append(p_value(row.adjusted_p_value))
        rows.append(cells)
    return rows


def changes(evidence: Evidence) -> str:
    """Return how pairs differ, in one sentence; "" where only the base was measured."""
    changed = evidence.changes
    if changed is None:
        return ""
    return (
        f"{changed.gained} first attempts gained, {changed.lost} lost, {changed.same} the same, "
        f"{changed.no_verdict} without both verdicts; {changed.chains_changed} chains changed in any way."
    )


def cause_rows(evidence: Evidence) -> list[list[str]]:
    """Return rejected first attempts by cause: [cause, base, candidate], most frequent first."""
    before = evidence.base.failures
    after = evidence.candidate.failures if evidence.candidate else {}
    causes = sorted(
        before.keys() | after.keys(), key=lambda cause: (-before.get(cause, 0) - after.get(cause, 0), cause)
    )
    rows = [[cause, str(before.get(cause, 0)), str(after.get(cause, 0))] for cause in causes]
    return rows if evidence.candidate else [row[:2] for row in rows]


def drop_rows(dropped: Mapping[str, int] | None, dropped_rows: Mapping[str, int]) -> list[list[str]]:
    """Return what was not trained on: [what, reason, count]."""
    rows = [["selected item", reason, f"{count:,}"] for reason, count in (dropped or {}).items()]
    return rows + [["row", reason, f"{count:,}"] for reason, count in dropped_rows.items()]


def throughput(result: Mapping[str, Any], evidence: Evidence) -> list[list[str]]:
    """Return how fast training and answering were: [what, tokens a second, of them …, seconds a step, seconds].

    Args:
        result: the training's own account; empty: not known.
        evidence: what was measured; a model whose time or tokens nobody counted is left out.
    """
    found = result.get("stages")
    stages = [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
    stages = stages or ([result] if result else [])
    rows = [_training_speed(stage, place, stages, result) for place, stage in enumerate(stages, 1)]
    for name, side in zip(sides(evidence), (evidence.base, evidence.candidate), strict=False):
        if side is not None and side.seconds and side.completion_tokens:
            read = side.prompt_tokens
            both = number((read + side.completion_tokens) / side.seconds, 0) if read is not None else DASH
            written = number(side.completion_tokens / side.seconds, 0)
            rows.append([f"answers, {name}", both, written, DASH, number(side.seconds, 0)])
    return [row for row in rows if set(row[1:]) != {DASH}]


def _training_speed(
    stage: Mapping[str, Any], place: int, stages: Sequence[Mapping[str, Any]], result: Mapping[str, Any]
) -> list[str]:
    name = f"training, stage {place}: {stage.get('method', '?')}" if len(stages) > 1 else "training"
    whole = result.get("seconds") if len(stages) == 1 else None  # a stage's own are not noted
    paces = ((stage.get("tokens_per_second"), 0), (stage.get("completion_tokens_per_second"), 0))
    return [name, *(number(*pace) for pace in (*paces, (stage.get("seconds_a_step"), 2), (whole, 0)))]


def sides(evidence: Evidence) -> list[str]:
    """Return the names of the models that were measured."""
    return ["base", "candidate"] if evidence.candidate is not None else ["base"]


def comparison(difference: Comparison, name: str = "the candidate") -> list[tuple[str, str]]:
    """Return what the paired comparison says of `name`: (what, value)."""
    worst = difference.conservative
    return [
        ("first attempts that pass", f"{points(difference.rate)} ({interval(difference.low, difference.high)})"),
        ("the interval is", difference.method),
        ("bootstrap by group", interval(difference.bootstrap_low, difference.bootstrap_high)),
        ("sign-flip test by group", p_value(difference.p_value)),
        ("smallest difference it could show", points(difference.minimum_detectable).lstrip("+")),
        ("no-verdicts held against it", f"{points(worst.rate)} ({interval(worst.low, worst.high)})"),
        ("pairs with both verdicts", str(difference.pairs)),
        ("conclusion", _conclusion(difference, name)),
    ]


def _conclusion(difference: Comparison, name: str) -> str:
    """Return what may be concluded, in words."""
    if difference.low is None or difference.high is None:
        return "none: too few groups for an interval"
    if difference.holds:
        return f"{name} passes first time more often"
    if difference.high < 0:
        return f"{name} passes first time less often"
    if difference.low > 0:
        return f"none: the gain does not survive counting no-verdicts against {name}"
    return "none: the interval holds 0"


def p_value(value: float | None) -> str:
    """Return a p-value; tiny ones as a bound."""
    if value is None:
        return DASH
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"


def payback(paid: Payback) -> str:
    """Return after how many tasks a round has paid, in one line."""
    said = [_saved(one, unit) for one, unit in ((paid.seconds, "seconds"), (paid.tokens, "tokens")) if one is not None]
    if not said:
        return "Whether the round pays is not known: no cost was measured"
    return f"The round has paid {'; '.join(said)}"


def _saved(saving: Saving, unit: str) -> str:
    change = f"{number(abs(saving.per_task))} {unit} {'saved' if saving.per_task > 0 else 'more'} a task"
    if saving.tasks is None:
        return f"never in {unit} ({change})"
    if saving.low is None:
        return f"in {unit} after {saving.tasks} tasks ({change}; no interval: one group)"
    most = "never" if saving.tasks_high is None else str(saving.tasks_high)
    return f"in {unit} after {saving.tasks} tasks ({saving.tasks_low} to {most}; {change})"


def _paid(side: Performance) -> str:
    """Return tokens and seconds per accepted artifact, as far as they are known."""
    paid = cost(side)
    known = [
        f"{number(value, digits)} {unit}"
        for value, digits, unit in (
            (paid.completion_tokens, 0, "tokens written"),
            (paid.prompt_tokens, 0, "read"),
            (paid.seconds, 2, "s"),
        )
        if value is not None
    ]
    return ", ".join(known) or DASH


def caveats(evidence: Evidence) -> list[str]:
    """Return what the evidence itself says against reading too much into it."""
    said = []
    if evidence.groups < 2:
        said.append("One group only: nothing can be said about other groups, so there is no interval.")
    if evidence.candidate is not None and evidence.pairing != "common random numbers":
        said.append("Pairs share the specification only, not the sampling noise.")
    if evidence.leakage.startswith("not checked"):
        said.append(f"Leakage was {evidence.leakage}.")
    said.extend(f"{count} × {reason}." for reason, count in evidence.drops.items())
    return said


def _column(side: Performance) -> list[str]:
    first = side.first_attempt
    outcomes = ", ".join(f"{count} {name}" for name, count in side.outcomes.items())
    expected = interval(side.expected_attempts_low, side.expected_attempts_high, scale=1, digits=2)
    return [
        percent(first.rate),
        interval(first.low, first.high),
        f"{first.passed} of {first.judged}",
        number(side.expected_attempts),
        expected,
        percent(side.solved_within_r_max),
        outcomes,
        f"{side.attempts}, {side.truncated}",
        _paid(side),
    ]


def _tally(chains: Iterable[Outcome]) -> Tally:
    firsts = [one.first for one in chains]
    return Tally(passed=firsts.count(True), judged=len(firsts) - firsts.count(None), silent=firsts.count(None))


def _by_change(row: GroupRow) -> tuple[bool, float, float, str]:
    before, after = row.base.share, row.candidate.share if row.candidate else row.base.share
    if before is None or after is None:
        return True, 0.0, 0.0, row.name
    return False, before - after, -after, row.name


def _by_group(estimate: Rate | Comparison) -> str:
    if estimate.rate is None:
        return "no first attempt got a verdict"
    if estimate.low is None:
        return "no interval: one group says nothing about others"
    return f"95 % interval {interval(estimate.low, estimate.high)}, by group"
