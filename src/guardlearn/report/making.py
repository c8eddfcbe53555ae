"""The part of the page that tells how the adapter was made: drops, three chains with their loss masks, the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from guardlearn.report.masks import MaskedRow, MaskedToken
from guardlearn.report.stories import Story, TraceStory
from guardlearn.report.tables import flat, named, table
from guardlearn.report.texts import block, folded, visible
from guardlearn.types import ArtifactStatus, RepositoryItem

__all__ = ["drops", "manifest", "traces"]

_PROMPT_SHOWN = (300, 300)
"""How many tokens of a prompt are shown: of its start, of its end."""
_COMPLETION_SHOWN = (900, 100)
_UNTOLD = frozenset({"loss", "validation_loss", "versions", "host", "base_model"})
"""Parts of the training's result that stand elsewhere on the page; the host's name is nobody's business."""


def drops(story: Story) -> list[str]:
    """Return what was selected but not trained on, and why."""
    manifest = story.manifest
    parts = ["<h2>What was dropped, and why</h2>"]
    rows = [["selected item", reason, f"{count:,}"] for reason, count in (story.dropped or {}).items()]
    rows += [["row", reason, f"{count:,}"] for reason, count in story.dropped_rows.items()]
    items = "items" if "attempts" in manifest else "traces"
    counted = {"item_ids": items, "rows": "training rows", "validation_rows": "validation rows"}
    kept = [f"{_count(manifest[key])} {what}" for key, what in counted.items() if key in manifest]
    if kept:
        parts.append(f"<p>Kept: {escape(', '.join(kept))}.</p>")
    if rows:
        parts.append(table(["what", "reason", "dropped"], rows, numbers=False))
    else:
        parts.append("<p>No row was dropped.</p>" if story.dropped is None else "<p>Nothing was dropped.</p>")
    if story.dropped is None:
        parts.append('<p class="soft">What the extraction dropped is not known here: no repository was at hand.</p>')
    return parts


def traces(story: Story) -> list[str]:
    """Return up to three chains: what was asked, tried, said and accepted, and the rows with their loss mask."""
    if not story.traces:
        return []
    return [
        f"<h2>{_NUMERALS[len(story.traces)]} that became training data</h2>",
        f"<p>Chosen by retries: the fewest, a middle, the most. {_LEGEND}</p>",
        *(_trace(number, trace) for number, trace in enumerate(story.traces, 1)),
    ]


def manifest(story: Story) -> list[str]:
    """Return what the adapter was made from and how its training went."""
    result = story.result
    host = {name: value for name, value in (result.get("host") or {}).items() if name != "name"}
    trained = [
        *_turn("loss, first → last step", result.get("loss"), "first", "last"),
        *_turn("validation loss, base → trained", result.get("validation_loss"), "base", "trained"),
        *flat({name: value for name, value in result.items() if name not in _UNTOLD}),
        *flat(host, "host."),
        *flat(result.get("versions") or {}, "version."),
    ]
    beside = [("Settings", flat(story.settings)), ("The training", trained)]
    columns = "".join(f"<div><h3>{title}</h3>{named(rows)}</div>" for title, rows in beside if rows)
    return ["<h2>Manifest</h2>", named(flat(story.manifest)), f'<div class="columns">{columns}</div>']


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
    asked = ""
    for place, item in enumerate(trace.attempts, 1):
        if item.specification != asked:
            told.append(f"<h4>{'Specification, amended' if asked else 'Specification'}</h4>{block(item.specification)}")
            asked = item.specification
        told.append(_attempt(place, item))
    rows = "training row" if len(trace.rows) == 1 else f"{len(trace.rows)} training rows"
    told.append(f"<h4>The {rows} it became</h4>")
    told.extend(_row(row) for row in trace.rows)
    return f'<section class="trace">{"".join(told)}</section>'


def _attempt(place: int, item: RepositoryItem) -> str:
    status = item.facts.status if item.facts else item.status
    kind = "accepted" if status in (ArtifactStatus.ACCEPTED, ArtifactStatus.SUPERSEDED) else status.value
    verdict = f"{status.value}: {item.cause}" if item.cause else status.value
    spoken = f'<p class="said"><b>Feedback</b> {visible(item.feedback)}</p>' if item.feedback else ""
    return (
        f'<div class="attempt {kind}"><p>Attempt {place} <span class="chip {kind}">{visible(verdict)}</span></p>'
        f"{block(item.artifact)}{spoken}</div>"
    )


def _row(row: MaskedRow) -> str:
    size = f"{row.prompt_tokens:,} prompt tokens without loss, {row.loss_tokens:,} with loss"
    title = f"{row.view or row.id}, weight {row.weight:.3g}: {size}"
    prompt = [token for token in row.tokens if not token.loss]
    answer = [token for token in row.tokens if token.loss]
    shown = "".join([*_pieces(prompt, *_PROMPT_SHOWN), *_pieces(answer, *_COMPLETION_SHOWN)])
    return folded(title, f'<div class="code tokens">{shown}</div>', unfolded=True)


def _pieces(tokens: Sequence[MaskedToken], head: int, tail: int) -> Iterator[str]:
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


def _turn(name: str, values: Mapping[str, Any] | None, before: str, after: str) -> list[list[str]]:
    return [[name, f"{values[before]:.4g} → {values[after]:.4g}"]] if values else []


def _count(value: Any) -> str:
    return f"{len(value) if isinstance(value, list) else value:,}"
