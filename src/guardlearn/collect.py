"""Collection: the loop of Definition 7, run into ℛ.

An attempt is stored as soon as it is judged, under an id that follows from what was asked, so that the same command
after a crash continues and stores nothing twice.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from guardlearn import predicates
from guardlearn.attempts import run_chains
from guardlearn.budgets import Budget
from guardlearn.chains import Attempt, ChainKey, Outcome, constraints_of
from guardlearn.dag import ArtifactDAG
from guardlearn.digests import digest_json, digest_text
from guardlearn.engines import Engine
from guardlearn.errors import UsageError
from guardlearn.prompts import Renderer
from guardlearn.types import (
    ArtifactStatus,
    Generation,
    Generator,
    Guard,
    OnProgress,
    RepositoryItem,
    Source,
    Specification,
    Verdict,
)

__all__ = ["CollectConfig", "CollectSummary", "collect", "stored_part"]


class CollectConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[collect]` table of guardlearn.toml. None of it changes an answer, `retry` apart.

    Raises:
        UsageError: a number is out of its range.
    """

    in_flight: int | None = None
    """Chains under way at once; None: as many as keep the generator busy."""
    guard_workers: int | None = None
    """Guards run at once on this machine; None: one a core, at least 2."""
    retry: Literal["feedback", "artifact"] | None = None
    """What a retry shows: the feedback only, or the rejected artifact too; None: feedback, or as an adapter learned."""
    retry_no_verdict: bool = False
    """Judge answers again that have no verdict."""
    budget_tokens: int | None = None
    """Tokens that may be spent, earlier runs included; None: no limit."""
    budget_prompt_tokens: bool = False
    """Whether tokens of prompts count too."""
    budget_attempts: int | None = None
    """Attempts that may be made, earlier runs included; None: no limit."""
    budget_seconds: float | None = None
    """Wall time of one run; None: no limit."""

    def __post_init__(self) -> None:
        for name in ("in_flight", "guard_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; allowed: at least 1")
        self.budget()

    def budget(self) -> Budget:
        """Return what may be spent.

        Raises:
            UsageError: a limit that is not above 0.
        """
        return Budget(
            tokens=self.budget_tokens,
            prompt_tokens=self.budget_prompt_tokens,
            attempts=self.budget_attempts,
            seconds=self.budget_seconds,
        )


class CollectSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a collection run did."""

    workflow_id: str
    chains: int
    """Chains with at least one attempt."""
    attempts: int
    """Attempts now in ℛ for this run, earlier ones included."""
    new_attempts: int
    accepted: int
    refinements: int
    """Chains accepted after at least one rejection."""
    no_verdict: int
    accepted_by_position: list[int]
    """Entry k-1: chains accepted at their k-th attempt."""
    attempts_by_position: list[int]
    """Entry k-1: attempts made as a chain's k-th."""
    seconds: float
    completion_tokens: int
    prompt_tokens: int = 0
    judged_again: int = 0
    """Answers without a verdict that have one now."""
    stopped: str = ""
    """Why no more was started: "tokens", "attempts" or "seconds" (a budget), "interrupted", "unavailable" (the
    generator does not answer); "": nothing stopped it."""
    unfinished: dict[str, int] = {}
    """Chains that are not at their end, by reason; the same command goes on with them."""
    unfinished_chains: list[str] = []
    """Their names, specification id/sample."""


def collect(
    dag: ArtifactDAG,
    specifications: Sequence[Specification],
    generator: Generator,
    guard: Guard,
    *,
    renderer: Renderer,
    adapter: str = "",
    r_max: int = 4,
    samples: int = 1,
    seed: int = 0,
    budget: Budget | None = None,
    in_flight: int | None = None,
    retry_no_verdict: bool = False,
    stop: Callable[[], bool] | None = None,
    on_progress: OnProgress | None = None,
    engine: Engine | None = None,
) -> CollectSummary:
    """Collect guarded attempts into ℛ; run again, it continues where it stopped.

    A run is what was asked: model, adapter, sampling, prompts, guard version and seed. Another seed is another run.

    Args:
        dag: ℛ, open for writing.
        specifications: tasks; their sides are registered first.
        adapter: digest of the adapter the generator uses, stored with each item.
        budget: what may be spent on these specifications; tokens and attempts in ℛ already count.
        retry_no_verdict: judge answers again that have no verdict; one that gets a verdict is stored as an attempt in
            its place, and the old item, which nobody can learn from, is excluded.
        generator, guard, renderer, r_max, samples, seed, in_flight, stop, on_progress, engine: as in `run_chains`.

    Raises:
        GeneratorUnavailable: the generator answered nothing at all.
        DataError: two specifications share an id.
    """
    started = time.perf_counter()
    run = _Run.of(generator, guard, renderer, adapter, seed)
    dag.register(specifications)
    stored = _Stored.read(dag, run, specifications, samples)
    unjudged = stored.take_unjudged() if retry_no_verdict else []
    outcome = run_chains(
        specifications,
        generator,
        guard,
        renderer=renderer,
        r_max=r_max,
        samples=samples,
        seed=seed,
        done=stored.chains,
        unjudged=unjudged,
        settled=frozenset(stored.answered_by_humans),
        budget=budget,
        in_flight=in_flight,
        stop=stop,
        on_attempt=lambda attempt: stored.add(dag, attempt, guard),
        on_progress=on_progress,
        engine=engine,
    )
    if outcome.failure is not None and not outcome.attempts:
        raise outcome.failure
    seconds = time.perf_counter() - started
    return _summary(run.workflow_id, outcome, stored.new, stored.judged_again, r_max, seconds)


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    """What makes two collections the same run, and so resumable."""

    workflow_id: str
    model: str
    adapter: str
    sampling: dict[str, Any]
    prompt_digest: str

    @classmethod
    def of(cls, generator: Generator, guard: Guard, renderer: Renderer, adapter: str, seed: int) -> _Run:
        sampling = dict(generator.describe()) | {"seed": seed}
        prompt_digest = generator.prompt_digest or renderer.digest
        asked = [generator.model, adapter, sampling, prompt_digest, guard.name, guard.version]
        return cls(
            workflow_id=f"collect-{digest_json(asked)[:16]}",
            model=generator.model,
            adapter=adapter,
            sampling=sampling,
            prompt_digest=prompt_digest,
        )

    def item_id(self, spec: Specification, sample: int, attempt: int, again: str = "") -> str:
        """Return the id of an attempt; `again`: of the item without verdict that it was judged in place of."""
        text = digest_text(spec.specification)
        if spec.constraints is not None:
            text = digest_json([text, digest_text(spec.constraints)])
        return digest_json([self.workflow_id, spec.id, text, sample, attempt, *([again] if again else [])])[:32]


class _Stored:
    """The attempts of a run that ℛ holds, and what is added to them."""

    def __init__(self, run: _Run) -> None:
        self.chains: dict[ChainKey, list[Attempt]] = collections.defaultdict(list)
        self.answered_by_humans: set[ChainKey] = set()
        self.new = self.judged_again = 0
        self._run = run
        self._items: dict[ChainKey, list[str]] = collections.defaultdict(list)
        self._without: dict[ChainKey, str] = {}
        """Items without verdict that are being judged again."""

    @classmethod
    def read(cls, dag: ArtifactDAG, run: _Run, specifications: Sequence[Specification], samples: int) -> _Stored:
        """Read what ℛ holds of these chains.

        A chain is known by the id of its root, which follows from what was asked: metadata may have been redacted.
        """
        found = cls(run)
        roots: dict[str, tuple[Specification, int]] = {}
        for spec in specifications:
            for sample in range(samples):
                first = run.item_id(spec, sample, 1)
                roots[first] = roots[run.item_id(spec, sample, 1, again=first)] = spec, sample
        for item in dag.extract(predicates.workflow(run.workflow_id), order_by="seq"):
            assert item.facts is not None  # read from ℛ
            if item.facts.root_id in roots:
                found._take(*roots[item.facts.root_id], item, item.facts.attempt)
        return found

    def _take(self, spec: Specification, sample: int, item: RepositoryItem, number: int) -> None:
        key = spec.id, sample
        if item.source is Source.HUMAN:
            if item.status is ArtifactStatus.ACCEPTED:
                self.answered_by_humans.add(key)
            return
        chain, ids = self.chains[key], self._items[key]
        if number > len(chain):
            chain.append(_from_item(spec, sample, number, item))
            ids.append(item.id)
        elif item.id != ids[number - 1]:  # it was judged again
            chain[number - 1 :], ids[number - 1 :] = [_from_item(spec, sample, number, item)], [item.id]

    def take_unjudged(self) -> list[Attempt]:
        """Take the answers without verdict out of their chains, to be judged again."""
        unjudged = []
        for key, chain in self.chains.items():
            if chain and chain[-1].verdict.status is ArtifactStatus.PENDING and key not in self.answered_by_humans:
                unjudged.append(chain.pop())
                self._without[key] = self._items[key].pop()
        return unjudged

    def add(self, dag: ArtifactDAG, attempt: Attempt, guard: Guard) -> None:
        """Store an attempt; an answer judged again is stored where it has a verdict now."""
        key, ids = attempt.chain, self._items[attempt.chain]
        without = self._without.pop(key, "")
        if without and attempt.verdict.status is ArtifactStatus.PENDING:
            return
        name = self._run.item_id(attempt.specification, attempt.sample, attempt.attempt, again=without)
        dag.append(_item(self._run, attempt, guard, name, ids[-1] if ids else None, without))
        ids.append(name)
        if without:
            dag.append_event(without, "exclude", actor="collect", reason=f"judged again as {name}")
            self.judged_again += 1
        else:
            self.new += 1


def _item(run: _Run, attempt: Attempt, guard: Guard, name: str, parent: str | None, without: str) -> RepositoryItem:
    spec, verdict, generation = attempt.specification, attempt.verdict, attempt.generation
    metadata = {
        "spec_id": spec.id,
        "sample": attempt.sample,
        "request_key": attempt.request_key,
        "finish": generation.finish,
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "generation_seconds": round(generation.seconds, 4),
        "latency_seconds": round(generation.latency_seconds, 4),
        "guard_seconds": round(verdict.seconds, 4),
    }
    if not generation.tokens_known:
        metadata["tokens_known"] = False
    if without:
        metadata["judged_before"] = without
    if verdict.verdicts:
        metadata["verdicts"] = [stored_part(each) for each in verdict.verdicts]
    return RepositoryItem(
        id=name,
        parent_id=parent,
        workflow_id=run.workflow_id,
        action_pair_id=spec.action_pair_id,
        specification=spec.specification,
        constraints=constraints_of(spec, guard),
        group=spec.group,
        artifact=generation.text,
        status=verdict.status,
        source=Source.GENERATOR,
        feedback=verdict.feedback,
        cause=verdict.cause,
        fatal=verdict.fatal,
        guard=verdict.guard,
        guard_version=verdict.guard_version,
        model=run.model,
        adapter=run.adapter,
        sampling=run.sampling,
        prompt_digest=run.prompt_digest,
        metadata=metadata,
    )


def stored_part(verdict: Verdict) -> dict[str, Any]:
    """Return a sub-verdict as an item's metadata keeps it (Definition 43)."""
    part: dict[str, Any] = {
        "guard": verdict.guard,
        "status": verdict.status.value,
        "cause": verdict.cause,
        "seconds": round(verdict.seconds, 4),
    }
    return part | ({"verdicts": [stored_part(each) for each in verdict.verdicts]} if verdict.verdicts else {})


def _from_item(spec: Specification, sample: int, number: int, item: RepositoryItem) -> Attempt:
    kept = item.metadata  # empty where the item was redacted
    return Attempt(
        specification=spec,
        sample=sample,
        attempt=number,
        generation=Generation(
            text=item.artifact,
            finish=kept.get("finish", ""),
            prompt_tokens=kept.get("prompt_tokens", 0),
            completion_tokens=kept.get("completion_tokens", 0),
            seconds=kept.get("generation_seconds", 0.0),
            latency_seconds=kept.get("latency_seconds", 0.0),
            tokens_known=kept.get("tokens_known", True),
        ),
        verdict=Verdict(
            status=item.status,
            feedback=item.feedback,
            cause=item.cause,
            fatal=item.fatal,
            guard=item.guard,
            guard_version=item.guard_version,
            seconds=kept.get("guard_seconds", 0.0),
        ),
        history=item.history,
        request_key=kept.get("request_key", ""),
    )


def _summary(
    workflow_id: str, outcome: Outcome, new: int, judged_again: int, r_max: int, seconds: float
) -> CollectSummary:
    attempts = outcome.attempts
    accepted = [attempt for attempt in attempts if attempt.verdict.passed]
    longest = max([r_max, *(attempt.attempt for attempt in attempts)])
    by_attempt, judged = [0] * longest, [0] * longest
    for attempt in attempts:
        judged[attempt.attempt - 1] += 1
        by_attempt[attempt.attempt - 1] += attempt.verdict.passed
    return CollectSummary(
        workflow_id=workflow_id,
        chains=len({attempt.chain for attempt in attempts}),
        attempts=len(attempts),
        new_attempts=new,
        accepted=len(accepted),
        refinements=sum(attempt.attempt > 1 for attempt in accepted),
        no_verdict=sum(attempt.verdict.status is ArtifactStatus.PENDING for attempt in attempts),
        accepted_by_position=by_attempt,
        attempts_by_position=judged,
        seconds=seconds,
        completion_tokens=sum(attempt.generation.completion_tokens for attempt in attempts),
        prompt_tokens=sum(attempt.generation.prompt_tokens for attempt in attempts),
        judged_again=judged_again,
        stopped=outcome.stopped,
        unfinished=dict(collections.Counter(outcome.unfinished.values())),
        unfinished_chains=[f"{name}/{sample}" for name, sample in outcome.unfinished],
    )
