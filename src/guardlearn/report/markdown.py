"""The report as Markdown, for a pull request: the headline and its table open, everything else folded.

The same object as the page, in the same order, without its figures. Foreign text cannot act: see `markup`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from guardlearn import provenance
from guardlearn.evidence import Evidence
from guardlearn.report import round_words, words
from guardlearn.report.markup import code, fenced, folded, grid, plain
from guardlearn.report.round_stories import RoundStory
from guardlearn.report.stories import Story, TraceStory
from guardlearn.report.tables import flat
from guardlearn.types import RepositoryItem

__all__ = ["markdown"]

_ROWS_SHOWN = 200
"""Rows of a table. The page and the JSON hold all."""
_MOST_BYTES = 65_000
"""A comment of a pull request takes 65,536 characters; folded parts that would not fit are named instead."""
_ARTIFACT_LETTERS, _ARTIFACT_LINES = 4_000, 120


def markdown(
    evidence: Evidence,
    *,
    story: Story | None = None,
    limits: Sequence[str] = (),
    round_story: RoundStory | None = None,
) -> str:
    """Return the report as Markdown; a section without data is left out.

    Args:
        evidence: what was measured.
        story: how the adapter was made; None: not known.
        limits: what the figures do not show, in sentences.
        round_story: what the round of learning measured besides, and decided; None: no round, or not known.
    """
    sides = words.sides(evidence)
    parts = [
        f"**{plain(words.headline(evidence))}**",
        f"{plain(words.attempts(evidence))}.",
        plain(words.subject(evidence)),
        grid(["", *sides], [[plain(cell) for cell in row[: len(sides) + 1]] for row in words.figures(evidence)]),
        *_difference(evidence),
        *_limits(evidence, limits),
        *(_decision(round_story) if round_story else []),
    ]
    opening = "\n\n".join(part for part in parts if part)
    return "\n\n".join([opening, *_fitting(opening, _folded(evidence, story, round_story))]) + "\n"


def _fitting(opening: str, parts: Iterable[tuple[str, str]]) -> list[str]:
    """Return the folded parts that still fit after `opening`, and which do not."""
    room, kept, left_out = _MOST_BYTES - _size(opening), list[str](), list[str]()
    for title, content in parts:
        part = folded(title, content)
        if (size := _size(part)) > room:
            left_out.append(title)
            continue
        room -= size
        kept.append(part)
    if left_out:
        kept.append(f"Too long for a pull request, so left out: {'; '.join(left_out)}. The page has it.")
    return kept


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass")) + 2


def _difference(evidence: Evidence) -> list[str]:
    if evidence.difference is None:
        return []
    rows = [[plain(cell) for cell in row] for row in words.comparison(evidence.difference)]
    return [grid(["candidate minus base", ""], rows, numbers=False), plain(words.changes(evidence))]


def _limits(evidence: Evidence, given: Sequence[str]) -> list[str]:
    said = [*given, *words.caveats(evidence)]
    return ["\n".join(["What this does not show:", "", *(f"- {plain(sentence)}" for sentence in said)])] if said else []


def _decision(told: RoundStory) -> list[str]:
    if not told.reason:
        return []
    rows = [
        [plain(each.name), "holds" if each.passed else "**FAILS**", plain(each.found), plain(each.needed)]
        for each in told.conditions
    ]
    columns = ["condition", "", "found", "needed"]
    said = f"Round {told.round} of {code(told.learner)}: **{plain(told.state)}**. {plain(told.reason)}"
    return [said, grid(columns, rows, numbers=False) if rows else ""]


def _folded(evidence: Evidence, story: Story | None, told: RoundStory | None) -> Iterator[tuple[str, str]]:
    """Yield title and content of what is folded, as far as there is something in it."""
    sides = words.sides(evidence)
    if evidence.per_spec:
        rows = [
            [row.name, str(row.chains), str(row.base), *([str(row.candidate)] if row.candidate else [])]
            for row in words.by_group(evidence)
        ]
        yield f"By group ({evidence.groups})", _named_rows(["group", "chains", *sides], rows)
    if any(curve for _, curve in words.curves(evidence)):
        yield "Share solved, by attempts until accepted", grid(["attempts", *sides], words.attempt_rows(evidence))
    if rows := words.action_pair_rows(evidence):
        yield "By action pair", _named_rows(words.action_pair_columns(evidence), rows)
    if rows := words.cause_rows(evidence):
        yield "Why first attempts fail", _named_rows(["cause", *sides], rows)
    if rows := words.throughput(story.result if story else {}, evidence):
        columns = ["what", "tokens a second", "with loss, or written", "seconds a step", "seconds"]
        yield "Throughput", _named_rows(columns, rows)
    if told is not None:
        yield from _round(told)
    if story is not None:
        yield from _made(story)
    yield (
        "Measured with",
        _values(
            [
                ["model", evidence.model],
                ["adapter", evidence.adapter or "none"],
                ["guard", f"{evidence.guard}, version {evidence.guard_version}"],
                ["pairs share", evidence.pairing],
                ["leakage", evidence.leakage],
                *flat(evidence.sampling, "sampling."),
                *flat(evidence.digests, "digest."),
                *flat(evidence.versions, "version."),
            ]
        ),
    )


def _round(told: RoundStory) -> Iterator[tuple[str, str]]:
    said = [plain(f"{what} was not measured: {why}") for what, why in told.unmeasured.items()]
    if told.forgetting is not None:
        said += map(plain, round_words.forgetting(told.forgetting))
        rows = round_words.nats_rows(told.forgetting.rise_by_group)
        said += [_named_rows(["group", "rise of the loss, nats a token"], rows)] if rows else []
    if said:
        yield "Forgetting", "\n\n".join(said)
    if rows := round_words.other_rows(told.others):
        yield "Action pairs that were not trained", _named_rows(round_words.OTHER_COLUMNS, rows)
    if told.rounds:
        rows = [[str(row.round), plain(row.decision), plain(row.reason)] for row in told.rounds]
        note = plain(round_words.unlike_rounds(told.measured_on))
        table = grid(["round", "decision", "why"], rows, numbers=False)
        yield f"Rounds ({len(rows)})", f"{note}\n\n{table}" if note else table


def _made(story: Story) -> Iterator[tuple[str, str]]:
    if rows := words.drop_rows(story.dropped, story.dropped_rows):
        told = [[what, code(reason), count] for what, reason, count in rows]
        yield "What was dropped, and why", grid(["what", "reason", "dropped"], told, numbers=False)
    for number, trace in enumerate(story.traces, 1):
        retries = len(trace.attempts) - 1
        title = f"Chain {number}: accepted after {'1 retry' if retries == 1 else f'{retries} retries'}"
        yield title, "\n\n".join(_chain(trace))
    rows = [*flat(story.manifest), *_training(story.result)]
    if rows:
        yield "Manifest", _values(rows)


def _training(result: Mapping[str, Any]) -> list[list[str]]:
    told = {name: result.get(name) for name in ("loss", "validation_loss", "steps", "seconds", "versions")}
    return flat({name: value for name, value in told.items() if value is not None}, "training.")


def _chain(trace: TraceStory) -> Iterator[str]:
    first = trace.attempts[0]
    yield "Specification:"
    yield _cut(first.specification)
    yield from _attempt(1, first, _cut(first.artifact))
    for place, (before, item) in enumerate(pairwise(trace.attempts), 2):
        if item.specification != before.specification:
            yield "Specification, amended:"
            yield _cut(item.specification)
        yield from _attempt(place, item, _changed(before.artifact, item.artifact))


def _attempt(place: int, item: RepositoryItem, artifact: str) -> Iterator[str]:
    yield f"Attempt {place}: {code(provenance.verdict(item))}"
    yield artifact
    if item.feedback:
        yield "Feedback:"
        yield _cut(item.feedback)


def _changed(before: str, after: str) -> str:
    if before == after:
        return "The same as before."
    if _is_long(before) or _is_long(after):
        return _cut(after)
    _, _, *lines = provenance.difference_lines(before, after, "before", "after")
    return fenced("\n".join(lines))


def _cut(text: str) -> str:
    if not _is_long(text):
        return fenced(text)
    kept = "\n".join(text[:_ARTIFACT_LETTERS].split("\n")[:_ARTIFACT_LINES])
    return f"{fenced(kept)}\n\n{len(text) - len(kept):,} more characters left out."


def _is_long(text: str) -> bool:
    return len(text) > _ARTIFACT_LETTERS or text.count("\n") > _ARTIFACT_LINES


def _named_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first cells are foreign names."""
    shown = [[code(name), *map(plain, cells)] for name, *cells in rows[:_ROWS_SHOWN]]
    more = f"\n\n{len(rows) - _ROWS_SHOWN:,} more rows left out." if len(rows) > _ROWS_SHOWN else ""
    return grid(columns, shown) + more


def _values(rows: Sequence[Sequence[str]]) -> str:
    return grid(["what", "value"], [[code(name), code(value)] for name, value in rows], numbers=False)
