"""Ctrl-C while a step runs that can end early: the first asks it to end, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import typer

__all__ = ["INTERRUPTED", "leave", "stoppable"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended (128 + SIGINT)."""


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yield what says whether Ctrl-C was pressed; a second one ends the process where it is."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        asked.set()
        os.write(2, b"\nstopping; Ctrl-C again ends at once\n")  # a handler may run inside a print

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def leave(code: int) -> NoReturn:
    """End the process with `code`; a thread that still waits for an answer does not keep it."""
    from guardlearn.engines.local import THREADS

    if any(thread.name.startswith(THREADS) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)
