"""The parts of the page that the evidence alone gives: groups, attempts, before and after, action pairs, causes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from guardlearn.evidence import Evidence, Outcome
from guardlearn.report import figures, words
from guardlearn.report.frame import Figure, figures_of
from guardlearn.report.tables import flat, named, table
from guardlearn.report.texts import folded, visible

__all__ = ["action_pairs", "before_and_after", "first_attempts", "limits", "measured_with", "specifications"]


def first_attempts(evidence: Evidence, missing: set[str]) -> str:
    """Return the figures, each with its numbers under it as a table, and the causes of failure.

    Args:
        evidence: what was measured.
        missing: see `figures_of`.
    """
    columns = words.sides(evidence)
    keys = [(side, f"{mark} {side}") for side, mark in zip(columns, "○●", strict=False)]
    drawn = []
    if evidence.per_spec:
        drawn.append(_groups(evidence, keys))
    if any(curve for _, curve in words.curves(evidence)):
        drawn.append(_attempts(evidence, keys))
    return figures_of(drawn, missing, _causes(evidence))


def before_and_after(evidence: Evidence) -> str:
    """Return every figure of both models, and what their paired comparison says."""
    sides = words.sides(evidence)
    rows = [[what, *cells[: len(sides)]] for what, *cells in words.figures(evidence)]
    parts = ['<div class="columns">', f"<div>{table(['', *sides], rows, caption='Before and after')}</div>"]
    if evidence.difference is not None:
        title = "Candidate minus base"
        rows = [list(row) for row in words.comparison(evidence.difference)]
        parts.append(f"<div><h3>{title}</h3>{named(rows, title)}{_changes(evidence)}</div>")
    return "".join([*parts, "</div>"])


def action_pairs(evidence: Evidence) -> str:
    """Return the first attempts of each action pair; a test that holds for one of many is adjusted for all (Holm)."""
    rows = words.action_pair_rows(evidence)
    if not rows:
        return ""
    return table(words.action_pair_columns(evidence), rows, caption="First attempts by action pair")


def specifications(evidence: Evidence) -> str:
    """Return how the chains of every specification went."""
    rows = [
        [
            pair.id,
            pair.group,
            str(pair.sample),
            *(_outcome(one) for one in (pair.base, pair.candidate) if one is not None),
        ]
        for pair in evidence.per_spec
    ]
    if not rows:
        return ""
    columns = ["specification", "group", "sample", *words.sides(evidence)]
    said = table(columns, rows, numbers=False, caption="Every specification")
    return folded(f"Every specification ({evidence.specs})", said)


def limits(evidence: Evidence, given: Sequence[str]) -> str:
    """Return what the figures do not show, in sentences."""
    said = [*given, *words.caveats(evidence)]
    items = "".join(f"<li>{visible(sentence)}</li>" for sentence in said)
    return f"<ul>{items}</ul>" if said else ""


def measured_with(evidence: Evidence) -> str:
    """Return with what, and with which versions of it, everything was measured."""
    rows = [
        ["model", evidence.model],
        ["adapter", evidence.adapter or "none"],
        *([["compared with adapter", evidence.against]] if evidence.against else []),
        ["guard", f"{evidence.guard}, version {evidence.guard_version}"],
        ["pairs share", evidence.pairing],
        ["leakage", evidence.leakage],
        ["R_max", str(evidence.r_max)],
        ["seed", str(evidence.seed)],
        *flat(evidence.sampling, "sampling."),
        *flat(evidence.digests, "digest."),
        *flat(evidence.versions, "version."),
    ]
    return named(rows, "Measured with")


def _groups(evidence: Evidence, keys: list[tuple[str, str]]) -> Figure:
    rows = [
        [row.name, str(row.chains), str(row.base), *([str(row.candidate)] if row.candidate else [])]
        for row in words.by_group(evidence)
    ]
    title = "First attempts that pass, by group"
    return Figure(
        title,
        keys,
        lambda: figures.groups_figure(evidence),
        f"Every group ({evidence.groups})",
        table(["group", "chains", *words.sides(evidence)], rows, caption=title),
        _groups_left_out(evidence),
    )


def _groups_left_out(evidence: Evidence) -> str:
    most = figures.GROUPS_SHOWN
    if evidence.groups <= most:
        return ""
    return f"Of {evidence.groups} groups, the {most // 2} that gained most and the {most // 2} that gained least."


def _attempts(evidence: Evidence, keys: list[tuple[str, str]]) -> Figure:
    title = "Share solved, by attempts until accepted"
    numbers = table(["attempts", *words.sides(evidence)], words.attempt_rows(evidence), caption=title)
    return Figure(title, keys, lambda: figures.attempts_figure(evidence), "The numbers", numbers)


def _causes(evidence: Evidence) -> str:
    rows = words.cause_rows(evidence)
    if not rows:
        return ""
    title = "Why first attempts fail"
    caption = f"<figcaption>{escape(title)}</figcaption>"
    return f"<figure>{caption}{table(['cause', *words.sides(evidence)], rows, caption=title)}</figure>"


def _changes(evidence: Evidence) -> str:
    changed = words.changes(evidence)
    return f"<p>{escape(changed)}</p>" if changed else ""


def _outcome(one: Outcome) -> str:
    return f"{one.outcome} after {one.attempts}"
