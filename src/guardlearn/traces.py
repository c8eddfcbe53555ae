"""τ = E(ℛ, Φ): training traces, what was left out and why, and the guide's extraction functions.

A trace is an accepted artifact with its Ψ, Ω and H, from a specification on a side that training may use. Everything
the predicate selects is either a trace or counted under a reason. Definitions 14, 17, 22 and 23; errata 2, 6, 18, 19,
21, 22, 30, 35 and 49.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.sides import check, placements
from guardlearn.errors import NoTracesError, UsageError
from guardlearn.predicates import POLICIES, Predicate, and_, as_predicate, everything, parse, policy, up_to
from guardlearn.prompts import format_prompt
from guardlearn.types import ArtifactStatus, RepositoryItem, Side, TrainingTrace

__all__ = [
    "Checkpoint",
    "Extraction",
    "extract_traces",
    "extract_training_data",
    "get_provenance_chain",
    "policy_counts",
    "resolve_predicate",
    "sparse_reward",
]

Filter = str | Predicate | Callable[[RepositoryItem], Any]
"""A policy's name, a predicate, its text, or a function of an item."""

_SIDE_REASONS = {
    Side.TRAIN: "train side: not asked for",
    Side.VALIDATION: "validation side: not asked for",
    Side.HELD_OUT: "held-out side: kept for measuring",
    Side.SET_ASIDE: "set aside: its specification lies near two sides",
}
_BATCH = 500


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far into ℛ an extraction looked (Definition 14: a pointer, not a time)."""

    seq: int
    """Last item or event seen; 0 in an empty ℛ."""
    item_id: str
    """Last item seen; "" in an empty ℛ."""


class Extraction(msgspec.Struct, frozen=True, kw_only=True):
    """τ, and the account of everything that was selected and is not in it."""

    traces: list[TrainingTrace]
    """In order of creation, ties by id."""
    dropped: dict[str, int]
    """Selected items that are no trace, by reason."""
    selected: int
    """Items the predicate selects: len(traces) + sum(dropped.values())."""
    predicate: str
    """Φ as text, relative times made absolute."""
    checkpoint: Checkpoint
    sides_digest: str


def extract_traces(
    dag: ArtifactDAG,
    predicate: Filter = "refinement",
    *,
    sides: Sequence[Side] = (Side.TRAIN, Side.VALIDATION),
) -> Extraction:
    """Return the training traces that Φ selects, up to the last row ℛ holds now.

    Args:
        dag: ℛ; it is only read.
        predicate: a policy of Definition 22 by name, a predicate or its text, or a function of an item.
        sides: sides whose specifications may be used; held-out is read by measurements only.

    Raises:
        UsageError: no such policy, or malformed text.
        DataError: the sides of ℛ cannot support a measurement; the message asks for `group`.
        NoTracesError: no trace, or none on the train side though it was asked for; it says what every policy of
            Definition 22 would find.
    """
    extraction = _extract(dag, predicate, sides)
    if not any(trace.side is Side.TRAIN or Side.TRAIN not in sides for trace in extraction.traces):
        raise _no_traces(dag, extraction)
    return extraction


def policy_counts(dag: ArtifactDAG) -> dict[str, int]:
    """Return how many items each policy of Definition 22 selects."""
    return {name: dag.count(policy(name)) for name in POLICIES}


def resolve_predicate(predicate: Filter) -> Predicate:
    """Return Φ with relative times made absolute as of now (erratum 14).

    Raises:
        UsageError: a name that is no policy, or malformed text.
    """
    if isinstance(predicate, str):
        chosen = parse(predicate) if "(" in predicate else policy(predicate)
    else:
        chosen = as_predicate(predicate)
    return chosen.resolve(datetime.now(UTC))


def extract_training_data(
    dag: ArtifactDAG, filter_fn: Filter | None = None, *, sides: Sequence[Side] = (Side.TRAIN,)
) -> list[dict[str, Any]]:
    """Return training examples as the guide draws them (its section 2); [] where Φ selects nothing.

    Args:
        dag: ℛ; it is only read.
        filter_fn: Φ_training; None is Φ_refinement.
        sides: sides whose specifications may be used.

    Returns:
        One dict a trace: `prompt` (Ψ, Ω and H as text), `completion` (a), `text` (both), and `metadata`, strings and
        numbers only (erratum 35).
    """
    extraction = _extract(dag, "refinement" if filter_fn is None else filter_fn, sides)
    return [_example(trace) for trace in extraction.traces]


def get_provenance_chain(r: RepositoryItem, dag: ArtifactDAG) -> list[RepositoryItem]:
    """Return the attempts that led to `r`, first to last, `r` included (errata 2 and 6: no global, no endless loop)."""
    return list(dag.provenance(r.id))


def sparse_reward(item: RepositoryItem) -> int:
    """Return R_sparse (Definition 23): +1 accepted, −1 rejected; a lookup, the guard is not asked again.

    SUPERSEDED is +1: its guard said ⊤, a later artifact took its place.

    Raises:
        UsageError: the item is PENDING: no guard has judged it, so there is no reward.
    """
    status = item.facts.status if item.facts else item.status
    if status is ArtifactStatus.PENDING:
        raise UsageError(f"item {item.id!r} is PENDING: no verdict, no reward; leave such items out")
    return -1 if status is ArtifactStatus.REJECTED else 1


def _extract(dag: ArtifactDAG, predicate: Filter, sides: Sequence[Side]) -> Extraction:
    with dag.reading() as connection:
        check(connection)
    chosen = resolve_predicate(predicate)
    checkpoint = _checkpoint(dag)
    dropped: Counter[str] = Counter()
    traces: list[TrainingTrace] = []
    seen: set[bytes] = set()
    found = iter(dag.extract(and_(chosen, up_to(checkpoint.seq))))
    while batch := list(itertools.islice(found, _BATCH)):
        with dag.reading() as connection:
            places = placements(connection, list({_root(item) for item in batch}))
        for item in batch:
            place = places[_root(item)]  # a chain follows its root's Ψ, even where Ψ was amended
            reason = _unusable(item, place.side, sides) or _repeated(item, seen)
            if reason:
                dropped[reason] += 1
            else:
                traces.append(TrainingTrace(item=item, history=item.history, group=place.cluster, side=place.side))
    return Extraction(
        traces=traces,
        dropped=dict(sorted(dropped.items())),
        selected=len(traces) + dropped.total(),
        predicate=repr(chosen),
        checkpoint=checkpoint,
        sides_digest=dag.sides_digest(),
    )


def _checkpoint(dag: ArtifactDAG) -> Checkpoint:
    seq = dag.last_seq
    last = next(iter(dag.extract(up_to(seq), order_by="seq", descending=True, limit=1)), None)
    return Checkpoint(seq=seq, item_id=last.id if last else "")


def _unusable(item: RepositoryItem, side: Side, sides: Sequence[Side]) -> str | None:
    """Return why an item cannot be trained on: the first reason that holds."""
    facts = item.facts
    texts = (item.specification, item.constraints, item.artifact, *_told(item))
    reasons = {
        "not accepted: an accepted artifact is needed": item.status is not ArtifactStatus.ACCEPTED,
        _SIDE_REASONS[side]: side not in sides,
        "redacted": facts is not None and facts.redacted,
        "excluded": facts is not None and facts.excluded,
        "broken chain: an earlier attempt is missing": facts is not None and facts.broken,
        "empty specification": not item.specification.strip(),
        "empty artifact": not item.artifact.strip(),
        "NUL or lone surrogates in its text": not all(_writable(text) for text in texts),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _told(item: RepositoryItem) -> Iterator[str]:
    for entry in item.history:
        yield entry.artifact
        yield entry.feedback


def _writable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _repeated(item: RepositoryItem, seen: set[bytes]) -> str | None:
    parts = (item.specification, item.constraints, item.artifact, *_told(item))
    running = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        running.update(b"%d;" % len(encoded) + encoded)  # the length keeps neighbours apart
    digest = running.digest()[:16]
    if digest in seen:
        return "exact duplicate of an earlier trace"
    seen.add(digest)
    return None


def _root(item: RepositoryItem) -> str:
    return item.facts.root_id if item.facts else item.id


def _example(trace: TrainingTrace) -> dict[str, Any]:
    item = trace.item
    prompt = format_prompt(item.specification, trace.history, constraints=item.constraints)
    return {
        "prompt": prompt,
        "completion": item.artifact,
        "text": f"{prompt}\n\n{item.artifact}",
        "metadata": {
            "source": item.source.value,
            "action_pair_id": item.action_pair_id,
            "workflow_id": item.workflow_id,
            "retry_count": trace.retries,
            "item_id": item.id,
        },
    }


def _no_traces(dag: ArtifactDAG, extraction: Extraction) -> NoTracesError:
    items = dag.count(everything())
    if not items:
        message = f"{dag.target} holds no items; fill it with `guardlearn collect` or `guardlearn import` first"
        return NoTracesError(message, dict.fromkeys(POLICIES, 0))
    counts = policy_counts(dag)
    found = ", ".join(f"{name} {count}" for name, count in counts.items())
    if extraction.traces:
        what = f"{extraction.predicate} gives {len(extraction.traces)} traces, but none on the train side"
    elif extraction.selected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in extraction.dropped.items())
        what = f"{extraction.predicate} selects {extraction.selected} of {items} items, but none can be used: {reasons}"
    else:
        what = f"{extraction.predicate} selects none of {items} items"
    return NoTracesError(f"{what}; the policies select: {found}", counts)
