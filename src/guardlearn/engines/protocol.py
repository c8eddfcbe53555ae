"""What the loop asks of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from guardlearn.types import Generation, GenerationRequest, GuardContext, Verdict

__all__ = ["Engine", "OnAnswer"]

OnAnswer = Callable[[int, Generation], None]
"""Called with (index of the request, its answer) from a thread of the engine."""


class Engine(Protocol):
    """Runs a generator and a guard somewhere; every method returns at once.

    Work handed over is done at least once: where a worker dies, its task runs again. Each future gives one result.
    """

    @property
    def lanes(self) -> int:
        """Generate calls it runs at once; ≥ 1."""
        ...

    @property
    def batch(self) -> int:
        """Requests a generate call should hold at most; 0: all that wait."""
        ...

    @property
    def judges(self) -> int:
        """Guards it runs at once, now; ≥ 1. More may be handed over; they wait."""
        ...

    def generate(self, requests: Sequence[GenerationRequest], on_answer: OnAnswer) -> Future[list[Generation]]:
        """Answer requests; `on_answer` is called for each as it finishes, before the future is done.

        The future raises what the generator raised: `GeneratorUnavailable` where asking again later may help,
        `RequestRefused` where one request never can be answered.
        """
        ...

    def judge(self, artifact: str, context: GuardContext) -> Future[Verdict]:
        """Run the guard; a guard that raises gives "no verdict".

        The future raises `GuardError` where the guard returned something that is no verdict.
        """
        ...

    def close(self) -> None:
        """Give up what is still in flight and free what the engine holds; may be called twice."""
        ...
