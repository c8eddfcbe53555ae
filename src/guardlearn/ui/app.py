"""All pages as one ASGI application."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from guardlearn.errors import GuardlearnError, UsageError
from guardlearn.report.style import STYLE
from guardlearn.ui import adapter_pages, chain_pages, evidence_pages, listing, marking, overview, round_pages
from guardlearn.ui.access import Access, Guarded
from guardlearn.ui.opened import Opened
from guardlearn.ui.pages import refusal

__all__ = ["application"]

PAGES = (overview, listing, marking, chain_pages, adapter_pages, round_pages, evidence_pages)
"""Modules whose `ROUTES` are served, in this order."""

_AT_ONCE = 8
"""Requests that are worked on at once: fewer than the connections that ℛ opens for reading."""

_STATIC = {
    "ui.css": "text/css",
    "htmx.min.js": "text/javascript",
    "htmx.LICENSE.txt": "text/plain",
    "icon.svg": "image/svg+xml",
}


def application(opened: Opened, access: Access) -> ASGIApp:
    """Return the application that shows what `opened` has open, to those whom `access` lets in."""
    app = Starlette(
        routes=[*(route for page in PAGES for route in page.ROUTES), Route("/static/{name}", _static)],
        exception_handlers={HTTPException: _refused, GuardlearnError: _failed, Exception: _broken},
        lifespan=_lifespan,
    )
    app.state.opened = opened
    return Guarded(app, access)  # around everything: what reports a bug has its headers too


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = _AT_ONCE
    yield


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name == "report.css":
        text, kind = STYLE.encode("utf-8"), "text/css"
    elif name in _STATIC:
        text, kind = _file(name), _STATIC[name]
    else:
        raise HTTPException(404, f"no file {name!r} is served")
    return Response(text, media_type=kind, headers={"Cache-Control": "max-age=300"})


@functools.cache
def _file(name: str) -> bytes:
    return importlib.resources.files("guardlearn.ui").joinpath("static", name).read_bytes()


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.detail == "Not Found":
        return refusal(request, f"there is no page {request.url.path}", 404)
    return refusal(request, error.detail, error.status_code)


def _failed(request: Request, error: Exception) -> Response:
    return refusal(request, str(error), 400 if isinstance(error, UsageError) else 503)


def _broken(request: Request, error: Exception) -> Response:
    """Answer where a fault of ours ended a request; its traceback is on the server's stderr."""
    what = f"a fault of guardlearn ended this request ({type(error).__name__}); the server's stderr says where"
    return refusal(request, what, 500)
