"""What a run of the loop may spend, what is left of it, and how fast it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import msgspec

from guardlearn.chains import Attempt, Chain
from guardlearn.errors import UsageError
from guardlearn.types import Generation, OnProgress

__all__ = ["Budget", "Meter", "Purse"]


_FIRST_CALL = 16
"""Answers in the first call of a run whose time is limited: how long they take is not known yet."""
_CHARS_A_TOKEN = 4
"""What English text and code come to, roughly."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What may be spent; once a part is used up no attempt starts, and those in flight are finished.

    Raises:
        UsageError: a limit that is not above 0.
    """

    tokens: int | None = None
    """Tokens of all answers, those of earlier runs included; None: no limit."""
    prompt_tokens: bool = False
    """Tokens of prompts count too."""
    attempts: int | None = None
    """Attempts, those of earlier runs included; None: no limit."""
    seconds: float | None = None
    """Wall time of this run alone; None: no limit."""

    def __post_init__(self) -> None:
        for name in ("tokens", "attempts", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"the budget of {name} is {value}; allowed: above 0, or none for no limit")

    def spent_by(self, generation: Generation) -> int:
        """Return the tokens an answer takes from the budget; where a server counts none, its characters / 4."""
        if not generation.tokens_known:
            return math.ceil(len(generation.text) / _CHARS_A_TOKEN)
        return generation.completion_tokens + (generation.prompt_tokens if self.prompt_tokens else 0)


class Purse:
    """What is left of a budget."""

    def __init__(
        self, budget: Budget, chains: Iterable[Chain], unjudged: Iterable[Attempt], most_tokens: int | None
    ) -> None:
        """Take a budget and what was spent before.

        Args:
            budget: what may be spent in all.
            chains: their attempts were paid.
            unjudged: so were these answers.
            most_tokens: most tokens of an answer; None: unknown.
        """
        self.budget = budget
        self.attempts = self.tokens = 0
        self._most_tokens = most_tokens
        for chain in chains:
            for attempt in chain.attempts:
                self.spend(attempt.generation)
        for attempt in unjudged:
            self.spend(attempt.generation)
        self._before, self._began = self.attempts, time.monotonic()

    def spend(self, generation: Generation) -> None:
        """Pay for an answer."""
        self.attempts += 1
        self.tokens += self.budget.spent_by(generation)

    def empty(self) -> tuple[str, str]:
        """Return the part that is used up and a sentence about it; ("", "") where none is."""
        budget = self.budget
        if budget.attempts is not None and self.attempts >= budget.attempts:
            return "attempts", f"the budget of {budget.attempts} attempts is used up"
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return "tokens", f"the budget of {budget.tokens} tokens is used up"
        if budget.seconds is not None and time.monotonic() - self._began >= budget.seconds:
            return "seconds", f"the budget of {budget.seconds:g} seconds is used up"
        return "", ""

    def room(self, writing: int, unjudged: int, batched: bool) -> int:
        """Return how many attempts may start now, so that those that start fit what is left.

        An answer is taken to cost what answers cost so far, the first ones the most an answer can cost.

        Args:
            writing: answers that are being written and not paid yet.
            unjudged: answers that wait for their verdict.
            batched: a call takes many and ends with the last; False: the time they take is none of each other's.
        """
        if self.empty()[0]:
            return 0
        budget, rooms = self.budget, [2**31]
        if budget.attempts is not None:
            rooms.append(budget.attempts - self.attempts - writing)
        if budget.tokens is not None:
            usual = self.tokens / self.attempts if self.attempts else float(self._most_tokens or budget.tokens)
            rooms.append(math.ceil((budget.tokens - self.tokens) / max(1.0, usual)) - writing)
        if budget.seconds is not None and batched:
            gone, made = time.monotonic() - self._began, self.attempts - self._before - unjudged
            fit = math.ceil(made / gone * (budget.seconds - gone)) if made > 0 and gone > 0 else _FIRST_CALL
            rooms.append(fit - writing - unjudged)
        return max(0, min(rooms))


class Meter:
    """Tells how far the loop is, and how fast."""

    def __init__(self, chains: Sequence[Chain], r_max: int, on_progress: OnProgress | None) -> None:
        self._r_max, self._report = r_max, on_progress
        self._chains = len(chains)
        self._settled = sum(not chain.open(r_max) for chain in chains)
        # an attempt counts one, a settled chain as many as it could have taken: nearly even steps
        self._spent = sum(len(chain.attempts) if chain.open(r_max) else r_max for chain in chains)
        self._made = self._accepted = self._tokens = 0
        self._began = time.monotonic()

    def count(self, attempt: Attempt, chain: Chain, purse: Purse) -> None:
        """Note an attempt, and report."""
        self._made += 1
        self._accepted += attempt.verdict.passed
        self._tokens += attempt.generation.completion_tokens
        if chain.open(self._r_max):
            self._spent += 1
        else:
            self._settled += 1
            self._spent += self._r_max - len(chain.attempts) + 1
        if self._report:
            self._report(self._spent, self._r_max * self._chains, self._note(purse))

    def _note(self, purse: Purse) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        parts = [
            f"{self._settled} of {self._chains} chains settled",
            f"{self._accepted / self._made:.0%} accepted",
            f"{self._made / seconds:.1f} attempts/s",
            f"{self._tokens / seconds:.0f} tokens/s",
        ]
        budget = purse.budget
        if budget.tokens is not None:
            parts.append(f"{purse.tokens / budget.tokens:.0%} of the tokens")
        if budget.attempts is not None:
            parts.append(f"{purse.attempts / budget.attempts:.0%} of the attempts")
        return ", ".join(parts)
