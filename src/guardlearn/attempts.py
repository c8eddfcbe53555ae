"""The action-pair loop of Definition 7: generate → guard → remember, at most R_max attempts a chain.

One scheduler for collection (into ℛ) and evaluation (into evidence). It owns the chains and runs in one thread; an
engine (`guardlearn.engines`) answers prompts and runs guards elsewhere. A generator that takes one request a call never
lets one chain wait for another's; one that takes batches gets all that wait, while earlier answers are being judged.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import math
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from guardlearn.budgets import Budget, Meter, Purse
from guardlearn.chains import Attempt, Chain, ChainKey, Outcome, constraints_of
from guardlearn.engines import Engine, LocalEngine, judge
from guardlearn.errors import DataError, GeneratorUnavailable, GuardlearnError, ModelError, RequestRefused, UsageError
from guardlearn.prompts import Renderer
from guardlearn.types import (
    ArtifactStatus,
    Generation,
    GenerationRequest,
    Generator,
    Guard,
    GuardContext,
    OnProgress,
    Specification,
    Verdict,
)

__all__ = ["Attempt", "Budget", "ChainKey", "Outcome", "attempt_chains", "constraints_of", "judge", "run_chains"]

_POLL_SECONDS = 0.1
"""How often `stop` is asked while nothing happens."""
_BATCHED_IN_FLIGHT = 1024
"""Chains under way at once where the generator takes all that wait."""
_FAILURES_IN_A_ROW = 3
"""So many failed calls (or twice the lanes) without an answer between them: the generator is taken to be down."""
_NO_VERDICT = Verdict(status=ArtifactStatus.PENDING)


def attempt_chains(
    specifications: Sequence[Specification],
    generator: Generator,
    guard: Guard,
    *,
    renderer: Renderer,
    r_max: int = 4,
    samples: int = 1,
    seed: int = 0,
    done: Mapping[ChainKey, Sequence[Attempt]] | None = None,
    on_attempt: Callable[[Attempt], None] | None = None,
    on_progress: OnProgress | None = None,
    engine: Engine | None = None,
) -> list[Attempt]:
    """Run every chain until it is accepted, fatal, without verdict, or R_max attempts long; see `run_chains`.

    Raises:
        GeneratorUnavailable: the generator did not answer for some chain; the others were finished first.
        RequestRefused: the generator can never answer for some chain; the others were finished first.
    """
    outcome = run_chains(
        specifications,
        generator,
        guard,
        renderer=renderer,
        r_max=r_max,
        samples=samples,
        seed=seed,
        done=done,
        on_attempt=on_attempt,
        on_progress=on_progress,
        engine=engine,
    )
    if outcome.failure is not None:
        raise outcome.failure
    return outcome.attempts


def run_chains(
    specifications: Sequence[Specification],
    generator: Generator,
    guard: Guard,
    *,
    renderer: Renderer,
    r_max: int = 4,
    samples: int = 1,
    seed: int = 0,
    done: Mapping[ChainKey, Sequence[Attempt]] | None = None,
    unjudged: Sequence[Attempt] = (),
    settled: frozenset[ChainKey] = frozenset(),
    budget: Budget | None = None,
    in_flight: int | None = None,
    stop: Callable[[], bool] | None = None,
    on_attempt: Callable[[Attempt], None] | None = None,
    on_progress: OnProgress | None = None,
    engine: Engine | None = None,
) -> Outcome:
    """Run chains until each is accepted, fatal, without verdict, or R_max attempts long, or until it must stop.

    Args:
        specifications: tasks with distinct ids.
        generator: π_θ.
        guard: G, called from several threads.
        renderer: turns Ψ, Ω and H into messages.
        r_max: R_max, attempts a chain may take, the first included; ≥ 1.
        samples: independent chains per specification; ≥ 1.
        seed: with spec, sample and attempt it keys the sampling noise.
        done: attempts made before, by chain, in order; those chains go on from there.
        unjudged: answers, each the next of its chain, that are judged first; their verdicts are not read.
        settled: chains that need no further attempt.
        budget: what may be spent.
        in_flight: chains that may be under way at once; None: as many as keep the generator busy.
        stop: asked several times a second; once it says True, nothing is started or waited for.
        on_attempt: called in this thread for each new attempt as soon as it is judged.
        on_progress: called with (attempts made or no longer needed, R_max a chain, note with rates).
        engine: where generator and guard run, left open; None: threads of this process.

    Raises:
        DataError: two specifications share an id.
        UsageError: `r_max`, `samples` or `in_flight` below 1.
    """
    if r_max < 1 or samples < 1:
        raise UsageError(f"r_max and samples must be at least 1, got r_max={r_max}, samples={samples}")
    if in_flight is not None and in_flight < 1:
        raise UsageError(f"in_flight is {in_flight}; allowed: at least 1 chain, or None to keep the generator busy")
    _refuse_duplicates(specifications)
    known = done or {}
    chains = [
        Chain(spec, sample, known.get((spec.id, sample), ()), settled=(spec.id, sample) in settled)
        for spec in specifications
        for sample in range(samples)
    ]
    with contextlib.ExitStack() as opened:
        running = engine or opened.enter_context(LocalEngine(generator, guard))
        most = dict(generator.describe()).get("max_new_tokens") if budget else None
        return _Scheduler(
            chains,
            running,
            guard,
            renderer,
            r_max=r_max,
            seed=seed,
            purse=Purse(budget or Budget(), chains, unjudged, most),
            meter=Meter(chains, r_max, on_progress),
            in_flight=in_flight,
            stop=stop,
            on_attempt=on_attempt,
        ).run(unjudged)


def _refuse_duplicates(specifications: Sequence[Specification]) -> None:
    counts = collections.Counter(spec.id for spec in specifications)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise DataError(f"specification id {twice[0]!r} is given {counts[twice[0]]} times; ids must be distinct")


class _Scheduler:
    """Starts what may start, takes what has ended, until nothing is left to do."""

    def __init__(
        self,
        chains: Sequence[Chain],
        engine: Engine,
        guard: Guard,
        renderer: Renderer,
        *,
        r_max: int,
        seed: int,
        purse: Purse,
        meter: Meter,
        in_flight: int | None,
        stop: Callable[[], bool] | None,
        on_attempt: Callable[[Attempt], None] | None,
    ) -> None:
        self._chains = {chain.key: chain for chain in chains}
        self._places = {key: place for place, key in enumerate(self._chains)}
        self._engine, self._guard, self._renderer = engine, guard, renderer
        self._r_max, self._seed = r_max, seed
        self._limit = in_flight or _usual_in_flight(engine)
        self._purse, self._meter = purse, meter
        self._stop, self._on_attempt = stop, on_attempt
        self._fresh: collections.deque[ChainKey] = collections.deque()
        self._waiting: list[tuple[int, ChainKey]] = []  # heap: chains listed first come to an end first
        self._unjudged: collections.deque[Attempt] = collections.deque()
        self._calls: dict[int, dict[int, Attempt]] = {}
        self._judging = self._under_way = 0
        self._events = queue.SimpleQueue[Callable[[], None]]()
        self._numbers = itertools.count()
        self._unfinished: dict[ChainKey, str] = {}
        self._failures, self._down = 0, False
        self._failure: GuardlearnError | None = None
        self._broken: BaseException | None = None
        self._storing = False

    def run(self, unjudged: Sequence[Attempt]) -> Outcome:
        """Run to the end; see `run_chains`."""
        again = {attempt.chain for attempt in unjudged}
        self._unjudged.extend(unjudged)
        self._under_way = len(again)
        self._fresh.extend(key for key, chain in self._chains.items() if chain.open(self._r_max) and key not in again)
        interrupted = False
        try:
            while self._start() and not (interrupted := bool(self._stop and self._stop())):
                self._wait()
        except BaseException:
            if not self._storing:  # what ended meanwhile is kept, unless it is keeping that failed
                self._drain()
            raise
        if interrupted:
            self._drain()
        if self._broken is not None:
            raise self._broken
        return self._outcome(interrupted)

    # -- starting

    def _start(self) -> bool:
        """Start what may start; return whether anything is in flight."""
        while self._fresh and self._under_way < self._limit:
            self._wait_for_turn(self._fresh.popleft())
            self._under_way += 1
        while self._unjudged and self._judging < 2 * self._engine.judges:
            self._judge(self._unjudged.popleft())
        while len(self._calls) < self._engine.lanes and self._may_call() and (count := self._fitting()) > 0:
            self._ask([self._chains[heapq.heappop(self._waiting)[1]] for _ in range(count)])
        return bool(self._calls or self._judging)

    def _may_call(self) -> bool:
        if not self._waiting or self._down or self._broken is not None:
            return False
        # a call of many takes as long as one of few: it waits while more are being judged than are ready
        return self._engine.batch == 1 or len(self._waiting) >= self._judging + len(self._unjudged)

    def _fitting(self) -> int:
        """Return how many of those that wait the next call takes."""
        writing, unjudged = sum(map(len, self._calls.values())), self._judging + len(self._unjudged)
        room = self._purse.room(writing, unjudged, self._engine.batch != 1)
        share = math.ceil(len(self._waiting) / (self._engine.lanes - len(self._calls)))  # each idle lane gets one
        return min(len(self._waiting), self._engine.batch or share, room)

    def _wait_for_turn(self, key: ChainKey) -> None:
        heapq.heappush(self._waiting, (self._places[key], key))

    def _ask(self, chains: Sequence[Chain]) -> None:
        attempts = [self._next(chain) for chain in chains]
        requests = [GenerationRequest(messages=each.messages, key=each.request_key) for each in attempts]
        number = next(self._numbers)
        self._calls[number] = dict(enumerate(attempts))

        def answered(index: int, generation: Generation) -> None:
            self._events.put(lambda: self._answered(number, index, generation))

        def ended(future: Future[list[Generation]]) -> None:
            self._events.put(lambda: self._call_ended(number, future))

        self._engine.generate(requests, answered).add_done_callback(ended)

    def _next(self, chain: Chain) -> Attempt:
        spec, history = chain.specification, chain.history()
        messages = self._renderer.messages(spec.specification, constraints_of(spec, self._guard), history, about=spec)
        number = len(chain.attempts) + 1
        return Attempt(
            specification=spec,
            sample=chain.sample,
            attempt=number,
            generation=Generation(text="", finish="", prompt_tokens=0, completion_tokens=0),
            verdict=_NO_VERDICT,
            history=history,
            messages=tuple(messages),
            request_key=f"{self._seed}/{spec.id}/{chain.sample}/{number}",
        )

    def _judge(self, attempt: Attempt) -> None:
        self._judging += 1
        context = GuardContext(specification=attempt.specification, history=attempt.history)

        def judged(future: Future[Verdict]) -> None:
            self._events.put(lambda: self._judged(attempt, future))

        self._engine.judge(attempt.generation.text, context).add_done_callback(judged)

    # -- taking what has ended

    def _wait(self) -> None:
        timeout = None if self._stop is None else _POLL_SECONDS
        with contextlib.suppress(queue.Empty):
            self._events.get(timeout=timeout)()
            while True:
                self._events.get_nowait()()

    def _drain(self) -> None:
        """Keep what was judged; start nothing."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._events.get_nowait()()

    def _answered(self, number: int, index: int, generation: Generation) -> None:
        attempt = self._calls[number].pop(index, None)
        if attempt is None:  # a generator that tells of an answer twice
            return
        self._failures = 0
        self._purse.spend(generation)
        self._unjudged.append(msgspec.structs.replace(attempt, generation=generation))

    def _call_ended(self, number: int, future: Future[list[Generation]]) -> None:
        error = future.exception()
        if error is None:
            answers = future.result()
            for index in list(self._calls[number]):  # a generator that tells of answers at the end only
                if index < len(answers):
                    self._answered(number, index, answers[index])
            if self._calls[number]:
                error = ModelError(f"a generator gave {len(answers)} answers, and was asked for more; it must give all")
        left = self._calls.pop(number)
        if isinstance(error, RequestRefused):
            self._failure = error
            self._refused(error, left.values())
        elif isinstance(error, GeneratorUnavailable):
            self._failure = error
            self._failures += 1
            self._down |= self._failures >= max(_FAILURES_IN_A_ROW, 2 * self._engine.lanes)
            for attempt in left.values():
                self._leave(attempt, str(error))
        elif error is not None:
            self._broken = self._broken or error

    def _refused(self, error: RequestRefused, attempts: Any) -> None:
        """Leave the chain whose request cannot be answered; the others of its call are asked again."""
        named = [attempt for attempt in attempts if attempt.request_key == error.key]
        if not named:
            self._broken = self._broken or error
            return
        for attempt in attempts:
            if attempt in named:
                self._leave(attempt, str(error))
            else:
                self._wait_for_turn(attempt.chain)

    def _leave(self, attempt: Attempt, reason: str) -> None:
        self._unfinished[attempt.chain] = reason
        self._under_way -= 1

    def _judged(self, attempt: Attempt, future: Future[Verdict]) -> None:
        self._judging -= 1
        error = future.exception()
        if error is not None:
            self._broken = self._broken or error
            return
        attempt = msgspec.structs.replace(attempt, verdict=future.result())
        chain = self._chains[attempt.chain]
        self._storing = True
        if self._on_attempt:
            self._on_attempt(attempt)
        self._storing = False
        chain.attempts.append(attempt)
        if chain.open(self._r_max):
            self._wait_for_turn(chain.key)
        else:
            self._under_way -= 1
        self._meter.count(attempt, chain, self._purse)

    # -- the end

    def _outcome(self, interrupted: bool) -> Outcome:
        left = [key for key, chain in self._chains.items() if chain.open(self._r_max)]
        stopped, reason = "", ""
        if interrupted:
            stopped, reason = "interrupted", "it was interrupted"
        elif self._down:
            stopped, reason = "unavailable", str(self._failure)
        else:
            stopped, reason = self._purse.empty()
        unfinished = {key: self._unfinished.get(key, reason) for key in left}
        return Outcome(
            attempts=[attempt for chain in self._chains.values() for attempt in chain.attempts],
            unfinished=unfinished,
            stopped=stopped if reason in unfinished.values() else "",
            failure=self._failure,
        )


def _usual_in_flight(engine: Engine) -> int:
    if engine.batch == 0:
        return _BATCHED_IN_FLIGHT * engine.lanes
    return 2 * engine.lanes * engine.batch + 2 * engine.judges
