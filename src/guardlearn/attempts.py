"""The action-pair loop of Definition 7: generate → guard → remember, at most R_max attempts a chain.

It runs in waves: every open chain's next attempt is generated in one batched call, while guards judge the answers
that are already there. Collection (into ℛ) and evaluation (into evidence) both run this loop.
"""

from __future__ import annotations

import collections
import concurrent.futures
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from guardlearn.errors import DataError, GuardError, UsageError
from guardlearn.guards import failure
from guardlearn.prompts import Renderer
from guardlearn.types import (
    ArtifactStatus,
    FeedbackEntry,
    Generation,
    GenerationRequest,
    Generator,
    Guard,
    GuardContext,
    Message,
    OnProgress,
    Specification,
    Verdict,
)

__all__ = ["Attempt", "ChainKey", "attempt_chains", "constraints_of", "judge"]

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

    @property
    def chain(self) -> ChainKey:
        """The chain it belongs to."""
        return self.specification.id, self.sample


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
    guard_workers: int = 2,
) -> list[Attempt]:
    """Run every chain until it is accepted, fatal, without verdict, or R_max attempts long.

    Args:
        specifications: tasks with distinct ids.
        generator: π_θ.
        guard: G, called from `guard_workers` threads.
        renderer: turns Ψ, Ω and H into messages.
        r_max: R_max, attempts a chain may take, the first included; ≥ 1.
        samples: independent chains per specification; ≥ 1.
        seed: with spec, sample and attempt it keys the sampling noise.
        done: attempts made before, by chain, in order; those chains go on from there.
        on_attempt: called in this thread for each new attempt as soon as it is judged.
        on_progress: called with (attempts made or no longer needed, R_max a chain, note).
        guard_workers: threads that run the guard.

    Returns:
        All attempts, earlier ones included, by specification, sample and attempt.

    Raises:
        DataError: two specifications share an id.
        UsageError: `r_max` or `samples` below 1.
    """
    if r_max < 1 or samples < 1:
        raise UsageError(f"r_max and samples must be at least 1, got r_max={r_max}, samples={samples}")
    _refuse_duplicates(specifications)
    chains = {
        (spec.id, sample): list((done or {}).get((spec.id, sample), ()))
        for spec in specifications
        for sample in range(samples)
    }
    by_id = {spec.id: spec for spec in specifications}

    def finish(attempt: Attempt) -> None:
        chains[attempt.chain].append(attempt)
        if on_attempt:
            on_attempt(attempt)
        if on_progress:  # an attempt counts one, a settled chain as many as it could have taken: nearly even steps
            spent = sum(len(chain) if _open(chain, r_max) else r_max for chain in chains.values())
            settled = sum(not _open(chain, r_max) for chain in chains.values())
            note = f"attempt {attempt.attempt} of {r_max}, {settled} of {len(chains)} chains settled"
            on_progress(spent, r_max * len(chains), note)

    with concurrent.futures.ThreadPoolExecutor(max_workers=guard_workers) as pool:
        while wave := [key for key, chain in chains.items() if _open(chain, r_max)]:
            prompts = [_next(by_id[key[0]], key[1], chains[key], guard, renderer) for key in wave]
            _run_wave(prompts, generator, guard, pool, seed, finish)
    return [attempt for chain in chains.values() for attempt in chain]


def judge(guard: Guard, artifact: str, context: GuardContext) -> Verdict:
    """Return the guard's verdict; a guard that raises gives none (PENDING), it never rejects.

    Raises:
        GuardError: the guard returned something that is no `Verdict`.
    """
    started = time.perf_counter()
    try:
        verdict = guard(artifact, context)
    except Exception as error:  # a user's guard may raise anything
        verdict = failure(error)
    if not isinstance(verdict, Verdict):
        raise GuardError(f"guard {guard.name!r} returned {type(verdict).__name__}; it must return guardlearn.Verdict")
    return msgspec.structs.replace(
        verdict,
        guard=verdict.guard or guard.name,
        guard_version=verdict.guard_version or guard.version,
        seconds=verdict.seconds or time.perf_counter() - started,
    )


class _Prompt(msgspec.Struct, frozen=True, kw_only=True):
    specification: Specification
    sample: int
    attempt: int
    history: tuple[FeedbackEntry, ...]
    messages: tuple[Message, ...]


def _refuse_duplicates(specifications: Sequence[Specification]) -> None:
    counts = collections.Counter(spec.id for spec in specifications)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise DataError(f"specification id {twice[0]!r} is given {counts[twice[0]]} times; ids must be distinct")


def _open(chain: Sequence[Attempt], r_max: int) -> bool:
    if not chain:
        return True
    last = chain[-1].verdict
    return last.status is ArtifactStatus.REJECTED and not last.fatal and len(chain) < r_max


def _next(spec: Specification, sample: int, chain: Sequence[Attempt], guard: Guard, renderer: Renderer) -> _Prompt:
    history = tuple(
        FeedbackEntry(artifact=attempt.generation.text, feedback=attempt.verdict.feedback) for attempt in chain
    )
    messages = renderer.messages(spec.specification, constraints_of(spec, guard), history, about=spec)
    return _Prompt(specification=spec, sample=sample, attempt=len(chain) + 1, history=history, messages=tuple(messages))


def constraints_of(spec: Specification, guard: Guard) -> str:
    """Return Ω of a specification: its own, or the guard's default."""
    return guard.constraints if spec.constraints is None else spec.constraints


def _run_wave(
    prompts: Sequence[_Prompt],
    generator: Generator,
    guard: Guard,
    pool: concurrent.futures.Executor,
    seed: int,
    finish: Callable[[Attempt], None],
) -> None:
    """Generate one answer per prompt; judge and finish each while others are still being written."""
    waiting: dict[concurrent.futures.Future[Verdict], Attempt] = {}

    def settle(finished: Iterable[concurrent.futures.Future[Verdict]]) -> None:
        for future in list(finished):
            attempt = waiting.pop(future)
            finish(msgspec.structs.replace(attempt, verdict=future.result()))

    def answered(index: int, generation: Generation) -> None:
        prompt = prompts[index]
        context = GuardContext(specification=prompt.specification, history=prompt.history)
        waiting[pool.submit(judge, guard, generation.text, context)] = Attempt(
            specification=prompt.specification,
            sample=prompt.sample,
            attempt=prompt.attempt,
            generation=generation,
            verdict=Verdict(status=ArtifactStatus.PENDING),
            history=prompt.history,
            messages=prompt.messages,
        )
        settle([future for future in waiting if future.done()])

    requests = [
        GenerationRequest(
            messages=prompt.messages,
            key=f"{seed}/{prompt.specification.id}/{prompt.sample}/{prompt.attempt}",
        )
        for prompt in prompts
    ]
    generator.generate(requests, answered)
    for future in concurrent.futures.as_completed(list(waiting)):
        settle([future])
