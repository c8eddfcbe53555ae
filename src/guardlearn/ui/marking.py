"""`POST /mark`: a chain or an attempt becomes excluded, included again, or reviewed: events with an actor and a reason.

The form says which events of the chain were known. Where somebody was faster, nothing is written: the page shows what
they said, and asks again.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from guardlearn.dag.marking import MARKS
from guardlearn.errors import UsageError
from guardlearn.ui.addresses import item_path, quoted, unquoted
from guardlearn.ui.opened import opened
from guardlearn.ui.pages import ACTOR_COOKIE, render

__all__ = ["ROUTES"]

_MOST_BYTES = 65_536
"""Of a form that is read: an id, a name and a reason."""
_MOST_FIELDS = 16
_LONGEST = {"actor": 200, "reason": 2_000}
_COOKIE_SECONDS = 365 * 24 * 60 * 60


async def _mark(request: Request) -> Response:
    """Read the form, which only the event loop can; what it asks for runs in a thread, as every other page does."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, f"a form has at most {_MOST_BYTES} bytes")
    return await run_in_threadpool(_marked, request, _fields(body))


def _marked(request: Request, form: Mapping[str, str]) -> Response:
    here = opened(request)
    if not hmac.compare_digest(form.get("form_token", "").encode(), here.form_token.encode()):
        raise HTTPException(403, "the form is not from this server as it runs now; load the page again, then mark")
    if here.read_only:
        raise HTTPException(403, here.read_only)
    item_id, seen, wrong = unquoted(form.get("item", "")), form.get("seen", ""), _wrong(form)
    if not (seen.isascii() and seen.isdigit() and len(seen) <= 18):
        raise UsageError(f"seen={seen!r} must be the seq of the last event that the page shows")
    if item_id not in here.dag.known_ids([item_id]):
        raise HTTPException(404, f"no item {item_id!r} in {here.dag.target}")
    if wrong:
        return _ask_again(request, form, item_id, wrong=wrong, status_code=400)
    whole, actor = form.get("scope") == "chain", form["actor"].strip()
    with here.writer:
        marked = here.dag.mark(
            item_id, form["kind"], actor=actor, reason=form.get("reason", "").strip(), whole_chain=whole, seen=int(seen)
        )
    if not marked.written:
        return _ask_again(request, form, item_id, missed=marked.missed, status_code=409)
    answer = RedirectResponse(item_path(item_id), 303)
    answer.set_cookie(ACTOR_COOKIE, quoted(actor), max_age=_COOKIE_SECONDS, httponly=True, samesite="strict")
    return answer


def _ask_again(
    request: Request, form: Mapping[str, str], item_id: str, *, status_code: int, missed: object = (), wrong: str = ""
) -> Response:
    """Return the form as it was filled in, with what stands against it, and with the chain's events as of now."""
    dag = opened(request).dag
    events, attempts = dag.events(item_id), len(dag.tree(item_id))
    return render(
        request,
        "mark.html",
        status_code=status_code,
        item_id=item_id,
        missed=missed,
        wrong=wrong,
        attempts=attempts,
        # what is shown here has been seen; a form that only lacked something saw no more than its page did
        seen=events[-1].seq if missed and events else form["seen"],
        given={name: form.get(name, "") for name in ("kind", "scope", "actor", "reason")},
    )


def _wrong(form: Mapping[str, str]) -> str:
    """Return what a person must mend, in one line; "" for nothing."""
    kind, scope, reason = form.get("kind"), form.get("scope"), form.get("reason", "").strip()
    if kind not in MARKS:
        return f"nothing is marked {kind!r}; allowed are: {', '.join(MARKS)}"
    if scope not in ("chain", "item"):
        return f"scope={scope!r} is unknown; allowed are: chain, item"
    if not form.get("actor", "").strip():
        return "a mark says who decided; give a name"
    if not reason and kind != "review":
        return f"a mark says why; give a reason to {kind}"
    for name, longest in _LONGEST.items():
        text = form.get(name, "")
        if len(text) > longest:
            return f"the {name} has {len(text)} characters; at most {longest} are stored"
        if "\0" in text:
            return f"the {name} holds NUL, which databases refuse; leave it out"
    return ""


def _fields(body: bytes) -> dict[str, str]:
    """Return the fields of a form, the first value of each.

    Raises:
        UsageError: too many of them.
    """
    try:
        found = parse_qs(body.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise UsageError(f"the form has more than {_MOST_FIELDS} fields") from error
    return {name: values[0] for name, values in found.items()}


ROUTES = (Route("/mark", _mark, methods=["POST"]),)
