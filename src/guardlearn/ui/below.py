"""A route for all that stands below a path, whatever its names hold."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["Below"]


class Below(Route):
    """Takes every path below `prefix`; `addresses.segments_after` reads the names.

    Starlette's own `path` ends at a line end, which ids may hold.
    """

    def __init__(self, prefix: str, endpoint: Callable[[Request], Response]) -> None:
        super().__init__(f"{prefix}/{{rest:path}}", endpoint)
        self.path_regex = re.compile(self.path_regex.pattern, re.DOTALL)
