"""The sampling loop: many prompts at once, each row ending on its own.

Where the time of a simple loop goes, and what is done about it: the prompts' common prefix is computed once; prompts
are packed without padding; only each row's last position meets the vocabulary matrix; a finished row leaves the batch
at once and a waiting one may take its slot; text is looked at only where a stop string could have ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from guardlearn.errors import ModelError
from guardlearn.generators.cache import RowCache, Step
from guardlearn.generators.drawing import draw
from guardlearn.generators.sampling import SamplingConfig
from guardlearn.generators.stops import StopFinder

__all__ = ["Answer", "Decoder", "Prompt"]

_PACK_TOKENS = 2048
"""Most prompt tokens of one forward pass: enough to fill the matrix units, little enough to bound memory."""
_SHARED_TOKENS = 8
"""Shortest common prefix worth a forward pass of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """One row to be."""

    index: int
    tokens: Sequence[int]
    """At least one."""
    seed: int
    """From `drawing.row_seed`."""
    limit: int
    """Most tokens to draw, at least 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One finished row."""

    index: int
    tokens: Sequence[int]
    """Drawn tokens, EOS included."""
    text: str | None
    """Text up to and including a stop string, None where the row ended otherwise."""
    ended: bool
    """False where the limit cut it."""
    seconds: float
    """The row's share of the wall time."""


@dataclasses.dataclass(slots=True)
class _Row:
    prompt: Prompt
    drawn: list[int] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def length(self) -> int:
        """Tokens in the cache: all but the newest, which the next pass takes."""
        return len(self.prompt.tokens) + len(self.drawn) - 1


class Decoder:
    """Decodes with one model under one sampling configuration."""

    def __init__(self, model: Any, sampling: SamplingConfig, finder: StopFinder, eos: frozenset[int]) -> None:
        """Use `model`, loaded with `cache.ATTENTION`; a token of `eos` ends a row, as does what `finder` finds."""
        self._model = model
        self._sampling = sampling
        self._finder = finder
        self._eos = eos

    def run(self, prompts: Sequence[Prompt], rows: int) -> Iterator[Answer]:
        """Yield every prompt's answer as its row finishes.

        Args:
            prompts: any number.
            rows: most rows decoded at once, at least 1.
        """
        if not prompts:
            return
        waiting = deque(sorted(prompts, key=lambda prompt: -len(prompt.tokens)))  # like lengths waste no attention
        slots = min(rows, len(waiting))
        cache = RowCache(slots + 1, max(len(prompt.tokens) + prompt.limit for prompt in prompts))
        shared = self._share(cache, prompts, slots)
        active: list[_Row] = []
        while waiting or active:
            clock = time.perf_counter()
            if waiting and len(active) <= slots // 2:  # half a batch at a time: a pass over few prompts is dear
                fresh = [_Row(waiting.popleft()) for _ in range(min(slots - len(active), len(waiting)))]
                self._admit(cache, fresh, len(active), shared, slots)
                active += fresh
            else:
                self._advance(cache, active)
            share = (time.perf_counter() - clock) / len(active)
            for row in active:
                row.seconds += share
            finished = [answer for row in active if (answer := self._answer(row))]
            if finished:
                active = self._compact(cache, active, {answer.index for answer in finished})
            yield from finished

    def _share(self, cache: RowCache, prompts: Sequence[Prompt], spare: int) -> int:
        """Compute the prompts' common prefix once, in the spare slot; return its length, 0 if not worth it."""
        first, last = (pick(list(prompt.tokens) for prompt in prompts) for pick in (min, max))
        shortest = min(len(prompt.tokens) for prompt in prompts)
        length = 0
        while length < shortest - 1 and first[length] == last[length]:  # extremes in order agree: all do
            length += 1
        if len(prompts) < 2 or length < _SHARED_TOKENS:
            return 0
        for start in range(0, length, _PACK_TOKENS):
            stop = min(start + _PACK_TOKENS, length)
            self._forward(cache, [(spare, start, stop)], first[start:stop], [stop - start - 1])
        return length

    def _admit(self, cache: RowCache, fresh: Sequence[_Row], first: int, shared: int, spare: int) -> None:
        """Compute the prompts of new rows, in slots from `first` on, and draw their first tokens."""
        if shared:
            cache.copy([spare] * len(fresh), range(first, first + len(fresh)), shared)
        for pieces in _packs([(first + n, shared, len(row.prompt.tokens)) for n, row in enumerate(fresh)]):
            rows = [fresh[slot - first] for slot, _, _ in pieces]
            tokens: list[int] = []
            ends: list[int] = []
            for row, (_, start, stop) in zip(rows, pieces, strict=True):
                tokens += row.prompt.tokens[start:stop]
                ends.append(len(tokens) - 1)
            logits = self._forward(cache, pieces, tokens, ends)
            if pieces[-1][2] == len(rows[-1].prompt.tokens):  # else: the beginning of one long prompt
                self._draw(logits, rows)

    def _advance(self, cache: RowCache, active: Sequence[_Row]) -> None:
        """Take every row's newest token and draw its next one."""
        pieces = [(slot, row.length, row.length + 1) for slot, row in enumerate(active)]
        self._draw(self._forward(cache, pieces, [row.drawn[-1] for row in active], None), active)

    def _forward(
        self,
        cache: RowCache,
        pieces: Sequence[tuple[int, int, int]],
        tokens: Sequence[int],
        ends: Sequence[int] | None,
    ) -> torch.Tensor:
        """Run the model; return logits (len(ends), vocabulary), of every token with None."""
        device = self._model.device
        step = Step.of(pieces, device)
        cache.step = step
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=step.positions_T[None],
                use_cache=False,
                logits_to_keep=0 if ends is None else torch.tensor(ends, device=device),
                row_cache=cache,
            )
        if cache.layers != self._model.config.num_hidden_layers:
            raise ModelError(
                f"{type(self._model).__name__} has layers without standard attention "
                f"({cache.layers} of {self._model.config.num_hidden_layers} have it); use another model"
            )
        return output.logits[0]

    def _draw(self, logits: torch.Tensor, rows: Sequence[_Row]) -> None:
        seeds = torch.tensor([row.prompt.seed for row in rows], device=logits.device)
        places = torch.tensor([len(row.drawn) for row in rows], device=logits.device)
        with torch.inference_mode():
            chosen = draw(logits, self._sampling, seeds, places).tolist()
        for row, token in zip(rows, chosen, strict=True):
            row.drawn.append(token)

    def _answer(self, row: _Row) -> Answer | None:
        """Return the row's answer if its newest token ended it."""
        ended = row.drawn[-1] in self._eos
        text = None if ended else self._finder.cut(row.drawn)
        if not ended and text is None and len(row.drawn) < row.prompt.limit:
            return None
        return Answer(row.prompt.index, row.drawn, text, ended or text is not None, row.seconds)

    @staticmethod
    def _compact(cache: RowCache, active: list[_Row], finished: set[int]) -> list[_Row]:
        """Drop finished rows; the last rows move into their slots."""
        left = sum(row.prompt.index not in finished for row in active)
        holes = [slot for slot in range(left) if active[slot].prompt.index in finished]
        movers = [slot for slot in range(left, len(active)) if active[slot].prompt.index not in finished]
        if movers:
            cache.copy(movers, holes, max(active[slot].length for slot in movers))
            for hole, mover in zip(holes, movers, strict=True):
                active[hole] = active[mover]
        return active[:left]


def _packs(pieces: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Group (slot, start, stop) pieces into passes of at most _PACK_TOKENS tokens; a longer piece is split."""
    pack: list[tuple[int, int, int]] = []
    room = _PACK_TOKENS
    for slot, start, stop in pieces:
        if pack and stop - start > room:
            yield pack
            pack, room = [], _PACK_TOKENS
        while stop - start > room:
            yield [(slot, start, start + room)]
            start += room
        pack.append((slot, start, stop))
        room -= stop - start
    if pack:
        yield pack
