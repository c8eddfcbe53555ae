"""Opens ℛ for a command; a folder of AtomicGuard stores, which is imported first, shows its progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from guardlearn.cli import console
from guardlearn.types import OnProgress

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG

__all__ = ["opened"]

_PATIENCE_SECONDS = 1.0
"""A short step shows nothing."""


@contextlib.contextmanager
def opened(target: str | Path) -> Iterator[ArtifactDAG]:
    """Open ℛ for reading, as `ArtifactDAG.load` does; close it afterwards."""
    from guardlearn.dag import ArtifactDAG

    with contextlib.ExitStack() as shown:
        dag = ArtifactDAG.load(target, read_only=True, on_progress=_late(shown))
    with dag:
        yield dag


def _late(shown: contextlib.ExitStack) -> OnProgress:
    """Return what shows progress once a step has taken a while, until `shown` ends."""
    began, shows = time.monotonic(), list[OnProgress]()

    def update(done: int, total: int, note: str) -> None:
        if not shows:
            if time.monotonic() - began < _PATIENCE_SECONDS:
                return
            shows.append(shown.enter_context(console.progress("open")))
        shows[0](done, total, note)

    return update
