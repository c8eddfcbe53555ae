"""The sampling loop: many prompts at once, each row ending on its own.

Where the time of a simple loop goes, and what is done about it: the prompts' common prefix is computed once; prompts
are packed without padding between them; only each row's last position meets the vocabulary matrix; a finished row
leaves the batch at once and a waiting one may take its slot; text is looked at only where a stop string could have
ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch

from guardlearn.errors import ModelError
from guardlearn.generators.cache import RowCache, Step
from guardlearn.generators.drawing import draw
from guardlearn.generators.pace import Pace, thread_counts
from guardlearn.generators.sampling import SamplingConfig
from guardlearn.generators.steady import SteadySizes
from guardlearn.generators.stops import StopFinder

__all__ = ["Answer", "Decoder", "Prompt", "Scored"]

_PACK_TOKENS = 512
"""Most prompt tokens of one forward pass: enough to fill the matrix units, little enough to bound memory."""
_SCORED_ROWS_TOKENS = 4096
"""Tokens of rows scored side by side: bounds the keys and values that are held for them."""
_SCORED_POSITIONS = 128
"""Most distributions handed over at once: bounds the memory that a large vocabulary takes."""
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


class Scored(NamedTuple):
    """Distributions at neighbouring positions of one row."""

    row: int
    position: int
    """Of the first: it is over the token that follows this one."""
    log_probabilities_TV: torch.Tensor
    """(positions, vocabulary), float32."""


class _Work:
    """Prompts waiting for a row, longest first: neighbours of like length waste no attention."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        """Queue `prompts`, at least one."""
        self._waiting = deque(sorted(prompts, key=lambda prompt: -len(prompt.tokens)))
        self.capacity = max(len(prompt.tokens) + prompt.limit for prompt in prompts)
        """Tokens a row may come to."""
        self.prefix = _common_prefix([prompt.tokens for prompt in prompts])
        """What all prompts begin with; empty where that is not worth a pass."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, most: int) -> list[Prompt]:
        """Take out and return up to `most` prompts."""
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]


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
        counts = thread_counts(model.device)
        self._sizes = SteadySizes(model, counts)
        free = model.dtype == torch.float32 or (self._sizes.step and self._sizes.prompt)
        choice = counts if free else counts[:1]  # where another count might show in an answer, there is none
        self._step_pace, self._prompt_pace = Pace(choice), Pace(choice)

    def run(self, prompts: Sequence[Prompt], rows: int) -> Generator[Answer]:
        """Yield each prompt's answer as its row finishes; at most `rows`, at least 1, at once."""
        if prompts:
            yield from self._run(_Work(prompts), min(rows, len(prompts)))

    def score(self, rows: Sequence[tuple[Sequence[int], int]]) -> Generator[Scored]:
        """Yield the model's distributions along given tokens, row by row, each row's positions in order.

        Equal rows under equal weights give equal bits: no number here depends on the clock.

        Args:
            rows: (tokens, first): of at least one token; distributions after tokens[first] and all that follow.
        """
        done = 0
        while done < len(rows):
            group: list[tuple[Sequence[int], int]] = []
            longest = 0
            for tokens, first in rows[done:]:
                longest = max(longest, len(tokens))
                if group and longest * (len(group) + 1) > _SCORED_ROWS_TOKENS:
                    break
                group.append((tokens, first))
            for scored in self._score(group):
                yield scored._replace(row=done + scored.row)
            done += len(group)

    def _score(self, rows: Sequence[tuple[Sequence[int], int]]) -> Generator[Scored]:
        cache = RowCache(len(rows), max(len(tokens) for tokens, _ in rows))
        for pieces in _packs([(slot, 0, len(tokens)) for slot, (tokens, _) in enumerate(rows)]):
            tokens = [token for slot, start, stop in pieces for token in rows[slot][0][start:stop]]
            wanted = [(slot, max(start, rows[slot][1]), stop) for slot, start, stop in pieces]
            before = 0
            ends: list[int] = []
            for (_, start, stop), (_, first, _) in zip(pieces, wanted, strict=True):
                ends += range(before + first - start, before + stop - start)
                before += stop - start
            logits = self._forward(cache, pieces, tokens, ends or [0], self._sizes.prompt)
            taken = 0
            for slot, first, stop in wanted:
                for position in range(first, stop, _SCORED_POSITIONS):
                    count = min(_SCORED_POSITIONS, stop - position)
                    with torch.inference_mode():
                        chosen = torch.log_softmax(logits[taken : taken + count].float(), dim=-1)
                    yield Scored(slot, position, chosen)
                    taken += count

    def _run(self, work: _Work, slots: int) -> Generator[Answer]:
        cache = RowCache(slots + 1, work.capacity)
        if work.prefix:
            self._fill(cache, slots, work.prefix)
        active: list[_Row] = []
        while active or work:
            clock = time.perf_counter()
            fresh = work.take(slots - len(active)) if len(active) <= slots // 2 else []
            if fresh:  # half a batch at a time: a pass over few prompts is dear
                rows = [_Row(prompt) for prompt in fresh]
                self._admit(cache, rows, len(active), len(work.prefix), slots)
                active += rows
            else:
                with self._step_pace.step():
                    self._advance(cache, active)
            share = (time.perf_counter() - clock) / len(active)
            for row in active:
                row.seconds += share
            finished = [answer for row in active if (answer := self._answer(row))]
            if finished:
                active = _compact(cache, active, {answer.index for answer in finished})
            yield from finished

    def _fill(self, cache: RowCache, slot: int, tokens: Sequence[int]) -> None:
        """Compute tokens into a slot, for their keys and values only."""
        for start in range(0, len(tokens), _PACK_TOKENS):
            stop = min(start + _PACK_TOKENS, len(tokens))
            self._forward(cache, [(slot, start, stop)], tokens[start:stop], [stop - start - 1], self._sizes.prompt)

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
            with self._prompt_pace.step():
                logits = self._forward(cache, pieces, tokens, ends, self._sizes.prompt)
            if pieces[-1][2] == len(rows[-1].prompt.tokens):  # else: the beginning of one long prompt
                self._draw(logits, rows)

    def _advance(self, cache: RowCache, active: Sequence[_Row]) -> None:
        """Take every row's newest token and draw its next one."""
        pieces = [(slot, row.length, row.length + 1) for slot, row in enumerate(active)]
        tokens = [row.drawn[-1] for row in active]
        self._draw(self._forward(cache, pieces, tokens, range(len(tokens)), self._sizes.step), active)

    def _forward(
        self,
        cache: RowCache,
        pieces: Sequence[tuple[int, int, int]],
        tokens: Sequence[int],
        ends: Sequence[int],
        sizes: Sequence[int],
    ) -> torch.Tensor:
        """Run the model over tokens, padded to one of `sizes`; return the logits at `ends`, (ends, vocabulary)."""
        device = self._model.device
        step = cache.step = Step.of(pieces, device)
        padding = SteadySizes.padded(len(tokens), sizes) - len(tokens)
        kept = [*ends, *[0] * (SteadySizes.padded(len(ends), self._sizes.step) - len(ends))]
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([[*tokens, *[0] * padding]], device=device),
                position_ids=torch.nn.functional.pad(step.positions_T, (0, padding))[None],
                use_cache=False,
                logits_to_keep=torch.tensor(kept, device=device),
                row_cache=cache,
            )
        if cache.layers != self._model.config.num_hidden_layers:
            raise ModelError(
                f"{type(self._model).__name__} has layers without standard attention "
                f"({cache.layers} of {self._model.config.num_hidden_layers} have it); use another model"
            )
        return output.logits[0, : len(ends)]

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


def _common_prefix(texts: Sequence[Sequence[int]]) -> list[int]:
    """Return what all texts begin with, short of any whole text; [] where it is too short to gain anything."""
    first, last = (list(pick(map(list, texts))) for pick in (min, max))
    most = min(map(len, texts)) - 1  # the last token's logits are needed, so a row computes one token at least
    length = next((n for n in range(most) if first[n] != last[n]), most)  # extremes in order agree: all do
    return first[:length] if len(texts) > 1 and length >= _SHARED_TOKENS else []


def _packs(pieces: Sequence[tuple[int, int, int]]) -> Generator[list[tuple[int, int, int]]]:
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
