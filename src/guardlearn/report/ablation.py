"""What an ablation came to, and the words that every rendering of it shares.

Arms that train differently for the same wall time, each held against a reference on the validation side: paired by
specification, sample and seed, intervals and tests by group, p-values adjusted for the number of arms (Holm).
"""

from __future__ import annotations

from typing import Any

import msgspec

from guardlearn.evidence import Rate
from guardlearn.report import words

__all__ = [
    "ALPHA",
    "UNEVEN",
    "Ablation",
    "ArmFigures",
    "Figures",
    "Versus",
    "arm_rows",
    "caveats",
    "difference_rows",
    "headline",
    "passes",
    "sentence",
    "steps",
    "title",
    "wall",
]

ALPHA = 0.05
"""Adjusted p-values below it tell an arm from the reference, where the interval agrees."""
UNEVEN = 0.2
"""How far a training's wall time may lie from the median of all before the comparison is said to be uneven."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """How models of one kind did on the validation side."""

    name: str
    first_attempt: Rate
    by_seed: list[float | None]
    """Share of first attempts that passed, a mean of group means; one for each training seed."""
    expected_attempts: float | None = None
    """None where chains had one attempt."""
    expected_attempts_low: float | None = None
    expected_attempts_high: float | None = None
    solved_within_r_max: float | None = None


class ArmFigures(msgspec.Struct, frozen=True, kw_only=True):
    """An arm: what it trained on, for how long, and how it did."""

    traces: list[int]
    """By seed, as everything here that is a list."""
    groups: list[int]
    """Groups of those traces."""
    steps: list[int]
    """Of each stage, the same with every seed."""
    passes: list[float]
    """Over the rows of its first stage."""
    wall_seconds: list[float | None]
    """None: the training was interrupted."""
    figures: Figures


class Versus(msgspec.Struct, frozen=True, kw_only=True):
    """An arm minus the reference, in points or attempts as `Ablation.outcome` says."""

    arm: str
    rate: float | None
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided sign-flip test over groups."""
    adjusted_p_value: float | None
    """The same for as many arms as were compared (Holm)."""
    minimum_detectable: float | None
    """The smallest true difference that these groups could have shown (alpha 0.05, power 0.8); None: none at all."""
    pairs: int
    """In which both chains got a verdict."""
    method: str


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """What came out."""

    over: str
    """The axis."""
    outcome: str
    """What arms are told apart by: "first attempts" (shares) or "attempts" (until accepted, at most R_max)."""
    reference: str
    arms: list[ArmFigures]
    """The reference first."""
    untrained: list[Figures]
    """The base without any training, for each way that arms ask."""
    differences: list[Versus]
    seeds: list[int]
    samples: int
    r_max: int
    specs: int
    groups: int
    seconds: float
    """Wall time that each training was given, its start included."""
    uneven: float | None
    """How far the training farthest from the median wall time lies from it, as a share; None: fewer than two known."""
    same: dict[str, str]
    """Arms that would have trained the same as another one."""
    left_out: dict[str, str]
    """Arms that were not trained, and why."""
    notes: list[str]
    says: list[str]
    """What may be concluded of each arm, in a sentence."""
    about: dict[str, Any]
    """Model, guard, pairing, and what decides the whole of it, by digest."""


def title(over: str) -> str:
    """Return what an axis compares, in words."""
    said = {
        "views": "views of a trace",
        "policy": "policies that select traces",
        "retry_prompt": "ways of asking a retry",
        "budget": "shares of the traces",
        "method": "methods",
    }
    return said.get(over, over)


def headline(ablation: Ablation) -> str:
    """Return the result in one sentence."""
    told = [each for each in ablation.differences if _verdict(each, ablation.outcome) in ("better", "worse")]
    what = f"{len(ablation.arms)} {title(ablation.over)}"
    if not told:
        return f"{what}: none told apart from {ablation.reference}"
    apart = ", ".join(f"{each.arm} {_verdict(each, ablation.outcome)}" for each in told)
    rest = "" if len(told) == len(ablation.differences) else "; the others not told apart"
    return f"{what}: {apart} than {ablation.reference}{rest}"


def sentence(versus: Versus, reference: str, outcome: str, comparisons: int) -> str:
    """Return what may be concluded of an arm, whichever way it falls."""
    if versus.rate is None:
        return f"{versus.arm} minus {reference}: no pair of chains got two verdicts, so nothing is known"
    told = f"{versus.arm} minus {reference}: {_said(versus.rate, outcome)}"
    if versus.low is None or versus.high is None:
        return f"{told}; one group says nothing about others, so there is no interval"
    told += f", 95 % interval {_plain(versus.low, outcome)} to {_plain(versus.high, outcome)}"
    verdict = _verdict(versus, outcome)
    if verdict in ("better", "worse"):
        return f"{told}: {verdict} ({words.p_value(versus.adjusted_p_value)}{_adjusted(comparisons)})"
    least = versus.minimum_detectable
    shows = "no difference at all" if least is None else f"differences of {_size(least, outcome)} and more"
    if versus.low <= 0 <= versus.high:
        return f"{told}: not told apart; these groups could have shown {shows}"
    p_value = "p unknown" if versus.adjusted_p_value is None else words.p_value(versus.adjusted_p_value)
    return f"{told}: not told apart by the test ({p_value}{_adjusted(comparisons)}); it could have shown {shows}"


def caveats(ablation: Ablation) -> list[str]:
    """Return what speaks against reading too much into it."""
    said = list(ablation.notes)
    said += [
        f"{arm} would have trained the same as {other}, so it was not trained." for arm, other in ablation.same.items()
    ]
    said += [f"{arm} was left out: {why}." for arm, why in ablation.left_out.items()]
    silent = {each.figures.name: each.figures.first_attempt.no_verdict for each in ablation.arms}
    said += [
        f"{count} first attempts of {arm} got no verdict and are in no figure."
        for arm, count in silent.items()
        if count
    ]
    if ablation.uneven is not None and ablation.uneven > UNEVEN:
        said.append(
            f"Wall times were uneven: one lies {100 * ablation.uneven:.0f} % from the median, so the arms did not get "
            "the same time."
        )
    interrupted = sum(wall is None for each in ablation.arms for wall in each.wall_seconds)
    if interrupted:
        said.append(f"{interrupted} trainings were interrupted and continued; their wall time is not known.")
    if ablation.about.get("pairing") != "common random numbers":
        said.append("Pairs share the specification only, not the sampling noise.")
    if len(ablation.seeds) < 2:
        said.append("One training seed only: chance in training is not told from the arms.")
    else:
        said.append(
            f"Intervals and tests are over groups of specifications, with {len(ablation.seeds)} training seeds; how "
            "far another seed may lie is seen from the column by seed only."
        )
    return said


def arm_rows(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return the table of arms, the untrained model last: columns, rows."""
    by_attempts = ablation.r_max > 1
    columns = ["arm", "traces", "steps", "passes", "wall, s", "first attempts that pass", "95 % interval", "by seed"]
    columns += [f"attempts needed (at most {ablation.r_max})", "95 % interval", "solved"] if by_attempts else []
    rows = []
    for arm in ablation.arms:
        name = arm.figures.name + (" (reference)" if arm.figures.name == ablation.reference else "")
        spent = [_span(arm.traces), steps(arm), passes(arm), wall(arm)]
        rows.append([name, *spent, *_figures(arm.figures, by_attempts)])
    for each in ablation.untrained:
        rows.append([each.name, *["0"] * 2, words.DASH, words.DASH, *_figures(each, by_attempts)])
    return columns, rows


def difference_rows(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Return the table of differences to the reference: columns, rows."""
    of = "first attempts, points" if ablation.outcome == "first attempts" else "attempts needed"
    columns = [f"minus {ablation.reference}", of, "95 % interval", "p (Holm)", "could have shown", "so"]
    rows = []
    for each in ablation.differences:
        interval = words.DASH
        if each.low is not None and each.high is not None:
            interval = f"{_plain(each.low, ablation.outcome)} to {_plain(each.high, ablation.outcome)}"
        rate = words.DASH if each.rate is None else _plain(each.rate, ablation.outcome)
        p_value = words.p_value(each.adjusted_p_value).removeprefix("p ").removeprefix("= ")
        least = "nothing" if each.minimum_detectable is None else _size(each.minimum_detectable, ablation.outcome)
        rows.append([each.arm, rate, interval, p_value, least, _verdict(each, ablation.outcome)])
    return columns, rows


def steps(arm: ArmFigures) -> str:
    """Return the steps of an arm, stage by stage."""
    return " + ".join(map(str, arm.steps))


def passes(arm: ArmFigures) -> str:
    """Return the passes of an arm over its rows."""
    low, high = min(arm.passes), max(arm.passes)
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"


def wall(arm: ArmFigures) -> str:
    """Return the wall seconds of an arm's trainings."""
    known = [each for each in arm.wall_seconds if each is not None]
    if not known:
        return words.DASH
    low, high = min(known), max(known)
    return f"{low:.0f}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f}"


def _figures(figures: Figures, by_attempts: bool) -> list[str]:
    first = figures.first_attempt
    by_seed = ", ".join(map(words.percent, figures.by_seed)) if len(figures.by_seed) > 1 else words.DASH
    cells = [words.percent(first.rate), words.interval(first.low, first.high), by_seed]
    if by_attempts:
        low, high = figures.expected_attempts_low, figures.expected_attempts_high
        cells += [words.number(figures.expected_attempts), words.interval(low, high, scale=1, digits=2)]
        cells.append(words.percent(figures.solved_within_r_max))
    return cells


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _verdict(versus: Versus, outcome: str) -> str:
    """Return better, worse or not told apart; both the interval and the adjusted test must say so."""
    if versus.low is None or versus.high is None or versus.adjusted_p_value is None:
        return "not told apart"
    if versus.low <= 0 <= versus.high or versus.adjusted_p_value >= ALPHA:
        return "not told apart"
    more = versus.low > 0
    return "better" if more == (outcome == "first attempts") else "worse"


def _plain(value: float, outcome: str) -> str:
    return f"{100 * value:+.1f}" if outcome == "first attempts" else f"{value:+.2f}"


def _said(value: float, outcome: str) -> str:
    unit = "points of first attempts that pass" if outcome == "first attempts" else "attempts until accepted"
    return f"{_plain(value, outcome)} {unit}"


def _size(value: float, outcome: str) -> str:
    return f"{100 * value:.1f} points" if outcome == "first attempts" else f"{value:.2f} attempts"


def _adjusted(comparisons: int) -> str:
    return "" if comparisons == 1 else f", adjusted for {comparisons} comparisons"
