"""`/adapters`: what rounds and increments made; `/adapters/NAME`: one of them, as `guardlearn why` tells it.

A name from an address is looked up among what ℛ knows, never in the file system.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from guardlearn import lineage
from guardlearn.dag import ArtifactDAG, rounds
from guardlearn.lineage import AdapterRecord, Promotion
from guardlearn.lineage.increments import increments
from guardlearn.report.why import why_lines
from guardlearn.report.words import interval, points
from guardlearn.ui.addresses import named_path, segments_after
from guardlearn.ui.below import Below
from guardlearn.ui.evidence import key_of_round
from guardlearn.ui.opened import opened
from guardlearn.ui.pages import render

__all__ = ["ROUTES", "adapter_path"]

_ITEMS_SHOWN = 20


def adapter_path(record: AdapterRecord) -> str:
    """Return the address of an adapter's page: by its round, or by its digest where no round made it."""
    return named_path("/adapters", record.name if record.round else record.digest)


def adapters_page(request: Request) -> Response:
    """List adapters, and what is live."""
    dag = opened(request).dag
    seq, found = dag.last_seq, _known(dag)
    return render(
        request,
        "adapters.html",
        seq=seq,
        records=found[::-1],
        live=_live(dag, found),
        path_of=adapter_path,
        interval=interval,
        points=points,
    )


def adapter_page(request: Request) -> Response:
    """Show one adapter."""
    dag = opened(request).dag
    name = "/".join(segments_after(request.scope, "/adapters/"))
    record = next((each for each in _known(dag) if name == (each.name if each.round else each.digest)), None)
    if record is None:
        raise HTTPException(404, f"no adapter {name!r} in {dag.target}")
    found = lineage.explain(dag, record)
    return render(
        request,
        "adapter.html",
        found=found,
        sections=_sections(why_lines(found)),
        evidence=named_path("/evidence", key_of_round(record.learner, record.round)) if record.evidence else "",
        items=record.item_ids[-_ITEMS_SHOWN:],
        rejected=set(record.rejected_item_ids),
    )


def _known(dag: ArtifactDAG) -> list[AdapterRecord]:
    of_rounds = lineage.records(dag)
    return [*increments(dag, of_rounds), *of_rounds]


def _live(dag: ArtifactDAG, known: Iterable[AdapterRecord]) -> list[tuple[Promotion, AdapterRecord | None]]:
    """Return each learner's last promotion, with the record of what it made live; None: the bare base, or not known."""
    with dag.reading() as connection:
        last = {each.learner: each for each in rounds.read_promotions(connection)}
    records = {record.learner: record for record in known if record.live}
    return [(promotion, records.get(learner)) for learner, promotion in last.items()]


def _sections(lines: Iterable[tuple[str, str]]) -> list[list[tuple[str, list[str]]]]:
    """Return the lines of a page as sections of (label, texts)."""
    sections: list[list[tuple[str, list[str]]]] = [[]]
    for label, text in lines:
        if not label and not text:
            sections.append([])
        elif label or not sections[-1]:
            sections[-1].append((label, [text.strip()]))
        else:
            sections[-1][-1][1].append(text.strip())
    return [section for section in sections if section]


ROUTES = (Route("/adapters", adapters_page), Below("/adapters", adapter_page))
