"""The stop rule: whether another round is likely to help, from what the last ones showed. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from guardlearn.dag.rounds import RoundStep, State
from guardlearn.loop.results import RoundResult, result_of

__all__ = ["Advice", "advice"]


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to go on."""

    stop: bool
    reason: str
    """In one line; "" where nothing speaks against another round."""


def advice(rounds: Sequence[Sequence[RoundStep]], patience: int, min_gain: float) -> Advice:
    """Return whether rounds still help.

    Rounds no longer help once the last `patience` measured ones were all refused for want of a gain. Where the interval
    of each ends below `min_gain`, there is nothing left to find; where it does not, the held-out set cannot tell, and a
    larger one is what helps. A round that was promoted, or refused for another reason, starts the count anew.

    Args:
        rounds: steps of each round of one learner, the first one first.
        patience: rounds in a row; >= 1.
        min_gain: the gate's, a share.
    """
    idle: list[RoundResult] = []
    for steps in reversed(rounds):
        if not steps[-1].state.decided:
            continue
        if not _without_gain(steps):
            break
        idle.append(result_of(steps))
    if len(idle) < patience:
        return Advice(stop=False, reason="")
    last = idle[:patience]
    highs = [each.gain_high for each in last if each.gain_high is not None]
    most = max(highs) if len(highs) == len(last) else None
    if most is not None and most < min_gain:
        return Advice(
            stop=True,
            reason=f"the last {patience} rounds gained at most {_points(most)} (least wanted: {_points(min_gain)}): "
            "rounds no longer help with this model and these traces",
        )
    seen = last[0].detectable
    able = f"it finds gains from {_points(seen)} on" if seen is not None else "it finds no gain at all"
    return Advice(
        stop=True,
        reason=f"the last {patience} rounds showed no gain, and this held-out set cannot tell small ones: {able} at "
        "its last look; more held-out groups help, not more rounds",
    )


def _without_gain(steps: Sequence[RoundStep]) -> bool:
    """Whether a round changed nothing or was refused for want of a gain."""
    last = steps[-1]
    decision = last.details.get("decision")
    if last.state is not State.REFUSED or decision is None:
        return False
    failed = {check["name"] for check in decision["checks"] if not check["passed"]}
    return bool(failed & {"superiority", "difference"})


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
