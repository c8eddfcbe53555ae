"""What a round of learning measured besides its evidence, and what it decided, as the rows of ℛ tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from guardlearn.dag.rounds import RoundStep, State
from guardlearn.errors import DataError, UsageError
from guardlearn.evidence import Evidence
from guardlearn.forgetting import Forgetting
from guardlearn.report.history import RoundRow

__all__ = ["Condition", "OtherActionPair", "RoundStory", "evidence_of_round", "measured_rounds", "round_story"]


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of promotion (Definition of the gate in `guardlearn.gate`)."""

    name: str
    passed: bool
    found: str
    needed: str


class OtherActionPair(msgspec.Struct, frozen=True, kw_only=True):
    """First attempts of an action pair that was not trained."""

    name: str
    specs: int
    groups: int
    base: float | None
    candidate: float | None
    difference: float | None
    low: float | None
    high: float | None


class RoundStory(msgspec.Struct, frozen=True, kw_only=True):
    """A round; what it did not measure is empty."""

    learner: str
    round: int
    state: str
    """promoted, refused, or the step it has reached."""
    reason: str = ""
    look: int = 0
    """The how manyth test on these held-out specifications it was, from 1; 0: not known."""
    checked: str = ""
    """Whether the candidate differs from what was live, and what that rests on."""
    conditions: tuple[Condition, ...] = ()
    forgetting: Forgetting | None = None
    others: tuple[OtherActionPair, ...] = ()
    unmeasured: dict[str, str] = {}
    """What was asked for and could not be measured, and why."""
    rounds: tuple[RoundRow, ...] = ()
    """All rounds of the learner, the first one first."""
    measured_on: dict[int, str] = {}
    """By round: digest of its held-out specifications; equal ones can be compared."""


def measured_rounds(steps: Sequence[RoundStep]) -> list[int]:
    """Return the numbers of the rounds that were measured, in order."""
    return sorted({step.round for step in steps if step.state is State.MEASURED})


def round_story(steps: Sequence[RoundStep], number: int, rows: Sequence[RoundRow] = ()) -> RoundStory:
    """Return what the rows of ℛ tell of a round.

    Args:
        steps: all of one learner.
        number: the round's.
        rows: what is known of all its rounds.

    Raises:
        UsageError: there is no such round.
        DataError: a row is not what a round leaves.
    """
    own = [step for step in steps if step.round == number]
    if not own:
        raise UsageError(f"there is no round {number}; rounds: {_listed(sorted({step.round for step in steps}))}")
    details = {step.state: step.details for step in own}
    measured, last = details.get(State.MEASURED, {}), own[-1]
    try:
        return RoundStory(
            learner=last.learner,
            round=number,
            state=last.state.value,
            reason=str(last.details.get("reason", "")) if last.state.decided else "",
            look=int(details[State.PLANNED].get("look", 0)),
            checked=str(measured.get("checked", "")),
            conditions=_conditions(last.details) if last.state.decided else (),
            forgetting=msgspec.convert(measured.get("forgetting"), Forgetting | None),
            others=tuple(_other(name, each) for name, each in (measured.get("regressions") or {}).items()),
            unmeasured=dict(measured.get("unmeasured") or {}),
            rounds=tuple(rows),
            measured_on=_measured_on(steps),
        )
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise DataError(f"round {number} of {last.learner} cannot be read ({error}); run: guardlearn verify") from error


def evidence_of_round(steps: Sequence[RoundStep], number: int) -> tuple[Evidence, str]:
    """Return the evidence that ℛ keeps of a round, which is without its single pairs, and the file that held them.

    Raises:
        UsageError: the round was not measured.
        DataError: what ℛ holds is no evidence.
    """
    found = [step.details for step in steps if step.round == number and step.state is State.MEASURED]
    evidence = found[0].get("evidence") if found else None
    if evidence is None:
        there = _listed(measured_rounds(steps))
        raise UsageError(f"round {number} has no evidence: nothing of it was sampled; measured rounds: {there}")
    try:
        read = msgspec.convert(evidence | {"per_spec": []}, Evidence)
    except msgspec.ValidationError as error:
        raise DataError(f"the evidence of round {number} cannot be read ({error}); run: guardlearn verify") from error
    return read, str(found[0].get("evidence_file", ""))


def _conditions(decided: Mapping[str, Any]) -> tuple[Condition, ...]:
    checks = (decided.get("decision") or {}).get("checks") or ()
    return tuple(msgspec.convert(check, Condition) for check in checks)


def _other(name: str, evidence: Mapping[str, Any]) -> OtherActionPair:
    difference = evidence.get("difference") or {}
    return OtherActionPair(
        name=name,
        specs=evidence.get("specs", 0),
        groups=evidence.get("groups", 0),
        base=_rate(evidence.get("base")),
        candidate=_rate(evidence.get("candidate")),
        difference=difference.get("rate"),
        low=difference.get("low"),
        high=difference.get("high"),
    )


def _rate(performance: Mapping[str, Any] | None) -> float | None:
    rate: float | None = ((performance or {}).get("first_attempt") or {}).get("rate")
    return rate


def _measured_on(steps: Sequence[RoundStep]) -> dict[int, str]:
    plans = {step.round: step.details for step in steps if step.state is State.PLANNED}
    measured = set(measured_rounds(steps))
    found = {number: str((plan.get("held_out") or {}).get("digest", "")) for number, plan in plans.items()}
    return {number: digest for number, digest in sorted(found.items()) if digest and number in measured}


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
