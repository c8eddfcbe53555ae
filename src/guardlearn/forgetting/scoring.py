"""Distributions of one generator under two adapters, on the same tokens, within bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from guardlearn.types import Generator

__all__ = ["Adapter", "Pair", "Row", "Scorer", "compared", "obstacle"]

Adapter = str | Path | None
"""An adapter as generators take it; None: the bare base."""

Row = tuple[Sequence[int], int]
"""(tokens, first): distributions after tokens[first] and all that follow are looked at."""

_HELD_BYTES = 256 << 20
"""Distributions of one adapter that are held while the other's are computed."""


class Scorer(Generator, Protocol):
    """A generator that gives probabilities, as `generators.transformers` does."""

    tokenizer: Any
    sampling: Any

    @property
    def context(self) -> int:
        """Most tokens of a row."""
        ...

    @property
    def vocabulary(self) -> int:
        """Tokens that a distribution is over."""
        ...

    def log_probabilities(self, rows: Sequence[Row]) -> Iterable[Any]:
        """Yield (row, position, log-probabilities) along given tokens, under the adapter in use."""
        ...

    def weights_digest(self) -> str:
        """Return a digest of what the adapter in use made of the weights."""
        ...

    def use_adapter(self, adapter: Adapter) -> None:
        """Switch to an adapter, or to the bare base with None."""
        ...


class Pair(NamedTuple):
    """Neighbouring distributions of one row under both adapters."""

    row: int
    position: int
    first_TV: Any
    """Log-probabilities under the first adapter, (positions, vocabulary), float32."""
    second_TV: Any


def obstacle(generator: Generator) -> str:
    """Return why a generator's probabilities cannot be looked at, "" where they can."""
    wanted = ("log_probabilities", "weights_digest", "tokenizer")
    if all(hasattr(generator, name) for name in wanted):
        return ""
    kind = dict(generator.describe()).get("generator", type(generator).__name__)
    return f"generator {kind!r} gives no probabilities; a local model (generator 'transformers') does"


def compared(generator: Scorer, first: Adapter, second: Adapter, rows: Sequence[Row]) -> Iterator[Pair]:
    """Yield the distributions along `rows` under both adapters; the second is left in use.

    The adapters take turns over as many rows as `_HELD_BYTES` hold, at least one.
    """
    most = _HELD_BYTES // (4 * generator.vocabulary)
    for start, chunk in _chunks(rows, most):
        generator.use_adapter(first)
        held = list(generator.log_probabilities(chunk))
        generator.use_adapter(second)
        for before, after in zip(held, generator.log_probabilities(chunk), strict=True):
            yield Pair(start + before[0], before[1], before[2], after[2])


def _chunks(rows: Sequence[Row], most: int) -> Iterator[tuple[int, Sequence[Row]]]:
    """Yield (place of the first, rows) with at most `most` positions, or one row."""
    start, taken = 0, 0
    for place, (tokens, first) in enumerate(rows):
        positions = len(tokens) - first
        if place > start and taken + positions > most:
            yield start, rows[start:place]
            start, taken = place, 0
        taken += positions
    if start < len(rows):
        yield start, rows[start:]
