"""Evidence as one HTML file: no script, no network, light and dark, everything escaped."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import msgspec

from guardlearn.evidence import Evidence, Outcome, Pair
from guardlearn.report import words
from guardlearn.report.curve import attempts_curve

__all__ = ["html"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5d6675; --line: #d9dee6; --paper: #fff;
  --base: #b4552d; --candidate: #1f6fb2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b2; --line: #343b47; --paper: #14181f;
  --base: #e8935f; --candidate: #6cb4ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p, li { max-width: 46rem; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.in { padding-left: 1.25rem; color: var(--soft); }
summary { cursor: pointer; }
svg { width: 100%; max-width: 36rem; height: auto; font-size: 12px; }
svg text { fill: var(--soft); } svg .grid { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 2.5; }
svg polyline.base { stroke: var(--base); stroke-dasharray: 6 4; } svg polyline.candidate { stroke: var(--candidate); }
svg circle.base { fill: var(--base); } svg circle.candidate { fill: var(--candidate); }
svg text.base { fill: var(--base); font-weight: 600; } svg text.candidate { fill: var(--candidate); font-weight: 600; }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_HIDDEN_CONTEXT = frozenset({"evidence", "folder"})


def html(evidence: Evidence, *, context: Any = None, limits: Sequence[str] = ()) -> str:
    """Return the report as one HTML document.

    Args:
        evidence: what was measured.
        context: a record or mapping about the run that made the adapter; its counts and tables are shown as they are.
        limits: what the figures do not show, in sentences.
    """
    sections = [
        f"<h1>{escape(words.headline(evidence))}</h1>",
        f"<p>{escape(words.attempts(evidence))}.</p>",
        _subject(evidence),
        *_before_and_after(evidence),
        *_causes(evidence),
        *_by_action_pair(evidence),
        *_groups(evidence),
        *_specifications(evidence),
        *_context(context),
        *_manifest(evidence),
        *_limits(evidence, limits),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>guardlearn: {escape(words.headline(evidence))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _subject(evidence: Evidence) -> str:
    what = f"model {evidence.model}" + (f", adapter {evidence.adapter}" if evidence.adapter else ", no adapter")
    size = f"{evidence.specs} specifications in {evidence.groups} groups, {evidence.samples_per_spec} sample(s) each"
    return f'<p class="soft">{escape(f"{what}; {size}; guard {evidence.guard}")}</p>'


def _before_and_after(evidence: Evidence) -> list[str]:
    sides = words.sides(evidence)
    rows = [[what, *cells[: len(sides)]] for what, *cells in words.figures(evidence)]
    parts = ["<h2>Before and after</h2>", _table(["", *sides], rows)]
    if evidence.difference is not None:
        rows = [list(row) for row in words.comparison(evidence.difference)]
        parts.append(f"<h3>Candidate minus base</h3>{_table([], rows, numbers=False)}")
    if evidence.changes is not None:
        changed = evidence.changes
        parts.append(
            f"<p>{changed.gained} first attempts gained, {changed.lost} lost, {changed.same} the same, "
            f"{changed.no_verdict} without both verdicts; {changed.chains_changed} chains changed in any way.</p>"
        )
    parts += ["<h2>Solved by attempt</h2>", attempts_curve(evidence)]
    return parts


def _causes(evidence: Evidence) -> list[str]:
    rows = words.cause_rows(evidence)
    if not rows:
        return ["<h2>Why first attempts fail</h2>", "<p>None was rejected.</p>"]
    return ["<h2>Why first attempts fail</h2>", _table(["cause", *words.sides(evidence)], rows)]


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
    return ["<h2>By action pair</h2>", _table(columns, rows)]


def _groups(evidence: Evidence) -> list[str]:
    members: dict[str, list[Pair]] = collections.defaultdict(list)
    for pair in evidence.per_spec:
        members[pair.group].append(pair)
    rows = []
    for group, pairs in sorted(members.items()):
        sides = [_passed(pair.base for pair in pairs)]
        if evidence.candidate is not None:
            sides.append(_passed(pair.candidate for pair in pairs if pair.candidate is not None))
        rows.append([group, str(len(pairs)), *sides])
    title = f"<h2>By group</h2><p class='soft'>First attempts that pass, of {evidence.groups} groups.</p>"
    return [title, _folded("Every group", _table(["group", "chains", *words.sides(evidence)], rows))]


def _specifications(evidence: Evidence) -> list[str]:
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
    return [_folded("Every specification", _table(columns, rows, numbers=False))]


def _context(context: Any) -> list[str]:
    """Return a table a part of the context; what is no record or mapping has nothing to show."""
    plain = msgspec.to_builtins(context, enc_hook=str)
    if not isinstance(plain, dict):
        return []
    shown = {key: value for key, value in plain.items() if key not in _HIDDEN_CONTEXT}
    parts = []
    scalars = [[str(key), _cell(value)] for key, value in shown.items() if not isinstance(value, dict)]
    if scalars:
        parts.append(_table([], scalars, numbers=False))
    for key, value in shown.items():
        if isinstance(value, dict) and value:
            parts.append(f"<h3>{escape(str(key))}</h3>{_table([], _flat(value), numbers=False)}")
    return ["<h2>How the adapter was made</h2>", *parts] if parts else []


def _manifest(evidence: Evidence) -> list[str]:
    rows = [
        ["model", evidence.model],
        ["adapter", evidence.adapter or "none"],
        ["guard", f"{evidence.guard}, version {evidence.guard_version}"],
        ["pairs share", evidence.pairing],
        ["leakage", evidence.leakage],
        ["R_max", str(evidence.r_max)],
        ["seed", str(evidence.seed)],
        *_flat(evidence.sampling, "sampling."),
        *_flat(evidence.digests, "digest."),
        *_flat(evidence.versions, "version."),
    ]
    return ["<h2>Measured with</h2>", _table([], rows, numbers=False)]


def _limits(evidence: Evidence, limits: Sequence[str]) -> list[str]:
    said = [*limits, *words.caveats(evidence)]
    if not said:
        return []
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    return ["<h2>What this does not show</h2>", f"<ul>{items}</ul>"]


def _passed(chains: Iterable[Outcome]) -> str:
    firsts = [one.first for one in chains]
    silent = firsts.count(None)
    return f"{firsts.count(True)} of {len(firsts) - silent}" + (f", {silent} no verdict" if silent else "")


def _outcome(one: Outcome) -> str:
    return f"{one.outcome} after {one.attempts}"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            rows.extend(_flat(value, f"{prefix}{key}."))
        else:
            rows.append([f"{prefix}{key}", _cell(value)])
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return words.DASH
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(_cell(part) for part in value) if isinstance(value, list | tuple) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Return a table; with `numbers`, all columns but the first are right-aligned. An indented first cell is detail."""
    kinds = [' class="n"' if numbers and index else "" for index in range(max(len(row) for row in [columns, *rows]))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=False))
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in rows)
    header = f"<thead><tr>{head}</tr></thead>" if columns else ""
    return f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = row
    detail = ' class="in"' if first.startswith("  ") else kinds[0]
    cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=False))
    return f"<td{detail}>{escape(first)}</td>{cells}"
