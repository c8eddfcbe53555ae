"""`/items/ID`: a chain; `/items/ID/rows`: what it becomes under a view; `/items/ID/near`: near-duplicates of its Ψ."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from guardlearn import settings
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.nearby import nearby
from guardlearn.dag.reading import seq_of
from guardlearn.jobs import TrainingConfig
from guardlearn.models import resolve_model
from guardlearn.report.making import pieces
from guardlearn.report.texts import changes, visible
from guardlearn.ui.addresses import item_path, segments_after
from guardlearn.ui.below import Below
from guardlearn.ui.chains import chain_of
from guardlearn.ui.opened import opened
from guardlearn.ui.pages import render
from guardlearn.ui.shapes import VIEWS, Answer, Shaping, shape_item

__all__ = ["ROUTES"]

_VIEW = "both"
_PROMPT_SHOWN = (400, 400)
"""How many tokens of a prompt are shown: of its start, of its end."""
_COMPLETION_SHOWN = (1_500, 300)
_COMPLETION_LETTERS = 12_000
_AGAINST = frozenset({"rejected"})
"""Labels of answers that the model is trained away from."""


def item_page(request: Request) -> Response:
    """Show an item's chain, or what stands below it."""
    item_id, *below = segments_after(request.scope, "/items/")
    pages = {(): _chain, ("rows",): _rows, ("near",): _near}
    page, dag = pages.get(tuple(below)), opened(request).dag
    if page is None:
        raise HTTPException(404, f"no page {'/'.join(below)!r} of an item; there are: rows, near")
    if item_id not in dag.known_ids([item_id]):
        raise HTTPException(404, f"no item {item_id!r} in {dag.target}")
    return page(request, dag, item_id)


def _chain(request: Request, dag: ArtifactDAG, item_id: str) -> Response:
    seq = dag.last_seq
    page = chain_of(dag, item_id)
    return render(request, "item.html", seq=seq, page=page, views=VIEWS, changes=_changes)


def _rows(request: Request, dag: ArtifactDAG, item_id: str) -> Response:
    view = request.query_params.get("view") or _VIEW
    shaping = _shaping(opened(request).model)
    shaped = shape_item(dag, item_id, view, shaping)
    return render(
        request,
        "rows.html",
        item_id=item_id,
        back=item_path(item_id),
        shaped=shaped,
        views=VIEWS,
        model=shaping.model,
        answer_html=_answer,
        against=_AGAINST,
    )


def _near(request: Request, dag: ArtifactDAG, item_id: str) -> Response:
    with dag.reading() as connection:
        found = nearby(connection, seq_of(connection, item_id, dag.target))
    return render(request, "near.html", item_id=item_id, back=item_path(item_id), near=found)


@functools.lru_cache(maxsize=4)
def _shaping(model: str | None) -> Shaping:
    """Return how rows are made, by [training] of guardlearn.toml."""
    config = settings.read().table("training", TrainingConfig)
    return Shaping(config, resolve_model(model) if model else None)


def _changes(lines: Sequence[str]) -> Markup:
    return Markup(changes(lines))


def _answer(answer: Answer) -> Markup:
    """Return a prompt and its answer as tokens, or the answer's text alone where there are none."""
    if answer.masked is None:
        kept = answer.completion[:_COMPLETION_LETTERS]
        left = len(answer.completion) - len(kept)
        more = f"<em> … {left:,} characters left out</em>" if left else ""
        return Markup(f"<mark>{visible(kept)}</mark>{more}")
    prompt = [token for token in answer.masked.tokens if not token.loss]
    said = [token for token in answer.masked.tokens if token.loss]
    return Markup("".join([*pieces(prompt, *_PROMPT_SHOWN), *pieces(said, *_COMPLETION_SHOWN)]))


ROUTES = (Below("/items", item_page),)
