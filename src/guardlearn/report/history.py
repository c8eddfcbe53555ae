"""Rounds of learning as one page: how often first attempts passed before and after each, and what was decided.

Every round's candidate is compared with what was live then; the interval belongs to that comparison. Forgetting is
shown against the bare base, so that small losses that add up over rounds are seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import msgspec

from guardlearn.report import words
from guardlearn.report.frame import Figure, Section, document, figures_of, unbroken
from guardlearn.report.round_words import nats
from guardlearn.report.svg import COLOURS, Word, inline
from guardlearn.report.tables import table
from guardlearn.report.texts import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RoundRow", "history_page", "rounds_figures"]

_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)


class RoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the page says of a round; None where it was not measured."""

    round: int
    decision: str
    """promoted, refused, or the step that an unfinished round has reached."""
    reason: str
    new_traces: int
    rows: int
    adapter: str
    """Digest of its weights; "" where there are none."""
    look: int
    incumbent: tuple[float, float | None, float | None] | None = None
    """Share of first attempts that passed with what was live, and its interval."""
    candidate: tuple[float, float | None, float | None] | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    detectable: float | None = None
    """The smallest true gain that the measurement would have found."""
    loss_rise: float | None = None
    """Nats a token on general texts, against the bare base."""
    divergence: float | None = None
    """KL(base || candidate), nats a token, on kept prompts."""
    others: dict[str, float | None] = {}
    """By action pair that was not trained: candidate minus incumbent."""


def history_page(learner: str, rows: Sequence[RoundRow], advice: str = "") -> str:
    """Return the page of a learner's rounds, the first one first."""
    promoted = sum(row.decision == "promoted" for row in rows)
    title = f"{learner}: {len(rows)} rounds, {promoted} promoted"
    missing: set[str] = set()
    figures = figures_of(rounds_figures(rows), missing)
    decisions = table(
        ["round", "decision", "why"],
        [[str(row.round), row.decision, row.reason] for row in rows],
        numbers=False,
        caption="Decisions",
    )
    learned = table(
        ["round", "new traces", "rows", "gain, points", "95 % interval", "detectable", "look", "adapter"],
        [_numbers(row) for row in rows],
        caption="What was learned from, and measured",
    )
    sections = [
        f"<h1>{unbroken(title)}</h1>",
        f"<p>{visible(advice)}</p>" if advice else "",
        *(f'<p class="soft">{escape(note)}</p>' for note in sorted(missing)),
        figures,
        Section("decisions", "Decisions", decisions).html(),
        Section("measured", "What was learned from, and measured", learned).html(),
        Section("other-action-pairs", "Action pairs that were not trained", _other_pairs(rows)).html(),
    ]
    return document(title, [section for section in sections if section])


def rounds_figures(rows: Sequence[RoundRow]) -> list[Figure]:
    """Return what is drawn of rounds: rates by round, and what was forgotten; what was not measured is left out."""
    measured = [row for row in rows if row.candidate]
    figures = [_rates(measured)] if measured else []
    forgot = [row for row in rows if row.loss_rise is not None or row.divergence is not None]
    return figures + ([_forgetting(forgot)] if forgot else [])


def _numbers(row: RoundRow) -> list[str]:
    return [
        str(row.round),
        str(row.new_traces),
        str(row.rows),
        words.points(row.gain),
        words.interval(row.gain_low, row.gain_high),
        words.points(row.detectable),
        str(row.look),
        row.adapter[:12] or words.DASH,
    ]


def _rates(rows: Sequence[RoundRow]) -> Figure:
    numbers = table(
        ["round", "live then", "95 % interval", "candidate", "95 % interval", "decision"],
        [[str(row.round), *_said(row.incumbent), *_said(row.candidate), row.decision] for row in rows],
        caption="First attempts that pass, by round",
    )
    return Figure(
        "First attempts that pass, by round",
        [("base", "○ what was live"), ("candidate", "● the round's candidate; ✕ refused")],
        lambda: _rates_figure(rows),
        "The numbers",
        numbers,
    )


def _said(rate: tuple[float, float | None, float | None] | None) -> list[str]:
    if rate is None:
        return [words.DASH, words.DASH]
    return [words.percent(rate[0]), words.interval(rate[1], rate[2])]


def _rates_figure(rows: Sequence[RoundRow]) -> str:
    spoken = "First attempts that pass, by round. " + "; ".join(
        f"round {row.round}: live {_said(row.incumbent)[0]}, candidate {_said(row.candidate)[0]}, {row.decision}"
        for row in rows
    )

    def paint(axes: Axes, word: Word) -> None:
        _round_axis(axes, word, rows)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks(_QUARTERS, labels=[word(words.percent(share)) for share in _QUARTERS])
        axes.grid(visible=True, axis="y")
        for row in rows:
            for rate, name, shift in ((row.incumbent, "base", -0.09), (row.candidate, "candidate", 0.09)):
                if rate is not None:
                    refused = name == "candidate" and row.decision != "promoted"
                    _dot(axes, row.round + shift, rate, name, refused=refused)

    return inline((400.0, 240.0), (48, 12, 22, 42), paint, spoken + ".")


def _dot(axes: Axes, at: float, rate: tuple[float, float | None, float | None], name: str, *, refused: bool) -> None:
    """Draw a rate with its interval: open for what was live, full for a candidate, a cross for a refused one."""
    value, low, high = rate
    if low is not None and high is not None:
        axes.plot([at, at], [low, high], color=COLOURS[name], linewidth=2.2, alpha=0.55)
    face = COLOURS["paper"] if name == "base" else COLOURS[name]
    marker = "X" if refused else "o"
    axes.plot([at], [value], marker, markersize=8, color=COLOURS[name], markerfacecolor=face, markeredgewidth=1.4)


def _forgetting(rows: Sequence[RoundRow]) -> Figure:
    numbers = table(
        ["round", "general loss, nats a token", "KL on kept prompts, nats a token", "decision"],
        [[str(row.round), nats(row.loss_rise), nats(row.divergence), row.decision] for row in rows],
        caption="What the candidate forgot, by round",
    )
    return Figure(
        "What the candidate forgot, against the bare base",
        [("base", "○ rise of the loss on general texts"), ("candidate", "● KL(base ‖ candidate) on kept prompts")],
        lambda: _forgetting_figure(rows),
        "The numbers",
        numbers,
    )


def _forgetting_figure(rows: Sequence[RoundRow]) -> str:
    spoken = "Forgetting by round. " + "; ".join(
        f"round {row.round}: loss {nats(row.loss_rise)}, KL {nats(row.divergence)}" for row in rows
    )
    values = [value for row in rows for value in (row.loss_rise, row.divergence) if value is not None]
    top, bottom = max([*values, 0.01]) * 1.15, min([*values, 0.0]) * 1.15

    def paint(axes: Axes, word: Word) -> None:
        _round_axis(axes, word, rows)
        axes.set_ylim(bottom, top)
        ticks = sorted({bottom, 0.0, top / 2, top})
        axes.set_yticks(ticks, labels=[word(f"{tick:.2g}") for tick in ticks])
        axes.grid(visible=True, axis="y")
        for row in rows:
            for value, name, shift in ((row.loss_rise, "base", -0.09), (row.divergence, "candidate", 0.09)):
                if value is not None:
                    _dot(axes, row.round + shift, (value, None, None), name, refused=False)

    return inline((400.0, 240.0), (56, 12, 22, 42), paint, spoken + ".")


def _round_axis(axes: Axes, word: Word, rows: Sequence[RoundRow]) -> None:
    numbers = [row.round for row in rows]
    axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    shown = numbers[:: max(1, len(numbers) // 12)]
    axes.set_xticks(shown, labels=[word(str(number)) for number in shown])
    axes.set_xlabel(word("round"), labelpad=6)


def _other_pairs(rows: Sequence[RoundRow]) -> str:
    names = sorted({name for row in rows for name in row.others})
    if not names:
        return ""
    cells = [[str(row.round), *(words.points(row.others.get(name)) for name in names)] for row in rows]
    return table(["round", *names], cells, caption="Action pairs that were not trained, gain in points")
