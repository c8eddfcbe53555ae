"""Evidence, and how the adapter was made, as one HTML file: no script, no network, everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from guardlearn.evidence import Evidence, Outcome
from guardlearn.report import figures, making, words
from guardlearn.report.frame import Figure, document, unbroken
from guardlearn.report.stories import Story
from guardlearn.report.tables import flat, named, table
from guardlearn.report.texts import folded

__all__ = ["html"]


def html(evidence: Evidence, *, story: Story | None = None, limits: Sequence[str] = ()) -> str:
    """Return the report as one HTML document; without matplotlib, its tables and a line that says how to get figures.

    Args:
        evidence: what was measured.
        story: how the adapter was made; None: not known.
        limits: what the figures do not show, in sentences.
    """
    sections = [
        f"<h1>{unbroken(words.headline(evidence))}</h1>",
        f"<p>{unbroken(words.attempts(evidence))}.</p>",
        _subject(evidence),
        _tiles(evidence),
        *_figures(evidence, story),
        *_before_and_after(evidence),
        *_limits(evidence, limits),
        *(making.drops(story) + making.traces(story) + making.manifest(story) if story else []),
        *_measured_with(evidence),
    ]
    return document(words.headline(evidence), sections)


def _subject(evidence: Evidence) -> str:
    what = f"model {evidence.model}" + (f", adapter {evidence.adapter}" if evidence.adapter else ", no adapter")
    size = f"{evidence.specs} specifications in {_groups_said(evidence)}, {evidence.samples_per_spec} sample(s) each"
    return f'<p class="soft">{escape(f"{what}; {size}; guard {evidence.guard}")}</p>'


def _groups_said(evidence: Evidence) -> str:
    return f"{evidence.groups} groups" if evidence.groups != 1 else "1 group"


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
            f"mean of {_groups_said(evidence)}",
        ),
    ]
    return f'<div class="tiles">{"".join(_tile(*tile, words.sides(evidence)) for tile in tiles)}</div>'


def _tile(name: str, values: Sequence[str], note: str, sides: Sequence[str]) -> str:
    turn = " → ".join(
        f'<span class="{side}">{unbroken(value)}</span>' for side, value in zip(sides, values, strict=True)
    )
    return f'<div class="tile">{escape(name)}<div class="turn">{turn}</div><div class="soft">{escape(note)}</div></div>'


def _interval(said: str) -> str:
    return said if said.startswith("no") else f"95 % interval {said}"


def _figures(evidence: Evidence, story: Story | None) -> list[str]:
    """Return the figures, each with its numbers under it as a table, and the causes of failure."""
    columns, curves = words.sides(evidence), words.curves(evidence)
    sides = list(zip(columns, "○●", strict=False))
    keys = [(side, f"{mark} {side}") for side, mark in sides]
    by_attempt = [
        [str(attempt + 1), *(words.percent(curve[attempt]) if curve else words.DASH for _, curve in curves)]
        for attempt in range(evidence.r_max)
    ]
    groups = Figure(
        "First attempts that pass, by group",
        keys,
        lambda: figures.groups_figure(evidence),
        f"Every group ({evidence.groups})",
        _groups(evidence),
        _groups_left_out(evidence),
    )
    attempts = Figure(
        "Share solved, by attempts until accepted",
        keys,
        lambda: figures.attempts_figure(evidence),
        "The numbers",
        table(["attempts", *columns], by_attempt),
    )
    drawn = [figure.html() for figure in (groups, attempts, *(_loss(story) if story and story.losses else []))]
    missing = sorted({note for _, note in drawn if note})
    causes = f"<figure><figcaption>Why first attempts fail</figcaption>{_causes(evidence)}</figure>"
    return [
        *(f'<p class="soft">{escape(note)}</p>' for note in missing),
        f'<div class="figures">{"".join(shown for shown, _ in drawn)}{causes}</div>',
    ]


def _groups_left_out(evidence: Evidence) -> str:
    most = figures.GROUPS_SHOWN
    if evidence.groups <= most:
        return ""
    return f"Of {evidence.groups} groups, the {most // 2} that gained most and the {most // 2} that gained least."


def _loss(story: Story) -> list[Figure]:
    validation = story.validation_loss
    marks = {"base": ("base", "◇ validation, base"), "trained": ("candidate", "◆ validation, trained")}
    keys = [(style, f"{said} {validation[name]:.3g}") for name, (style, said) in marks.items() if name in validation]
    rows = [[f"validation, {name}", f"{loss:.4g}"] for name, loss in validation.items()]
    rows += [[str(step), f"{loss:.4g}"] for step, loss in story.losses]
    numbers = table(["step", "loss"], rows)
    return [Figure("Training loss by step", keys, lambda: figures.loss_figure(story), "The numbers", numbers)]


def _before_and_after(evidence: Evidence) -> list[str]:
    sides = words.sides(evidence)
    rows = [[what, *cells[: len(sides)]] for what, *cells in words.figures(evidence)]
    parts = ["<h2>Before and after</h2>", '<div class="columns">', f"<div>{table(['', *sides], rows)}</div>"]
    if evidence.difference is not None:
        rows = [list(row) for row in words.comparison(evidence.difference)]
        parts.append(f"<div><h3>Candidate minus base</h3>{named(rows)}{_changes(evidence)}</div>")
    return [*parts, "</div>", *_by_action_pair(evidence), _specifications(evidence)]


def _changes(evidence: Evidence) -> str:
    changed = evidence.changes
    if changed is None:
        return ""
    return (
        f"<p>{changed.gained} first attempts gained, {changed.lost} lost, {changed.same} the same, "
        f"{changed.no_verdict} without both verdicts; {changed.chains_changed} chains changed in any way.</p>"
    )


def _causes(evidence: Evidence) -> str:
    rows = words.cause_rows(evidence)
    return table(["cause", *words.sides(evidence)], rows) if rows else "<p>None was rejected.</p>"


def _by_action_pair(evidence: Evidence) -> list[str]:
    columns = ["action pair", "specifications", "groups", "base"]
    rows = [
        [row.action_pair_id, str(row.specs), str(row.groups), words.percent(row.base)]
        for row in evidence.by_action_pair
    ]
    if evidence.candidate is not None:
        columns += ["candidate", "difference", "95 % interval"]
        for cells, row in zip(rows, evidence.by_action_pair, strict=True):
            cells += [words.percent(row.candidate), words.points(row.difference), words.interval(row.low, row.high)]
    return ["<h3>By action pair</h3>", table(columns, rows)]


def _groups(evidence: Evidence) -> str:
    rows = [
        [row.name, str(row.chains), str(row.base), *([str(row.candidate)] if row.candidate else [])]
        for row in words.by_group(evidence)
    ]
    return table(["group", "chains", *words.sides(evidence)], rows)


def _specifications(evidence: Evidence) -> str:
    rows = [
        [
            pair.id,
            pair.group,
            str(pair.sample),
            *(_outcome(one) for one in (pair.base, pair.candidate) if one is not None),
        ]
        for pair in evidence.per_spec
    ]
    columns = ["specification", "group", "sample", *words.sides(evidence)]
    return folded(f"Every specification ({evidence.specs})", table(columns, rows, numbers=False))


def _outcome(one: Outcome) -> str:
    return f"{one.outcome} after {one.attempts}"


def _measured_with(evidence: Evidence) -> list[str]:
    rows = [
        ["model", evidence.model],
        ["adapter", evidence.adapter or "none"],
        ["guard", f"{evidence.guard}, version {evidence.guard_version}"],
        ["pairs share", evidence.pairing],
        ["leakage", evidence.leakage],
        ["R_max", str(evidence.r_max)],
        ["seed", str(evidence.seed)],
        *flat(evidence.sampling, "sampling."),
        *flat(evidence.digests, "digest."),
        *flat(evidence.versions, "version."),
    ]
    return ["<h2>Measured with</h2>", named(rows)]


def _limits(evidence: Evidence, limits: Sequence[str]) -> list[str]:
    said = [*limits, *words.caveats(evidence)]
    if not said:
        return []
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    return ["<h2>What this does not show</h2>", f"<ul>{items}</ul>"]
