"""`/`: ℛ at a glance: the last attempts and the sides at once, what looks at all of ℛ after the page.

The figures are those of `guardlearn stats` (Definitions 21 and 22, expected attempts as in `dag.breakdown`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from guardlearn.dag import ArtifactDAG
from guardlearn.predicates import POLICIES, Predicate, action_pair, policy, side, source, status
from guardlearn.selections import policy_counts
from guardlearn.ui.addresses import with_query
from guardlearn.ui.opened import opened
from guardlearn.ui.pages import is_part, render

__all__ = ["ROUTES"]

_LAST = 10
_LARGE = 200_000
"""Entries from which on the figures of chains are counted when somebody asks, not when somebody looks."""
_MOST_PAIRS = 30
"""Action pairs that are listed; those with the most items."""


class _Row(NamedTuple):
    """One value with its count, and where its items are listed."""

    name: str
    found: int
    address: str


def _glance(request: Request) -> Response:
    """Show what is there at once."""
    dag = opened(request).dag
    seq = dag.last_seq
    rows = dag.page(limit=_LAST, descending=True)
    sides = [_row(each.value, count, side(each)) for each, count in dag.sides().items()]
    return render(request, "overview.html", seq=seq, rows=rows, sides=sides, parts=_PARTS, large=seq > _LARGE)


def _part(request: Request) -> Response:
    """Show one count of all of ℛ; where another request makes it just now, htmx asks again."""
    name, here = request.path_params["part"], opened(request)
    if name not in _PARTS:
        raise HTTPException(404, f"the overview has no part {name!r}; it has: {', '.join(_PARTS)}")
    title, count = _PARTS[name]
    counted = here.kept.get(("overview", name), here.dag.last_seq, lambda: count(here.dag), wait=not is_part(request))
    return render(request, f"overview_{name}.html", part=name, heading=title, counted=counted)


def _statuses(dag: ArtifactDAG) -> list[_Row]:
    return [_row(name, count, status(name)) for name, count in dag.count_by(None, "status").items()]


def _policies(dag: ArtifactDAG) -> list[_Row]:
    counts = policy_counts(dag)
    return [_row(name, counts[name], policy(name)) for name in POLICIES]


def _figures(dag: ArtifactDAG) -> dict[str, Any]:
    """Return the chains' figures: of everything, by action pair, by source."""
    pairs = dag.breakdown("action_pair")
    return {
        "total": next(iter(dag.breakdown(None)), None),
        "axes": [
            ("by action pair", [(row, _listed(action_pair(row.value))) for row in pairs[:_MOST_PAIRS]]),
            ("by source", [(row, _listed(source(row.value))) for row in dag.breakdown("source")]),
        ],
        "more_pairs": len(pairs) - min(len(pairs), _MOST_PAIRS),
    }


def _row(name: str, count: int, predicate: Predicate) -> _Row:
    return _Row(name, count, _listed(predicate))


def _listed(predicate: Predicate) -> str:
    return with_query("/items", where=repr(predicate))


_PARTS: dict[str, tuple[str, Callable[[ArtifactDAG], Any]]] = {
    "status": ("Items by status", _statuses),
    "policies": ("What each policy selects", _policies),
    "figures": ("Retries", _figures),
}

ROUTES = (Route("/", _glance), Route("/overview/{part}", _part))
