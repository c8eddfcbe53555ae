"""What a guard in this process prints: shown on stderr up to a bound, so that standard output stays a command's own.

Each thread's prints are told apart, since guards run in several. What a guard's own child processes write, or what is
written to file descriptors directly, does not pass here.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["MOST_CHARS", "heard"]

MOST_CHARS = 10_000
"""Characters of one guard's prints that are shown while this process lives."""

_LOCK = threading.RLock()
_local = threading.local()
_shown: dict[str, int] = {}
_running = [0]


class _Router:
    """Stands in for sys.stdout or sys.stderr: a guard's prints go to its budget, all others where they went before."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        guard = getattr(_local, "guard", None)
        if guard is None:
            return self.stream.write(text)
        _show(guard, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _show(guard: str, text: str) -> None:
    with _LOCK:
        before = _shown.get(guard, 0)
        left = MOST_CHARS - before
        _shown[guard] = before + len(text)
        if left < 0:
            return
        out = sys.stderr.stream if isinstance(sys.stderr, _Router) else sys.stderr
        with contextlib.suppress(OSError, ValueError):  # closed, or a character its encoding has not
            out.write(text[:left])
            if len(text) > left:
                out.write(f"\n[guard {guard!r} prints more than {MOST_CHARS} characters; the rest is not shown]\n")


@contextlib.contextmanager
def heard(guard: str) -> Iterator[None]:
    """Show what this thread prints meanwhile as the prints of `guard`."""
    _enter()
    outer = getattr(_local, "guard", None)
    _local.guard = guard
    try:
        yield
    finally:
        _local.guard = outer
        _leave()


def _enter() -> None:
    with _LOCK:
        _running[0] += 1
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Router):
                setattr(sys, name, _Router(stream))


def _leave() -> None:
    with _LOCK:
        _running[0] -= 1
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not _running[0] and isinstance(stream, _Router):
                setattr(sys, name, stream.stream)
