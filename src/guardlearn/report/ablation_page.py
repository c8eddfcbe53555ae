"""An ablation as one HTML page and as Markdown: every arm with its interval, every difference with what it can mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from guardlearn.printing import printable
from guardlearn.report import ablation as told
from guardlearn.report import words
from guardlearn.report.ablation import Ablation, Figures
from guardlearn.report.frame import Figure, Section, document, figures_of, unbroken
from guardlearn.report.markup import grid, plain
from guardlearn.report.svg import COLOURS, Word, inline
from guardlearn.report.tables import table
from guardlearn.report.texts import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ablation_page", "markdown"]

_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_WIDTH, _ROW = 400.0, 26.0
_MARGINS = (138.0, 24.0, 22.0, 40.0)
_LABEL = 17  # letters of an arm's name


def ablation_page(ablation: Ablation) -> str:
    """Return the page; without matplotlib, its tables and a line that says how to get figures."""
    heading, missing = told.headline(ablation), set[str]()
    figures = figures_of(_figures(ablation), missing)
    apart = f"Each arm minus {ablation.reference}"
    concluded = _listed(ablation.says) + table(*told.difference_rows(ablation), caption=apart)
    sections = [
        f"<h1>{unbroken(heading)}</h1>",
        f'<p class="soft">{unbroken(_subject(ablation))}</p>',
        *(f'<p class="soft">{escape(note)}</p>' for note in sorted(missing)),
        figures,
        Section("differences", "What may be concluded", concluded).html(),
        Section("arms", "Arms", table(*told.arm_rows(ablation), caption="Arms")).html(),
        Section("limits", "What limits it", _listed(told.caveats(ablation))).html(),
    ]
    return document(heading, [section for section in sections if section])


def markdown(ablation: Ablation) -> str:
    """Return the same as Markdown: the conclusions, then tables and limits."""
    parts = [
        f"**{plain(told.headline(ablation))}**",
        plain(_subject(ablation)),
        "\n".join(f"- {plain(said)}" for said in ablation.says),
        _grid(*told.difference_rows(ablation)),
        _grid(*told.arm_rows(ablation)),
        "\n".join(f"- {plain(said)}" for said in told.caveats(ablation)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _subject(ablation: Ablation) -> str:
    about, seeds = ablation.about, len(ablation.seeds)
    chains = f"{ablation.samples} sample(s) each, at most {ablation.r_max} attempt(s)"
    return (
        f"{told.title(ablation.over).capitalize()}, at equal wall time ({ablation.seconds:.0f} s a training), on "
        f"{ablation.specs} specifications in {ablation.groups} groups of the validation side; {seeds} training "
        f"seed(s), {chains}; model {about.get('model', '')}, guard {about.get('guard', '')}. Held-out was not read."
    )


def _listed(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{unbroken(said)}</li>' for said in sentences)}</ul>" if sentences else ""


def _figures(ablation: Ablation) -> list[Figure]:
    """Return how each arm did, and how far it is from the reference."""
    by_attempts = ablation.outcome != "first attempts"
    own = "Attempts until accepted, by arm" if by_attempts else "First attempts that pass, by arm"
    keys = [("base", "○ untrained"), ("candidate", "● trained")]
    arms = Figure(own, keys, lambda: _arms_figure(ablation), "The numbers", _arms_table(ablation, own))
    name = f"Each arm minus {label(ablation.reference, _LABEL)}"
    apart = Figure(
        name,
        [("candidate", "● told apart; ○ not told apart")],
        lambda: _differences_figure(ablation),
        "The numbers",
        table(*told.difference_rows(ablation), caption=name),
    )
    curve = [_budget(ablation)] if _shares(ablation) else []
    return [*curve, arms, apart]


def _arms_figure(ablation: Ablation) -> str:
    by_attempts = ablation.outcome != "first attempts"
    rows = [(arm.figures, True) for arm in ablation.arms] + [(each, False) for each in ablation.untrained]
    values = [(each.name, *_interval(each, by_attempts), trained) for each, trained in rows]

    def paint(axes: Axes, word: Word) -> None:
        if by_attempts:
            axes.set_xlim(0.97, ablation.r_max + 0.03)
            ticks = [1 + (ablation.r_max - 1) * quarter for quarter in _QUARTERS]
            axes.set_xticks(ticks, labels=[word(f"{tick:.3g}") for tick in ticks])
        else:
            axes.set_xlim(-0.02, 1.02)
            axes.set_xticks(_QUARTERS, labels=[word(words.percent(quarter)) for quarter in _QUARTERS])
        _rows(axes, word, [name for name, *_ in values])
        for place, (_, rate, low, high, trained) in enumerate(values):
            _dot(axes, place, rate, low, high, "candidate" if trained else "base", full=trained)

    height = _MARGINS[2] + _MARGINS[3] + _ROW * len(values)
    return inline((_WIDTH, height), _MARGINS, paint, _spoken(ablation))


def _differences_figure(ablation: Ablation) -> str:
    by_attempts = ablation.outcome != "first attempts"
    scale, unit = (1.0, "attempts") if by_attempts else (100.0, "points")
    _, rows = told.difference_rows(ablation)
    ends = [abs(end) * scale for each in ablation.differences for end in (each.rate, each.low, each.high) if end]
    reach = max([*ends, 0.1 if by_attempts else 5.0]) * 1.08

    def paint(axes: Axes, word: Word) -> None:
        axes.set_xlim(-reach, reach)
        ticks = _signed_ticks(reach)
        axes.set_xticks(ticks, labels=[word(f"{tick:+g}" if tick else "0") for tick in ticks])
        axes.set_xlabel(word(unit), labelpad=4)
        _rows(axes, word, [each.arm for each in ablation.differences])
        axes.axvline(0.0, color=COLOURS["ink"], linewidth=1.2)
        for place, (each, row) in enumerate(zip(ablation.differences, rows, strict=True)):
            low, high = (None if end is None else end * scale for end in (each.low, each.high))
            rate = None if each.rate is None else each.rate * scale
            _dot(axes, place, rate, low, high, "candidate", full=row[-1] in ("better", "worse"))

    left, top, right, bottom = _MARGINS
    height = top + bottom + 14 + _ROW * len(rows)
    spoken = f"Each arm minus {ablation.reference}, {unit}. " + "; ".join(
        f"{row[0]}: {row[1]} ({row[2]}), {row[-1]}" for row in rows
    )
    return inline((_WIDTH, height), (left, top, right, bottom + 14), paint, printable(f"{spoken}."))


def _budget(ablation: Ablation) -> Figure:
    own, keys = "First attempts that pass, by traces", [("base", "○ untrained"), ("candidate", "● trained")]
    return Figure(own, keys, lambda: _curve_figure(ablation), "The numbers", _arms_table(ablation, own))


def _arms_table(ablation: Ablation, caption: str) -> str:
    return table(*told.arm_rows(ablation), caption=caption)


def _curve_figure(ablation: Ablation) -> str:
    """Return the learning curve: the mean number of traces of each arm, the untrained model at none."""
    points = sorted((sum(arm.traces) / len(arm.traces), arm.figures) for arm in _by_traces(ablation))
    largest = points[-1][0]

    def paint(axes: Axes, word: Word) -> None:
        axes.set_xlim(-0.04 * largest, 1.04 * largest)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks(_QUARTERS, labels=[word(words.percent(quarter)) for quarter in _QUARTERS])
        axes.grid(visible=True, axis="y")
        ticks = [0.0, *(at for at, _ in points)]
        axes.set_xticks(ticks, labels=[word(f"{tick:.0f}") for tick in ticks])
        axes.set_xlabel(word("traces"), labelpad=6)
        for each in ablation.untrained:
            _dot(axes, 0.0, *_interval(each, False), "base", full=False, upright=True)
        known = [(at, each.first_attempt.rate) for at, each in points if each.first_attempt.rate is not None]
        axes.plot(*zip(*known, strict=True), color=COLOURS["candidate"], linewidth=1.8)
        for at, each in points:
            _dot(axes, at, *_interval(each, False), "candidate", full=True, upright=True)

    return inline((_WIDTH, 240.0), (48, 12, 22, 42), paint, _spoken(ablation))


def _by_traces(ablation: Ablation) -> list[told.ArmFigures]:
    return sorted(ablation.arms, key=lambda arm: sum(arm.traces))


def _shares(ablation: Ablation) -> bool:
    judged = [arm for arm in ablation.arms if arm.figures.first_attempt.rate is not None]
    return ablation.over == "budget" and len(judged) > 1


def _interval(figures: Figures, by_attempts: bool) -> tuple[float | None, float | None, float | None]:
    if by_attempts:
        return figures.expected_attempts, figures.expected_attempts_low, figures.expected_attempts_high
    first = figures.first_attempt
    return first.rate, first.low, first.high


def _rows(axes: Axes, word: Word, names: Sequence[str]) -> None:
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), labels=[word(label(name, _LABEL)) for name in names])
    axes.grid(visible=True, axis="x")


def _dot(
    axes: Axes,
    place: float,
    rate: float | None,
    low: float | None,
    high: float | None,
    colour: str,
    *,
    full: bool,
    upright: bool = False,
) -> None:
    """Draw a value with its interval, along the axis of values."""

    def along(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
        places = [place] * len(values)
        return (places, values) if upright else (values, places)

    if low is not None and high is not None:
        axes.plot(*along([low, high]), color=COLOURS[colour], linewidth=2.2, alpha=0.55)
    if rate is not None:
        face = COLOURS[colour] if full else COLOURS["paper"]
        at = along([rate])
        axes.plot(*at, "o", markersize=7, color=COLOURS[colour], markerfacecolor=face, markeredgewidth=1.6)


def _signed_ticks(reach: float) -> list[float]:
    """Return round values between -reach and reach, 0 among them."""
    power = 10.0 ** math.floor(math.log10(reach))
    step = next(power * factor for factor in (0.2, 0.5, 1, 2, 5) if reach / (power * factor) <= 3.5)
    count = int(reach / step)
    return [round(step * number, 10) for number in range(-count, count + 1)]


def _spoken(ablation: Ablation) -> str:
    by_attempts = ablation.outcome != "first attempts"
    said = []
    for each in [*(arm.figures for arm in ablation.arms), *ablation.untrained]:
        rate, low, high = _interval(each, by_attempts)
        value = words.number(rate) if by_attempts else words.percent(rate)
        scale, digits = (1, 2) if by_attempts else (100, 0)
        said.append(f"{each.name}: {value} ({words.interval(low, high, scale=scale, digits=digits)})")
    what = "Attempts until accepted" if by_attempts else "First attempts that pass"
    return printable(f"{what}, with 95 % intervals by group. {'; '.join(said)}.")


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return grid([plain(name) for name in columns], [[plain(cell) for cell in row] for row in rows])
