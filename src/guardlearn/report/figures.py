"""The report's three figures: before and after by group, attempts until accepted, training loss.

Each says its numbers in words too. Sizes are in units of the viewBox, 72 to the inch for matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guardlearn.evidence import Evidence, Rate
from guardlearn.printing import printable
from guardlearn.report import words
from guardlearn.report.svg import COLOURS, Word, inline
from guardlearn.report.texts import label
from guardlearn.report.words import GroupRow, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from guardlearn.report.stories import Story

__all__ = ["GROUPS_SHOWN", "attempts_figure", "groups_figure", "loss_figure", "shown_groups"]

GROUPS_SHOWN = 60
"""Most groups drawn: a half from either end of the order; the table beside the figure holds all of them."""

_WIDTH = 400.0
_ROW = 16.0  # height of a group's line
_LABEL = 17  # letters of a group's name
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LINE_APART = 15.0  # least distance of two labels
_BASE_DASH = (0, (4, 3))


def shown_groups(rows: Sequence[GroupRow]) -> tuple[list[GroupRow], list[GroupRow]]:
    """Return the groups that are drawn: all of them, or the two ends of the order."""
    if len(rows) <= GROUPS_SHOWN:
        return list(rows), []
    return list(rows[: GROUPS_SHOWN // 2]), list(rows[-(GROUPS_SHOWN // 2) :])


def groups_figure(evidence: Evidence) -> str:
    """Return the share of first attempts that pass, a line a group, base and candidate joined; the mean on top."""
    rows = words.by_group(evidence)
    first, last = shown_groups(rows)
    drawn: list[GroupRow | None] = [*first, *([None, *last] if last else [])]
    height = 82 + _ROW * (len(drawn) + 1)
    spoken = "First attempts that pass, by group. " + "; ".join(_group_words(row) for row in [*first, *last]) + "."

    def paint(axes: Axes, word: Word) -> None:
        _percent_axis(axes, word)
        axes.set_ylim(len(drawn) + 0.9, -1.4)
        names = ["mean of groups", *(label(row.name, _LABEL) if row else "⋮" for row in drawn)]
        places = [-0.5, *(float(place) for place in range(1, len(names)))]
        axes.set_yticks(places, labels=[word(name) for name in names])
        axes.get_yticklabels()[0].set(fontweight="bold", color=COLOURS["ink"])
        axes.axhline(0.25, color=COLOURS["line"], linewidth=1)
        _mean(axes, places[0], evidence)
        for place, row in zip(places[1:], drawn, strict=True):
            if row is not None:
                _pair_of_dots(axes, place, row.base.share, row.candidate.share if row.candidate else None)

    return inline((_WIDTH, height), (138, 24, 22, 24), paint, spoken)


def attempts_figure(evidence: Evidence) -> str:
    """Return the share of specifications solved within 1 .. R_max attempts, base and candidate."""
    curves = [(name, curve) for name, curve in words.curves(evidence) if curve]
    told = "; ".join(f"{name}: {', '.join(percent(share) for share in curve)}" for name, curve in curves)
    spoken = f"Share solved within 1 to {evidence.r_max} attempts. {told}."
    height, top, bottom = 240.0, 12.0, 42.0

    def paint(axes: Axes, word: Word) -> None:
        axes.set_xlim(0.7, evidence.r_max + 0.3)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks(_QUARTERS, labels=[word(percent(share)) for share in _QUARTERS])
        axes.grid(visible=True, axis="y")
        attempts = range(1, evidence.r_max + 1, max(1, evidence.r_max // 12))
        axes.set_xticks(attempts, labels=[word(str(attempt)) for attempt in attempts])
        axes.set_xlabel(word("attempts allowed"), labelpad=6)
        apart = _LINE_APART / (height - top - bottom) * 1.06
        heights = _apart([curve[-1] for _, curve in curves], apart)
        for (name, curve), at in zip(curves, heights, strict=True):
            _curve(axes, range(1, len(curve) + 1), curve, name)
            text = word(f"{name} {percent(curve[-1])}")
            end = evidence.r_max + 0.3
            axes.text(end, at, text, color=COLOURS[name], fontweight="bold", verticalalignment="center")

    return inline((_WIDTH, height), (48, top, 122, bottom), paint, spoken)


def loss_figure(story: Story) -> str:
    """Return the training loss by step, with the validation loss of the base and of the trained model as marks."""
    finite = [(step, loss) for step, loss in story.losses if math.isfinite(loss)]
    marks, looks = _validation_marks(story), [one for one in story.looks if math.isfinite(one[1])]
    last = max(step for step, _ in story.losses)
    ceiling = max([1e-3, *(loss for _, loss in [*finite, *looks]), *(loss for _, loss, _ in marks)]) * 1.12

    def paint(axes: Axes, word: Word) -> None:
        axes.set_xlim(-0.03 * last, last * 1.03)
        axes.set_ylim(0, ceiling)
        ticks = _round_steps(ceiling, 4)
        axes.set_yticks(ticks, labels=[word(f"{tick:g}") for tick in ticks])
        axes.grid(visible=True, axis="y")
        steps = [int(tick) for tick in _round_steps(last, 6) if tick == int(tick)]
        axes.set_xticks(steps, labels=[word(str(step)) for step in steps])
        axes.set_xlabel(word("optimiser step"), labelpad=6)
        marker = "o" if len(finite) == 1 else ""
        axes.plot(*zip(*finite, strict=True), color=COLOURS["candidate"], linewidth=1.8, marker=marker, markersize=5)
        if looks:
            axes.plot(*zip(*looks, strict=True), ":D", color=COLOURS["candidate"], linewidth=1.2, markersize=3.5)
        for step, loss, name in marks:
            _mark(axes, step, loss, name)

    return inline((_WIDTH, 240), (48, 12, 22, 42), paint, _loss_words(story))


def _percent_axis(axes: Axes, word: Word) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks(_QUARTERS, labels=[word(percent(share)) for share in _QUARTERS])
    axes.tick_params(axis="x", labeltop=True, labelbottom=True)
    axes.grid(visible=True, axis="x")


def _mean(axes: Axes, place: float, evidence: Evidence) -> None:
    """Draw the mean of group means with its interval: the candidate above the base."""
    sides: list[tuple[str, Rate]] = [("base", evidence.base.first_attempt)]
    if evidence.candidate is not None:
        sides.append(("candidate", evidence.candidate.first_attempt))
    for (name, rate), shift in zip(sides, (0.22, -0.22) if len(sides) > 1 else (0.0,), strict=True):
        if rate.rate is None:
            continue
        if rate.low is not None and rate.high is not None:
            axes.plot([rate.low, rate.high], [place + shift] * 2, color=COLOURS[name], linewidth=2.2, alpha=0.55)
        face = COLOURS["paper"] if name == "base" else COLOURS[name]
        axes.plot([rate.rate], [place + shift], "o", markersize=7, color=COLOURS[name], markerfacecolor=face)


def _pair_of_dots(axes: Axes, place: float, before: float | None, after: float | None) -> None:
    """Draw an open dot for the base, a full one for the candidate, joined in the colour of the better one.

    Where they meet, one lies within the other.
    """
    if before is not None and after is not None and before != after:
        better = COLOURS["candidate" if after > before else "base"]
        axes.plot([before, after], [place, place], color=better, linewidth=1.4, alpha=0.5)
    if before is not None:
        face = COLOURS["paper"]
        axes.plot(
            [before], [place], "o", markersize=7, color=COLOURS["base"], markerfacecolor=face, markeredgewidth=1.6
        )
    if after is not None:
        axes.plot([after], [place], "o", markersize=5 if before != after else 3.4, color=COLOURS["candidate"])


def _curve(axes: Axes, attempts: Sequence[int], curve: Sequence[float], name: str) -> None:
    base = name == "base"
    axes.plot(
        attempts,
        curve,
        color=COLOURS[name],
        linewidth=2.2,
        linestyle=_BASE_DASH if base else "solid",
        marker="o",
        markersize=6,
        markerfacecolor=COLOURS["paper"] if base else COLOURS[name],
        markeredgewidth=1.6,
    )


def _mark(axes: Axes, step: int, loss: float, name: str) -> None:
    """Draw a validation loss as a diamond: open before, full after."""
    face = COLOURS["paper"] if name == "base" else COLOURS[name]
    axes.plot([step], [loss], "D", markersize=7, color=COLOURS[name], markerfacecolor=face, markeredgewidth=1.6)


def _validation_marks(story: Story) -> list[tuple[int, float, str]]:
    last = max(step for step, _ in story.losses)
    found = story.validation_loss
    placed = [(0, found.get("base"), "base"), (last, found.get("trained"), "candidate")]
    return [(step, loss, name) for step, loss, name in placed if loss is not None and math.isfinite(loss)]


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """Return the heights of at most two labels, at least `least` apart."""
    if len(heights) < 2 or abs(heights[0] - heights[1]) >= least:
        return list(heights)
    middle, upper = sum(heights) / 2, int(heights[1] >= heights[0])
    return [middle + (least / 2 if index == upper else -least / 2) for index in range(2)]


def _round_steps(end: float, most: int) -> list[float]:
    """Return 0 and round multiples up to `end`, about `most` of them."""
    rough = end / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [round(step * number, 10) for number in range(int(end / step * 1.0001) + 1)]


def _group_words(row: GroupRow) -> str:
    said = f"{printable(row.name)}: base {row.base}"
    return said if row.candidate is None else f"{said}, candidate {row.candidate}"


def _loss_words(story: Story) -> str:
    (first, start), (last, end) = story.losses[0], story.losses[-1]
    said = [f"Training loss by step: {start:.3g} at step {first}, {end:.3g} at step {last}"]
    said += [f"validation loss, {name}: {loss:.3g}" for name, loss in story.validation_loss.items()]
    return "; ".join(said) + "."
