"""Judges many artifacts on an engine, a bounded number ahead, and hands verdicts back as they come."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from guardlearn.engines import Engine
from guardlearn.errors import GuardError
from guardlearn.guards import failure
from guardlearn.types import GuardContext, Verdict

__all__ = ["Task", "judgements"]

_AHEAD = 4
"""Tasks handed over, for each guard that the engine runs at once."""


class Task(NamedTuple):
    """One artifact to be judged."""

    place: int
    """Which of the audit's subjects it belongs to."""
    artifact: str
    context: GuardContext


def judgements(engine: Engine, tasks: Iterable[Task]) -> Iterator[tuple[int, Verdict]]:
    """Yield (place, verdict) of every task, in the order of completion.

    Args:
        engine: runs the guard; one that raises, or returns what is no verdict, gave none.
        tasks: taken as they are needed, in this thread.
    """
    waiting: dict[concurrent.futures.Future[Verdict], int] = {}
    remaining = iter(tasks)
    while True:
        while len(waiting) < engine.judges * _AHEAD and (task := next(remaining, None)) is not None:
            waiting[engine.judge(task.artifact, task.context)] = task.place
        if not waiting:
            return
        finished, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in finished:
            place = waiting.pop(future)
            try:
                yield place, future.result()
            except GuardError as error:
                yield place, failure(error)
