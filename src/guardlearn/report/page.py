"""Evidence, how the adapter was made and what a round said of it, as one HTML file: no script, no network, all escaped.

A section without data is left out. The page is for a screen, a phone, paper, the keyboard and a screen reader: one
`<h1>`, headings in order, figures with their numbers in words and as tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from guardlearn.evidence import Evidence
from guardlearn.report import learning, making, outcomes, words
from guardlearn.report.frame import Section, contents, document, unbroken
from guardlearn.report.round_stories import RoundStory
from guardlearn.report.stories import Story
from guardlearn.report.texts import visible

__all__ = ["html"]


def html(
    evidence: Evidence,
    *,
    story: Story | None = None,
    limits: Sequence[str] = (),
    round_story: RoundStory | None = None,
) -> str:
    """Return the report as one HTML document; without matplotlib, its tables and a line that says how to get figures.

    Args:
        evidence: what was measured.
        story: how the adapter was made; None: not known.
        limits: what the figures do not show, in sentences.
        round_story: what the round of learning measured besides, and decided; None: no round, or not known.
    """
    missing: set[str] = set()
    sections = [
        Section("first-attempts", "First attempts", outcomes.first_attempts(evidence, missing)),
        Section("before-and-after", "Before and after", outcomes.before_and_after(evidence)),
        Section("action-pairs", "By action pair", outcomes.action_pairs(evidence)),
        Section("limits", "What this does not show", outcomes.limits(evidence, limits)),
        Section("training", "Loss and throughput", making.training(story, evidence, missing)),
        *(_round(round_story, missing) if round_story else []),
        *(_made(story) if story else []),
        Section("specifications", "Every specification", outcomes.specifications(evidence)),
        Section("measured-with", "Measured with", outcomes.measured_with(evidence)),
    ]
    title = words.headline(evidence)
    opening = [
        f"<h1>{unbroken(title)}</h1>",
        f"<p>{unbroken(words.attempts(evidence))}.</p>",
        f'<p class="soft">{visible(words.subject(evidence))}</p>',
        _tiles(evidence),
        *(f'<p class="soft">{escape(note)}</p>' for note in sorted(missing)),
        contents(sections),
    ]
    return document(title, [part for part in (*opening, *(section.html() for section in sections)) if part])


def _round(told: RoundStory, missing: set[str]) -> list[Section]:
    return [
        Section("forgetting", "Forgetting", learning.forgetting(told)),
        Section("other-action-pairs", "Action pairs that were not trained", learning.others(told)),
        Section("decision", "The decision", learning.decision(told)),
        Section("rounds", "Rounds", learning.rounds(told, missing)),
    ]


def _made(story: Story) -> list[Section]:
    return [
        Section("dropped", "What was dropped, and why", making.drops(story)),
        Section("chains", making.traces_title(story), making.traces(story)),
        Section("manifest", "Manifest", making.manifest(story)),
    ]


def _tiles(evidence: Evidence) -> str:
    """Return the three figures that matter, before and after."""
    models = [side for side in (evidence.base, evidence.candidate) if side is not None]
    last, change = models[-1], evidence.difference
    firsts = last.first_attempt if change is None else change
    gain = "" if change is None else f"{words.points(change.rate)}, "
    attempts = words.interval(last.expected_attempts_low, last.expected_attempts_high, scale=1, digits=2)
    whose = "candidate, " if change is not None else ""
    tiles = [
        (
            "first attempts that pass",
            [words.percent(side.first_attempt.rate) for side in models],
            f"{gain}{_interval(words.interval(firsts.low, firsts.high))}",
        ),
        (
            f"attempts needed, at most {evidence.r_max}",
            [words.number(side.expected_attempts) for side in models],
            f"{whose}{_interval(attempts)}",
        ),
        (
            f"solved within {evidence.r_max} attempts",
            [words.percent(side.solved_within_r_max) for side in models],
            f"mean of {words.groups(evidence)}",
        ),
    ]
    return f'<dl class="tiles">{"".join(_tile(*tile, words.sides(evidence)) for tile in tiles)}</dl>'


def _tile(name: str, values: Sequence[str], note: str, sides: Sequence[str]) -> str:
    turn = ' <span aria-hidden="true">→</span> '.join(
        f'<span class="{side}"><span class="heard">{side} </span>{unbroken(value)}</span>'
        for side, value in zip(sides, values, strict=True)
    )
    return (
        f'<div class="tile"><dt>{escape(name)}</dt><dd class="turn">{turn}</dd>'
        f'<dd class="soft">{escape(note)}</dd></div>'
    )


def _interval(said: str) -> str:
    return said if said.startswith("no") else f"95 % interval {said}"
