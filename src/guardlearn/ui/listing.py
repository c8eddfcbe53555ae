"""`/items`: the attempts that a predicate selects, a page at a time; how many, by which query, and why the others not.

The text is read as `--where` reads it (`parse`), so it is never evaluated; a bad one is shown with its column. What may
look at all of ℛ (how many, why others fall out) comes after the page, and is counted once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from guardlearn.errors import PredicateError, UsageError
from guardlearn.predicates import POLICIES, Predicate, everything, parse
from guardlearn.predicates.vocabulary import VOCABULARY
from guardlearn.ui.addresses import with_query
from guardlearn.ui.opened import opened
from guardlearn.ui.pages import is_part, render

__all__ = ["AT_MOST", "ROUTES", "Filter"]

AT_MOST = 10_000
"""Where counting ends: beyond it, "10 000+" is said."""

_ROWS = 50
_QUOTED = 200
"""Characters of a predicate that `parse` quotes in its errors."""
_ORDERS = {
    "newest": ("seq", True, "stored last"),
    "oldest": ("seq", False, "stored first"),
    "latest": ("created_at", True, "made last"),
    "earliest": ("created_at", False, "made first"),
}
"""Name in the address → (order_by, descending, words)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """A predicate as somebody typed it."""

    text: str
    """"" selects everything."""
    predicate: Predicate | None
    """None: the text is malformed, and `wrong` says how."""
    wrong: str = ""
    column: int | None = None
    """Of the text, from 1; None where no place can be named."""

    @classmethod
    def of(cls, request: Request) -> Filter:
        """Return what a request's field `where` says."""
        text = request.query_params.get("where", "").replace("\r\n", " ").replace("\n", " ").strip()
        try:
            return cls(text, parse(text) if text else everything())
        except PredicateError as error:
            shown = text if len(text) <= _QUOTED else text[:_QUOTED] + "…"
            prefix = f"predicate {shown!r}, column {error.column}: "  # the field and the caret say both
            return cls(text, None, str(error).removeprefix(prefix), error.column)

    @property
    def before(self) -> str:
        """The text up to the column."""
        return self.text[: (self.column or 1) - 1]

    @property
    def there(self) -> str:
        """The character at the column; a blank behind the end."""
        return self.text[len(self.before) :][:1] or " "

    @property
    def behind(self) -> str:
        """The text after that character."""
        return self.text[len(self.before) + 1 :]


def _items(request: Request) -> Response:
    """Show one page of rows."""
    chosen, dag = Filter.of(request), opened(request).dag
    name = request.query_params.get("order", "newest")
    order_by, descending, _ = _choice(name)
    after, before = _seq(request, "after"), _seq(request, "before")
    shown: dict[str, Any] = {"rows": [], "next": None, "previous": None, "seq": None}
    if chosen.predicate is not None:
        back = before is not None
        seq = dag.last_seq  # before the rows: what comes in between is said to be new
        rows = dag.page(
            chosen.predicate,
            after=before if back else after,
            limit=_ROWS + 1,
            order_by=order_by,
            descending=descending != back,
        )
        more, rows = len(rows) > _ROWS, rows[:_ROWS]
        rows = rows[::-1] if back else rows
        shown = {
            "rows": rows,
            "seq": seq,
            "next": rows[-1].seq if rows and (more or back) else None,
            "previous": rows[0].seq if rows and (more if back else after is not None) else None,
        }
    return render(
        request,
        "items.html",
        status_code=400 if chosen.predicate is None else 200,
        filter=chosen,
        order=name,
        orders={each: words for each, (_, _, words) in _ORDERS.items()},
        words=_words(),
        policies={each: repr(make()) for each, make in POLICIES.items()},
        first_page=after is None and before is None,
        **shown,
    )


def _count(request: Request) -> Response:
    """Say how many items a predicate selects while it is typed, or what is wrong with it."""
    chosen, here = Filter.of(request), opened(request)
    found = None
    if chosen.predicate is not None:
        key = ("count", repr(chosen.predicate))
        counted = here.kept.get(key, here.dag.last_seq, _counting(here.dag, chosen.predicate))
        found = counted.value if counted else None
    return _part(request, "count.html", chosen, found=found, at_most=AT_MOST)


def _drops(request: Request) -> Response:
    """Say why items are not selected."""
    chosen, here = Filter.of(request), opened(request)
    counted = None
    if (predicate := chosen.predicate) is not None:
        key = ("drops", repr(predicate))
        counted = here.kept.get(
            key, here.dag.last_seq, lambda: here.dag.explain_drops(predicate), wait=not is_part(request)
        )
    return _part(request, "drops.html", chosen, counted=counted)


def _plan(request: Request) -> Response:
    """Show the query of an extraction, and how the database carries it out."""
    chosen, dag = Filter.of(request), opened(request).dag
    plan = None if chosen.predicate is None else dag.explain(chosen.predicate)
    return _part(request, "plan.html", chosen, plan=plan)


def _newer(request: Request) -> Response:
    """Say what ℛ has got since a page was read; cheap, since pages ask every few seconds, and silent in between."""
    seq = opened(request).dag.last_seq
    since = _seq(request, "since")
    since = seq if since is None else since
    new = max(0, seq - since)
    if is_part(request) and new == (_seq(request, "told") or 0):
        return Response(status_code=204)  # htmx leaves what it shows
    return render(request, "newer.html", new=new, since=since)


def _part(request: Request, name: str, chosen: Filter, **context: Any) -> Response:
    wrong = chosen.predicate is None and not is_part(request)  # htmx shows no answer that failed
    address = with_query("/items", where=chosen.text)
    return render(request, name, status_code=400 if wrong else 200, filter=chosen, address=address, **context)


def _counting(dag: Any, predicate: Predicate) -> Callable[[], int]:
    return lambda: int(dag.count(predicate, at_most=AT_MOST + 1))


def _choice(name: str) -> tuple[str, bool, str]:
    if name not in _ORDERS:
        raise UsageError(f"order={name!r} is unknown; allowed are: {', '.join(_ORDERS)}")
    return _ORDERS[name]


def _seq(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UsageError(f"{name}={text!r} is no seq; it must be a whole number, as the links of this page have it")
    return int(text)


@functools.cache
def _words() -> list[tuple[str, str]]:
    """Return each word of the vocabulary as it is written, and what it selects."""
    return [
        (f"{name}{_arguments(word)}", (inspect.getdoc(word) or "").partition("\n")[0].replace("`", ""))
        for name, word in VOCABULARY.items()
        if name != "satisfies"
    ]


def _arguments(word: Callable[..., Predicate]) -> str:
    given = inspect.signature(word).parameters.values()
    return f"({', '.join('*' * (each.kind is each.VAR_POSITIONAL) + each.name for each in given)})"


ROUTES = (
    Route("/items", _items),
    Route("/listing/count", _count),
    Route("/listing/drops", _drops),
    Route("/listing/plan", _plan),
    Route("/newer", _newer),
)
