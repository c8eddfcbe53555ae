"""Chains of attempts at one specification: what an attempt is, and when a chain is at its end.

Definition 7: a chain ends when an attempt is accepted or fatal, or at R_max attempts; one without a verdict waits.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from guardlearn.errors import GuardlearnError
from guardlearn.types import ArtifactStatus, FeedbackEntry, Generation, Guard, Message, Specification, Verdict

__all__ = ["Attempt", "Chain", "ChainKey", "Outcome", "constraints_of"]

ChainKey = tuple[str, int]
"""(specification id, sample)."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One judged answer."""

    specification: Specification
    sample: int
    """0-based."""
    attempt: int
    """1-based position in its chain."""
    generation: Generation
    verdict: Verdict
    history: tuple[FeedbackEntry, ...] = ()
    """H before this attempt, oldest first."""
    messages: tuple[Message, ...] = ()
    request_key: str = ""
    """Key of its request, which keyed the sampling noise; "" where it was not kept."""

    @property
    def chain(self) -> ChainKey:
        """The chain it belongs to."""
        return self.specification.id, self.sample


class Chain:
    """Where one chain stands."""

    def __init__(self, specification: Specification, sample: int, attempts: Sequence[Attempt], settled: bool) -> None:
        """Take what is known of it.

        Args:
            specification: what it answers.
            sample: 0-based.
            attempts: made before, in order.
            settled: it needs no further attempt, whatever the last verdict.
        """
        self.specification, self.sample, self.settled = specification, sample, settled
        self.attempts = list(attempts)

    @property
    def key(self) -> ChainKey:
        """Its name."""
        return self.specification.id, self.sample

    def open(self, r_max: int) -> bool:
        """Whether it needs another attempt."""
        if self.settled or not self.attempts:
            return not self.settled
        last = self.attempts[-1].verdict
        return last.status is ArtifactStatus.REJECTED and not last.fatal and len(self.attempts) < r_max

    def history(self) -> tuple[FeedbackEntry, ...]:
        """Return H before its next attempt."""
        return tuple(
            FeedbackEntry(artifact=attempt.generation.text, feedback=attempt.verdict.feedback)
            for attempt in self.attempts
        )


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of the loop left."""

    attempts: list[Attempt]
    """All attempts, earlier ones included, by specification, sample and attempt."""
    unfinished: dict[ChainKey, str]
    """Chains that are not at their end, and why: a later run goes on with them."""
    stopped: str = ""
    """Why no more was started: "tokens", "attempts", "seconds", "interrupted", "unavailable"; "": nothing did."""
    failure: GuardlearnError | None = None
    """The last error of a generator that left a chain unfinished."""


def constraints_of(spec: Specification, guard: Guard) -> str:
    """Return Ω of a specification: its own, or the guard's default."""
    return guard.constraints if spec.constraints is None else spec.constraints
