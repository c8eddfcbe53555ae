"""Finds where an answer ends: at the first stop string in its text. Standard library only.

A stop string can only be completed by a token that contains its last character, so whole texts are decoded at those
tokens alone; every other token costs one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StopFinder", "cut_after_stop"]

_UNDECODED = "\ufffd"
"""What a tokenizer shows for a token that is a part of a character; it may complete any character."""


def cut_after_stop(text: str, stops: Sequence[str]) -> str | None:
    """Return `text` up to and including the stop string that ends first, or None where there is none.

    Of two that start at the same place, the shorter one ends first.
    """
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else None


class StopFinder:
    """Watches answers grow token by token; one finder serves every row of one generator."""

    def __init__(self, stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        """Watch for `stops`; `decode` turns token ids into text."""
        self._stops = tuple(stops)
        self._decode = decode
        self._last_characters = {stop[-1] for stop in stops} | {_UNDECODED}
        self._may_complete: dict[int, bool] = {}

    def cut(self, tokens: Sequence[int]) -> str | None:
        """Return the finished text if the newest of `tokens` completed a stop string, else None.

        Args:
            tokens: the answer's token ids so far, at least one; earlier calls have seen all but the last.
        """
        if not self._stops or not self._completes(tokens[-1]):
            return None
        return cut_after_stop(self._decode(tokens), self._stops)

    def _completes(self, token: int) -> bool:
        known = self._may_complete.get(token)
        if known is None:
            known = not self._last_characters.isdisjoint(self._decode([token]))
            self._may_complete[token] = known
        return known
