"""The part of the page that tells how the adapter was made: loss, throughput, drops, three chains, the manifest.

A chain is its first attempt, then what each one changed of the one before, with the guard's feedback between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from guardlearn import provenance
from guardlearn.evidence import Evidence
from guardlearn.report import figures, stories, words
from guardlearn.report.frame import Figure, figures_of
from guardlearn.report.masks import MaskedRow, MaskedToken
from guardlearn.report.stories import Story, TraceStory
from guardlearn.report.tables import flat, named, table
from guardlearn.report.texts import block, changes, folded, visible
from guardlearn.types import ArtifactStatus, RepositoryItem

__all__ = ["drops", "manifest", "pieces", "traces", "traces_title", "training"]

_PROMPT_SHOWN = (300, 300)
"""How many tokens of a prompt are shown: of its start, of its end."""
_COMPLETION_SHOWN = (900, 100)
_COMPARED_LETTERS, _COMPARED_LINES = 12_000, 500
"""Longer artifacts are shown whole, not as what they changed: comparing takes the square of it."""
_UNTOLD = frozenset({"loss", "validation_loss", "versions", "host", "base_model", "stages"})
"""Parts of the training's result that stand elsewhere on the page; the host's name is nobody's business."""


def training(story: Story | None, evidence: Evidence, missing: set[str]) -> str:
    """Return the training's loss by step, and how fast training and answering were.

    Args:
        story: how the adapter was made; None: not known.
        evidence: what was measured.
        missing: see `figures_of`.
    """
    drawn = [_loss(story)] if story and story.losses else []
    rows = words.throughput(story.result if story else {}, evidence)
    title = "Throughput"
    columns = ["what", "tokens a second", "with loss, or written", "seconds a step", "seconds"]
    said = f"<figure><figcaption>{title}</figcaption>{table(columns, rows, caption=title)}</figure>" if rows else ""
    return figures_of(drawn, missing, said)


def drops(story: Story) -> str:
    """Return what was selected but not trained on, and why."""
    manifest = story.manifest
    parts = []
    rows = words.drop_rows(story.dropped, story.dropped_rows)
    items = "item" if "attempts" in manifest else "trace"
    counted = {"item_ids": items, "rows": "training row", "validation_rows": "validation row"}
    kept = [words.many(_count(manifest[key]), what) for key, what in counted.items() if key in manifest]
    if kept:
        parts.append(f"<p>Kept: {visible(', '.join(kept))}.</p>")
    if rows:
        columns = ["what", "reason", "dropped"]
        parts.append(table(columns, rows, numbers=False, caption="What was dropped, and why"))
    elif kept:
        parts.append("<p>No row was dropped.</p>" if story.dropped is None else "<p>Nothing was dropped.</p>")
    if story.dropped is None and parts:
        parts.append('<p class="soft">What the extraction dropped is not known here.</p>')
    return "".join(parts)


def traces_title(story: Story) -> str:
    """Return the heading of `traces`."""
    return f"{_NUMERALS.get(len(story.traces), 'Chains')} that became training data"


def traces(story: Story) -> str:
    """Return up to three chains: what was asked, tried, said and accepted, and the rows with their loss mask."""
    if not story.traces:
        return ""
    tokens = any(trace.rows for trace in story.traces)
    legend = _LEGEND if tokens else "The rows they became are not shown: the base model's tokenizer was not at hand."
    return "".join(
        [
            f"<p>Chosen by retries: the fewest, a middle, the most. {legend}</p>",
            *(_trace(number, trace) for number, trace in enumerate(story.traces, 1)),
        ]
    )


def manifest(story: Story) -> str:
    """Return what the adapter was made from and how its training went."""
    result = story.result
    host = {name: value for name, value in stories.mapping(result, "host").items() if name != "name"}
    trained = [
        *_turn("loss, first → last step", stories.mapping(result, "loss"), "first", "last"),
        *_turn("validation loss, base → trained", stories.mapping(result, "validation_loss"), "base", "trained"),
        *flat({name: value for name, value in result.items() if name not in _UNTOLD}),
        *flat(host, "host."),
        *flat(stories.mapping(result, "versions"), "version."),
    ]
    beside = [("Settings", flat(story.settings)), ("The training", trained)]
    columns = "".join(f"<div><h3>{title}</h3>{named(rows, title)}</div>" for title, rows in beside if rows)
    told = named(flat(story.manifest), "Manifest of the job")
    return told + (f'<div class="columns">{columns}</div>' if columns else "")


def _loss(story: Story) -> Figure:
    validation = story.validation_loss
    marks = {"base": ("base", "◇ validation, base"), "trained": ("candidate", "◆ validation, trained")}
    keys = [(style, f"{said} {validation[name]:.3g}") for name, (style, said) in marks.items() if name in validation]
    rows = [[f"validation, {name}", f"{loss:.4g}"] for name, loss in validation.items()]
    rows += [[f"validation, step {step}", f"{loss:.4g}"] for step, loss in story.looks]
    rows += [[str(step), f"{loss:.4g}"] for step, loss in story.losses]
    title = "Training loss by step"
    numbers = table(["step", "loss"], rows, caption=title)
    return Figure(title, keys, lambda: figures.loss_figure(story), "The numbers", numbers)


_LEGEND = (
    'In a row, <span class="key"><span class="code tokens"><span>these</span><span> tokens</span></span></span> are '
    'the prompt and carry no loss; <span class="key"><span class="code tokens"><mark>the</mark><mark> model</mark>'
    '</span></span> is trained to say these, the end token <span class="key"><span class="code tokens"><mark '
    'class="special end">last</mark></span></span> included. Dashed: control tokens of the tokenizer.'
)
_NUMERALS = {1: "One chain", 2: "Two chains", 3: "Three chains"}


def _trace(number: int, trace: TraceStory) -> str:
    last = trace.attempts[-1]
    retries = last.facts.rejected_ancestors if last.facts else len(trace.attempts) - 1
    told = [f"<h3>{number}. Accepted after {'1 retry' if retries == 1 else f'{retries} retries'}</h3>"]
    about = [("item", last.id), ("action pair", last.action_pair_id), ("guard", last.guard)]
    said = "; ".join(f"{name} {value}" for name, value in about if value)
    told.append(f'<p class="soft">{visible(said)}</p>')
    first = trace.attempts[0]
    told.append(f"<h4>Specification</h4>{block(first.specification)}{_attempt(1, first, block(first.artifact))}")
    for place, (before, item) in enumerate(pairwise(trace.attempts), 2):
        if item.specification != before.specification:
            told.append(f"<h4>Specification, amended</h4>{_changed(before.specification, item.specification)}")
        told.append(_attempt(place, item, _changed(before.artifact, item.artifact)))
    if trace.rows:
        rows = "training row" if len(trace.rows) == 1 else f"{len(trace.rows)} training rows"
        told.append(f"<h4>The {rows} it became</h4>")
        told.extend(_row(row) for row in trace.rows)
    return f'<div class="trace">{"".join(told)}</div>'


def _changed(before: str, after: str) -> str:
    """Return what a text changed of the one before it, and all of it, folded."""
    if before == after:
        return '<p class="soft">The same as before.</p>'
    texts = (before, after)
    if max(map(len, texts)) > _COMPARED_LETTERS or max(text.count("\n") for text in texts) > _COMPARED_LINES:
        return block(after)
    _, _, *lines = provenance.difference_lines(before, after, "before", "after")
    return changes(lines) + folded("The whole of it", block(after))


def _attempt(place: int, item: RepositoryItem, artifact: str) -> str:
    status = item.facts.status if item.facts else item.status
    kind = "accepted" if status in (ArtifactStatus.ACCEPTED, ArtifactStatus.SUPERSEDED) else status.value
    verdict = f"{status.value}: {item.cause}" if item.cause else status.value
    spoken = f'<p class="said"><b>Feedback</b> {visible(item.feedback)}</p>' if item.feedback else ""
    return (
        f'<div class="attempt {kind}"><p>Attempt {place} <span class="chip {kind}">{visible(verdict)}</span></p>'
        f"{artifact}{spoken}</div>"
    )


def _row(row: MaskedRow) -> str:
    size = f"{row.prompt_tokens:,} prompt tokens without loss, {row.loss_tokens:,} with loss"
    title = f"{row.view or row.id}, weight {row.weight:.3g}: {size}"
    prompt = [token for token in row.tokens if not token.loss]
    answer = [token for token in row.tokens if token.loss]
    shown = "".join([*pieces(prompt, *_PROMPT_SHOWN), *pieces(answer, *_COMPLETION_SHOWN)])
    return folded(title, f'<div class="code tokens">{shown}</div>', unfolded=True)


def pieces(tokens: Sequence[MaskedToken], head: int, tail: int) -> Iterator[str]:
    """Yield tokens as HTML; of more than `head` + `tail` the middle is left out, with a note."""
    whole = len(tokens) <= head + tail
    yield from map(_piece, tokens if whole else tokens[:head])
    if not whole:
        yield f"<em> … {sum(token.tokens for token in tokens[head:-tail]):,} tokens left out … </em>"
        yield from map(_piece, tokens[-tail:])


def _piece(token: MaskedToken) -> str:
    kinds = " ".join(name for name in ("special", "end") if getattr(token, name))
    tag, style = "mark" if token.loss else "span", f' class="{kinds}"' if kinds else ""
    return f"<{tag}{style}>{visible(token.text)}</{tag}>"


def _turn(name: str, values: Mapping[str, Any], before: str, after: str) -> list[list[str]]:
    if not values:
        return []
    return [[name, f"{words.number(values.get(before), 4)} → {words.number(values.get(after), 4)}"]]


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else value if isinstance(value, int) else 0
