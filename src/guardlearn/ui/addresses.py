"""Items in URLs: any id becomes one segment of a path, and comes back as it was.

Servers see the decoded path too, where a slash in an id looks like one between segments, so the raw path is read here.
Browsers resolve "." and ".." even where they are escaped (https://url.spec.whatwg.org/#double-dot-path-segment), so
these two, and ids that could be taken for what stands for them, begin with "=".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode

__all__ = ["item_path", "named_path", "quoted", "segments_after", "unquoted", "with_query"]

_ESCAPE = "="


def quoted(text: str) -> str:
    """Return any text, NUL and lone surrogates too, as what may stand in a path, a query, a cookie or a form field."""
    return quote(text, safe="", errors="surrogatepass")


def unquoted(text: str) -> str:
    """Return what `quoted` was given; bytes that are no text become U+FFFD."""
    try:
        return unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:
        return unquote(text, errors="replace")


def item_path(item_id: str, *below: str) -> str:
    """Return the path of an item's page, or of what stands below it, as in `item_path(id, "rows")`."""
    return named_path("/items", item_id, *below)


def named_path(prefix: str, name: str, *below: str) -> str:
    """Return the path below `prefix` of what has any name, or of what stands below that."""
    segment = _ESCAPE + name if not name.strip(".") or name.startswith(_ESCAPE) else name
    return "/".join([prefix, quoted(segment), *below])


def segments_after(scope: Mapping[str, Any], prefix: str) -> list[str]:
    """Return the decoded segments of a request's path after `prefix`; the first one as an id that `item_path` took.

    Args:
        scope: the ASGI scope; its raw path tells %2F from a slash.
        prefix: what the path begins with, as in "/items/".
    """
    raw = (scope.get("raw_path") or quote(scope["path"]).encode("ascii")).decode("latin-1").partition("?")[0]
    found = [unquoted(segment) for segment in raw.removeprefix(prefix).split("/")]
    found[0] = found[0].removeprefix(_ESCAPE)
    return found


def with_query(path: str, **given: object) -> str:
    """Return `path` with a query of what is neither None nor ""."""
    chosen = {name: str(value) for name, value in given.items() if value not in (None, "")}
    return f"{path}?{urlencode(chosen, errors='surrogatepass')}" if chosen else path
