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
_FIRST_INTERVAL, _LAST_INTERVAL = 8, 128
"""Steps between trials; doubled each time the choice stands."""


def thread_counts(device: torch.device) -> tuple[int, ...]:
    """Return the counts worth trying on a device, the usual one first."""
    most = int(torch.get_num_threads())
    return (most, 1) if device.type == "cpu" and most > 1 else (most,)


class Pace:
    """Remembers, over all runs of one generator, which of the counts is faster at the moment."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        """Choose among `counts`, one or two, beginning with the first."""
        self._counts = counts
        self._chosen = 0
        self._interval = _FIRST_INTERVAL
        self._taken = 0
        self._seconds: list[float] = []

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Compute with the chosen count inside, and with what torch had before outside."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._counts[self._chosen])
        try:
            yield
        finally:
            torch.set_num_threads(before)
            self._taken, self._seconds = 0, []  # a trial cut short says nothing

    @contextlib.contextmanager
    def step(self) -> Generator[None]:
        """Time one step; now and then let a few run with the other count and keep the faster."""
        started = time.perf_counter()
        yield
        if len(self._counts) == 1:
            return
        self._taken += 1
        since = self._taken - self._interval
        if since > -_TRIAL_STEPS:  # the last steps before a trial, then the trial's
            self._seconds.append(time.perf_counter() - started)
        if since == 0:
            torch.set_num_threads(self._counts[1 - self._chosen])
        elif since == _TRIAL_STEPS:
            self._decide()

    def _decide(self) -> None:
        usual, other = sum(self._seconds[:_TRIAL_STEPS]), sum(self._seconds[_TRIAL_STEPS:])
        if other < usual:
            self._chosen, self._interval = 1 - self._chosen, _FIRST_INTERVAL
        else:
            self._interval = min(2 * self._interval, _LAST_INTERVAL)
        torch.set_num_threads(self._counts[self._chosen])
        self._taken, self._seconds = 0, []
