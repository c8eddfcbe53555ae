"""How answers are drawn: the settings of π_θ that are stored with every item. Standard library only."""

from __future__ import annotations

import dataclasses
from typing import Any

from guardlearn.errors import UsageError

__all__ = ["SamplingConfig"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen and when an answer ends."""

    temperature: float = 0.7
    """≥ 0; 0 always takes the likeliest token."""
    top_k: int | None = 50
    """Only the k likeliest tokens can be drawn; None: all of them (slower)."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach this probability can be drawn, in (0, 1]; None: all of top_k."""
    max_new_tokens: int = 512
    """Longest answer in tokens, EOS included."""
    seed: int = 0
    """With a request's key it decides every draw."""
    stop: tuple[str, ...] = ()
    """An answer ends right after the first of these strings it contains; EOS always ends it."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UsageError: names the field, its value and what is allowed.
        """
        stop: object = self.stop
        if isinstance(stop, str):  # a lone string would be read as its letters
            raise UsageError(f"stop must be a tuple of strings, got the string {stop!r}; write ({stop!r},)")
        object.__setattr__(self, "stop", tuple(self.stop))
        checks = {
            "temperature": (0.0 <= self.temperature < float("inf"), "a finite number of at least 0"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1, or None for all tokens"),
            "top_p": (self.top_p is None or 0.0 < self.top_p <= 1.0, "above 0 and at most 1, or None"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "stop": (all(isinstance(text, str) and text for text in self.stop), "strings that are not empty"),
        }
        for field, (right, allowed) in checks.items():
            if not right:
                raise UsageError(f"{field} is {getattr(self, field)!r}; allowed: {allowed}")

    def describe(self) -> dict[str, Any]:
        """Return the settings as a JSON object, as stored with each item."""
        return dataclasses.asdict(self) | {"stop": list(self.stop)}
