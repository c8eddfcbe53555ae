"""Collection: the loop of Definition 7, run into ℛ.

An attempt is stored as soon as it is judged, under an id that follows from what was asked, so that the same command
after a crash continues and stores nothing twice.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from guardlearn import predicates
from guardlearn.attempts import Attempt, ChainKey, attempt_chains, constraints_of
from guardlearn.dag import ArtifactDAG
from guardlearn.digests import digest_json, digest_text
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

__all__ = ["CollectSummary", "collect"]


class CollectSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a collection run did."""

    workflow_id: str
    chains: int
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
    on_progress: OnProgress | None = None,
) -> CollectSummary:
    """Collect guarded attempts into ℛ; run again, it continues where it stopped.

    A run is what was asked: model, adapter, sampling, prompts, guard version and seed. Another seed is another run.

    Args:
        dag: ℛ, open for writing.
        specifications: tasks; their sides are registered first.
        adapter: digest of the adapter the generator uses, stored with each item.
        generator, guard, renderer, r_max, samples, seed, on_progress: as in `attempt_chains`.
    """
    started = time.perf_counter()
    run = _Run.of(generator, guard, renderer, adapter, seed)
    dag.register(specifications)
    done = run.stored(dag, specifications)
    before = sum(len(chain) for chain in done.values())
    attempts = attempt_chains(
        specifications,
        generator,
        guard,
        renderer=renderer,
        r_max=r_max,
        samples=samples,
        seed=seed,
        done=done,
        on_attempt=lambda attempt: _store(dag, run, attempt, guard),
        on_progress=on_progress,
    )
    return _summary(run.workflow_id, attempts, before, r_max, time.perf_counter() - started)


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

    def item_id(self, spec: Specification, sample: int, attempt: int) -> str:
        text = digest_text(spec.specification)
        return digest_json([self.workflow_id, spec.id, text, sample, attempt])[:32]

    def stored(self, dag: ArtifactDAG, specifications: Sequence[Specification]) -> dict[ChainKey, list[Attempt]]:
        """Return the attempts ℛ already holds for this run, by chain, in order."""
        by_id = {spec.id: spec for spec in specifications}
        chains: dict[ChainKey, list[Attempt]] = collections.defaultdict(list)
        for item in dag.extract(predicates.workflow(self.workflow_id), order_by="seq"):
            spec = by_id.get(item.metadata["spec_id"])
            if spec is not None and spec.specification == item.specification:
                attempt = _from_item(spec, item)
                chains[attempt.chain].append(attempt)
        return chains


def _store(dag: ArtifactDAG, run: _Run, attempt: Attempt, guard: Guard) -> None:
    spec, verdict, generation = attempt.specification, attempt.verdict, attempt.generation
    parent = run.item_id(spec, attempt.sample, attempt.attempt - 1) if attempt.attempt > 1 else None
    dag.append(
        RepositoryItem(
            id=run.item_id(spec, attempt.sample, attempt.attempt),
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
            metadata={
                "spec_id": spec.id,
                "sample": attempt.sample,
                "finish": generation.finish,
                "prompt_tokens": generation.prompt_tokens,
                "completion_tokens": generation.completion_tokens,
                "generation_seconds": round(generation.seconds, 4),
                "guard_seconds": round(verdict.seconds, 4),
            },
        )
    )


def _from_item(spec: Specification, item: RepositoryItem) -> Attempt:
    assert item.facts is not None  # read from ℛ
    kept = item.metadata
    return Attempt(
        specification=spec,
        sample=kept["sample"],
        attempt=item.facts.attempt,
        generation=Generation(
            text=item.artifact,
            finish=kept["finish"],
            prompt_tokens=kept["prompt_tokens"],
            completion_tokens=kept["completion_tokens"],
            seconds=kept["generation_seconds"],
        ),
        verdict=Verdict(
            status=item.status,
            feedback=item.feedback,
            cause=item.cause,
            fatal=item.fatal,
            guard=item.guard,
            guard_version=item.guard_version,
            seconds=kept["guard_seconds"],
        ),
        history=item.history,
    )


def _summary(workflow_id: str, attempts: Sequence[Attempt], before: int, r_max: int, seconds: float) -> CollectSummary:
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
        new_attempts=len(attempts) - before,
        accepted=len(accepted),
        refinements=sum(attempt.attempt > 1 for attempt in accepted),
        no_verdict=sum(attempt.verdict.status is ArtifactStatus.PENDING for attempt in attempts),
        accepted_by_position=by_attempt,
        attempts_by_position=judged,
        seconds=seconds,
        completion_tokens=sum(attempt.generation.completion_tokens for attempt in attempts),
    )
