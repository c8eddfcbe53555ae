"""Chooses how many threads a decoding step computes with, by timing steps.

A step is hundreds of small parallel regions, and each ends when its slowest thread does. On quiet cores all of them
together are fastest; where other processes run, the wait for a thread that was put aside can make a step many times
slower than one thread alone. Which holds changes by the minute, so the loop tries now and then. Only sizes whose
numbers are the same for both counts are used (`steady`), so the choice never shows in an answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

import torch

__all__ = ["Pace", "thread_counts"]

_TRIAL_STEPS = 3
_SLOW = 2.0
"""A step this many times slower than usual starts a trial at once."""
_MOST_STEPS_BETWEEN = 128
"""Steps between trials begin with 1 and double each time the choice stands."""


def thread_counts(device: torch.device) -> tuple[int, ...]:
    """Return the counts worth trying on a device, the usual one first."""
    most = int(torch.get_num_threads())
    return (most, 1) if device.type == "cpu" and most > 1 else (most,)


class Pace:
    """Remembers, over all runs of one generator, which count is faster at the moment for one kind of step."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        """Choose among `counts`, one or two, beginning with the first."""
        self._counts = counts
        self._usual = 0.0
        """Seconds of a step with the chosen count, 0 before the first."""
        self._between, self._since = 1, 0
        self._trial: list[float] | None = None

    @contextlib.contextmanager
    def step(self) -> Generator[None]:
        """Compute and time one step inside; torch's own setting is back outside."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._counts[0 if self._trial is None else 1])
        started = time.perf_counter()
        try:
            yield
        finally:
            torch.set_num_threads(before)
        if len(self._counts) > 1:
            self._record(time.perf_counter() - started)

    def _record(self, seconds: float) -> None:
        if self._trial is not None:
            self._trial.append(seconds)
            if seconds > self._usual or len(self._trial) == _TRIAL_STEPS:  # one slow step is enough to lose
                self._decide(sum(self._trial) / len(self._trial), seconds <= self._usual)
            return
        slow = self._usual > 0 and seconds > _SLOW * self._usual
        self._usual = seconds if slow or not self._usual else (self._usual + seconds) / 2
        self._since += 1
        if slow or self._since >= self._between:
            self._trial = []

    def _decide(self, mean: float, won: bool) -> None:
        if won:
            self._counts = self._counts[::-1]  # the chosen count stands first
            self._usual, self._between = mean, 1
        else:
            self._between = min(2 * self._between, _MOST_STEPS_BETWEEN)
        self._since, self._trial = 0, None
