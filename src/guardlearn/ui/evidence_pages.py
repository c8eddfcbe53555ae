"""`/evidence`: evaluations; `/evidence/KEY`: one of them, as its report page."""

from __future__ import annotations

import functools

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from guardlearn import report
from guardlearn.errors import DataError
from guardlearn.ui.evidence import of_files, of_rounds, report_answer, report_of
from guardlearn.ui.opened import opened
from guardlearn.ui.pages import render

__all__ = ["ROUTES"]


def evidence_page(request: Request) -> Response:
    """List evaluations."""
    here = opened(request)
    seq = here.dag.last_seq
    groups = [("Measured by rounds", of_rounds(here.dag)), ("Files", of_files(here.evidence))]
    return render(request, "evidence.html", seq=seq, groups=groups, headline=report.headline, folders=here.evidence)


def report_page(request: Request) -> Response:
    """Show one evaluation's report."""
    here, key = opened(request), request.path_params["key"]
    shown = next((each for each in [*of_rounds(here.dag), *of_files(here.evidence)] if each.key == key), None)
    if shown is None:
        raise HTTPException(404, f"no evaluation {key!r}; /evidence lists those that there are")
    if shown.evidence is None:
        raise DataError(shown.fault)
    name = ("report", shown.key, shown.version)
    made = here.kept.get(name, here.dag.last_seq, functools.partial(report_of, here.dag, shown, here.model))
    assert made is not None
    return report_answer(made.value)


ROUTES = (Route("/evidence", evidence_page), Route("/evidence/{key}", report_page))
