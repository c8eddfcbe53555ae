"""Templates become answers: one environment, what every page shows, and the words of numbers and times.

Autoescape is on and an unknown name is an error. Texts that others wrote go through the filter `visible`, which keeps
escape sequences and what has no width from being more than text.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from guardlearn.report import texts
from guardlearn.report.words import percent
from guardlearn.ui.addresses import item_path, quoted, unquoted, with_query
from guardlearn.ui.opened import opened

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ACTOR_COOKIE", "actor_of", "is_part", "number", "refusal", "render", "when"]

ACTOR_COOKIE = "guardlearn_actor"
_LABEL_LETTERS = 48


def render(
    request: Request,
    name: str,
    *,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """Return a template as an answer.

    A template that extends `layout` is a whole page for a browser, and its block `main` alone for htmx.

    Args:
        request: what is answered.
        name: of a file in templates/.
        status_code: of the answer.
        headers: more of them.
        context: what the template shows, beside what every page has (see `_always`).
    """
    text = _environment().get_template(name).render(**(_always(request) | context))
    body = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # a page cannot hold a lone surrogate
    return HTMLResponse(body, status_code=status_code, headers=dict(headers or {}))


def refusal(request: Request, message: str, status_code: int) -> HTMLResponse:
    """Return a page that says in one line what cannot be done, and what to do instead."""
    return render(request, "refusal.html", status_code=status_code, message=message)


def is_part(request: Request) -> bool:
    """Whether htmx asks for a part of a page, rather than a browser for a whole one."""
    return request.headers.get("hx-request") == "true" and request.headers.get("hx-boosted") != "true"


def actor_of(request: Request) -> str:
    """Return who sits there: what they said once, else who started the server."""
    return unquoted(request.cookies.get(ACTOR_COOKIE, "")) or opened(request).actor


def number(count: int | None) -> str:
    """Return a count as people read it, as in 1 234 567; its blanks break no line."""
    return "–" if count is None else f"{count:,}".replace(",", "\u00a0")


def when(moment: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return "" if moment is None else moment.astimezone(UTC).isoformat(" ", "seconds")[:19]


def _always(request: Request) -> dict[str, Any]:
    """Return what every template may use."""
    here = opened(request)
    return {
        "layout": "part.html" if is_part(request) else "base.html",
        "repository": here.dag.target,
        "read_only": here.read_only,
        "form_token": here.form_token,
        "actor": actor_of(request),
        "path": request.url.path,
        "seq": None,
    }


def _label(text: str, letters: int = _LABEL_LETTERS) -> str:
    """Return `texts.label`; nearly every text is short and printable, and a page has hundreds."""
    return text if len(text) <= letters and text.isprintable() else texts.label(text, letters)


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("guardlearn.ui"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "visible": lambda text: Markup(texts.visible(text)),
        "block": lambda text: Markup(texts.block(text)),
        "label": _label,
        "number": number,
        "percent": percent,
        "when": when,
        "quoted": quoted,
    }
    made.globals |= {"item_path": item_path, "with_query": with_query}
    return made
