"""`/rounds`: every round of every learner; `/rounds/LEARNER`: the page that `guardlearn loop` writes."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from guardlearn import lineage
from guardlearn.dag import ArtifactDAG
from guardlearn.loop.history import history
from guardlearn.loop.planning import rounds_of
from guardlearn.report.history import history_page
from guardlearn.report.words import interval, points
from guardlearn.ui.addresses import named_path, segments_after
from guardlearn.ui.below import Below
from guardlearn.ui.evidence import drawing, report_answer
from guardlearn.ui.opened import opened
from guardlearn.ui.pages import render

__all__ = ["ROUTES"]


def rounds_page(request: Request) -> Response:
    """List the rounds of every learner."""
    dag = opened(request).dag
    seq = dag.last_seq
    told = [(name, history(dag, name)) for name in _learners(dag)]
    return render(
        request, "rounds.html", seq=seq, learners=told, named_path=named_path, interval=interval, points=points
    )


def learner_page(request: Request) -> Response:
    """Show a learner's rounds as their report page."""
    dag = opened(request).dag
    learner = "/".join(segments_after(request.scope, "/rounds/"))
    if learner not in _learners(dag):
        raise HTTPException(404, f"no learner {learner!r} in {dag.target}")
    rows = history(dag, learner)
    with drawing():
        return report_answer(history_page(learner, rows))


def _learners(dag: ArtifactDAG) -> list[str]:
    """Return the learners that have rounds; who has promotions alone has none to show."""
    return [name for name in lineage.learners(dag) if rounds_of(dag, name)]


ROUTES = (Route("/rounds", rounds_page), Below("/rounds", learner_page))
