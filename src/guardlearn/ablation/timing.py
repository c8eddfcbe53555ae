"""Equal wall time: what a step of an arm costs, and how many of them the same time holds.

One short training an arm is timed from outside, step by step. From the times at which its steps were done, and from how
large their rows were, follows what a step of mean size takes; what is left of the wall time (loading, references,
saving) is there without any step. Where arms do the same in it, how long that took differs by chance only, and the
median of those arms stands for each. Pure functions; who measures is `calibrating`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import msgspec

from guardlearn.errors import UsageError

__all__ = ["Cost", "cost_of", "deviation", "levelled", "seconds_for", "steps_within"]

_LEAST_SECONDS = 1e-3
"""A step is taken to last so long at least: the clock and the pipe between the processes tell no less."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a training costs in wall seconds."""

    start: float
    """Until its first stage begins."""
    rest: float
    """What else is there without any step."""
    steps: list[float]
    """A step of each stage, of the mean size of its steps."""


def cost_of(arrivals: Mapping[int, float], wall: float, sizes: Sequence[Sequence[float]]) -> Cost:
    """Return what a training costs.

    Args:
        arrivals: when each step was done, in seconds since the start; steps are numbered from 1 over all stages. 0 is
            when the first stage began, where that was said.
        wall: seconds from start to end.
        sizes: of each stage's steps, the same number of them; 1 is the mean of all steps that its rows make. Rows
            differ in length, and the few steps that are timed may be of the short or of the long ones.
    """
    steps, done = [], 0
    for stage in sizes:
        lasted = arrivals[done + len(stage)] - arrivals[done + 1]
        # the first step of a stage carries what is done once: it is counted among the rest
        steps.append(max(_LEAST_SECONDS, lasted / (math.fsum(stage[1:]) or 1.0)))
        done += len(stage)
    start = arrivals.get(0, 0.0)
    spent = math.fsum(each * math.fsum(stage) for each, stage in zip(steps, sizes, strict=True))
    return Cost(start=start, rest=max(0.0, wall - start - spent), steps=steps)


def levelled(costs: Mapping[str, Cost], alike: Collection[str]) -> dict[str, Cost]:
    """Return the costs with what is the same work for several arms set to their median.

    Args:
        costs: by arm. All start a process and load the model.
        alike: arms that do the same beside their steps too: those without references, which depend on the rows.
    """
    start = statistics.median(cost.start for cost in costs.values())
    rest = {name: cost.rest for name, cost in costs.items()}
    shared = [rest[name] for name in alike]
    rest |= dict.fromkeys(alike, statistics.median(shared)) if shared else {}
    return {name: msgspec.structs.replace(cost, start=start, rest=rest[name]) for name, cost in costs.items()}


def seconds_for(cost: Cost, steps: Sequence[int]) -> float:
    """Return the wall seconds that so many steps of each stage take."""
    return cost.start + cost.rest + math.fsum(each * count for each, count in zip(cost.steps, steps, strict=True))


def steps_within(name: str, cost: Cost, seconds: float, first_stage: float) -> list[int]:
    """Return the steps of each stage that a time holds, the nearest numbers to it.

    Args:
        name: of the arm, for messages.
        cost: the arm's.
        seconds: wall time of the training.
        first_stage: share of the time for steps that the first of two stages gets.

    Raises:
        UsageError: the time holds not one step of each stage.
    """
    left = seconds - cost.start - cost.rest
    if len(cost.steps) == 1:
        steps = [round(left / cost.steps[0])]
    else:
        steps = [round(first_stage * left / cost.steps[0])]
        steps.append(round((left - steps[0] * cost.steps[0]) / cost.steps[1]))
    if min(steps) < 1:
        least = seconds_for(cost, [1] * len(steps)) / 60
        raise UsageError(
            f"{seconds / 60:.2g} minutes hold no step of arm {name!r}, which takes {least:.2g} for one a stage; give "
            "more --minutes, or leave it out"
        )
    return steps


def deviation(walls: Sequence[float]) -> float | None:
    """Return how far the wall time farthest from the median lies from it, as a share; None for fewer than two."""
    if len(walls) < 2:
        return None
    median = statistics.median(walls)
    return max(abs(wall - median) for wall in walls) / median
