"""τ = E(ℛ, Φ): training traces, what was left out and why, and the guide's extraction functions.

A trace is an accepted artifact with its Ψ, Ω and H, from a specification on a side that training may use. Everything
the predicate selects is either a trace or counted under a reason. Definitions 14, 17, 22 and 23; errata 2, 6, 18, 19,
21, 22, 30, 35 and 49.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.checkpoints import trained_contents
from guardlearn.dag.reading import items_by_seq, paths_to_root
from guardlearn.dag.sides import Placement, check, placements
from guardlearn.errors import DataError, UsageError
from guardlearn.predicates import Predicate, and_, up_to
from guardlearn.prompts import format_full_example, format_prompt
from guardlearn.selections import (
    Filter,
    SelectionReport,
    account,
    by_side,
    no_traces,
    resolve_predicate,
    to_predicate,
)
from guardlearn.types import ArtifactStatus, OnProgress, RepositoryItem, Side, TrainingTrace

__all__ = [
    "Checkpoint",
    "Extraction",
    "Filter",
    "content_digest",
    "explain_selection",
    "extract_new_traces",
    "extract_traces",
    "extract_training_data",
    "get_provenance_chain",
    "resolve_predicate",
    "sparse_reward",
    "to_predicate",
    "unusable",
]

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
    verdicts: Sequence[ArtifactStatus | str] = (ArtifactStatus.ACCEPTED,),
    attempts: bool = False,
    on_progress: OnProgress | None = None,
) -> Extraction:
    """Return the training traces that Φ selects, up to the last row ℛ holds now.

    Args:
        dag: ℛ; it is only read.
        predicate: a policy of Definition 22 by name, a predicate or its text, or a function of an item.
        sides: sides whose specifications may be used; held-out is read by measurements only.
        verdicts: what a trace's item may be: accepted, or rejected too (then chains never solved are seen as well).
        attempts: fill each trace's `attempts`, which preference pairs and KTO rows are made of (erratum 20).
        on_progress: called with (items looked at, items selected, note).

    Raises:
        UsageError: no such policy or verdict, or malformed text.
        DataError: the sides of ℛ cannot support a measurement; the message asks for `group`.
        NoTracesError: no trace, or none on the train side though it was asked for; it says what every policy of
            Definition 22 would find.
    """
    judged, chosen = _judged(verdicts), resolve_predicate(predicate)
    extraction = _extract(dag, chosen, sides, verdicts=judged, attempts=attempts, on_progress=on_progress)
    if not any(trace.side is Side.TRAIN or Side.TRAIN not in sides for trace in extraction.traces):
        found = [trace.side for trace in extraction.traces]
        raise no_traces(dag.target, account(dag, chosen, extraction.checkpoint.seq, found, extraction.dropped))
    return extraction


def extract_new_traces(
    dag: ArtifactDAG,
    learner: str,
    predicate: Filter = "refinement",
    *,
    sides: Sequence[Side] = (Side.TRAIN,),
    verdicts: Sequence[ArtifactStatus | str] = (ArtifactStatus.ACCEPTED,),
    attempts: bool = False,
) -> Extraction:
    """Return the traces that Φ selects and `learner` has not trained; empty where there are none (Definition 14).

    What is new is decided by item, not by time: a late item, a late verdict and two items of one moment are all seen
    (erratum 41). Only untrained items are read (erratum 45).

    Args:
        dag: ℛ; it is only read.
        learner: the name that training checkpoints are kept under.
        predicate: as in `extract_traces`.
        sides: sides whose specifications may be used.
        verdicts: as in `extract_traces`.
        attempts: as in `extract_traces`.
    """
    return _extract(dag, predicate, sides, learner, verdicts=_judged(verdicts), attempts=attempts)


def content_digest(item: RepositoryItem) -> bytes:
    """Return 16 bytes that stand for what an item teaches: Ψ, Ω, H and a."""
    running = hashlib.sha256()
    for part in (item.specification, item.constraints, item.artifact, *_told(item)):
        encoded = part.encode()
        running.update(b"%d;" % len(encoded) + encoded)  # the length keeps neighbours apart
    return running.digest()[:16]


def explain_selection(
    dag: ArtifactDAG,
    predicate: Filter = "refinement",
    *,
    sides: Sequence[Side] = (Side.TRAIN, Side.VALIDATION),
    on_progress: OnProgress | None = None,
) -> SelectionReport:
    """Return why Φ selects what it selects: every item of ℛ accounted for, in words; no trace is kept in memory.

    Args:
        dag: ℛ; it is only read.
        predicate: as in `extract_traces`.
        sides: sides whose specifications may be used.
        on_progress: called with (selected items looked at, selected items, note).
    """
    chosen, seq, refusal = resolve_predicate(predicate), dag.last_seq, ""
    try:
        with dag.reading() as connection:
            check(connection)
    except DataError as error:
        refusal = str(error)
    report = account(dag, chosen, seq, (), {}, refusal)
    found, dropped = Counter[Side](), Counter[str]()
    for traces, lost in _outcomes(dag, chosen, seq, sides):
        found.update(trace.side for trace in traces)
        dropped.update(lost)
        if on_progress:
            on_progress(found.total() + dropped.total(), report.selected, f"{found.total()} traces")
    return msgspec.structs.replace(report, traces=by_side(found), dropped=dict(sorted(dropped.items())))


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


def _extract(
    dag: ArtifactDAG,
    predicate: Filter,
    sides: Sequence[Side],
    learner: str | None = None,
    *,
    verdicts: Sequence[ArtifactStatus] = (ArtifactStatus.ACCEPTED,),
    attempts: bool = False,
    on_progress: OnProgress | None = None,
) -> Extraction:
    with dag.reading() as connection:
        check(connection)
    chosen = resolve_predicate(predicate)
    checkpoint = _checkpoint(dag)
    dropped: Counter[str] = Counter()
    traces: list[TrainingTrace] = []
    total = dag.count(and_(chosen, up_to(checkpoint.seq))) if on_progress else 0
    for fresh, lost in _outcomes(dag, chosen, checkpoint.seq, sides, learner, verdicts):
        dropped.update(lost)
        traces += _with_attempts(dag, fresh) if attempts else fresh
        if on_progress:
            on_progress(len(traces) + dropped.total(), total, f"{len(traces)} traces")
    return Extraction(
        traces=traces,
        dropped=dict(sorted(dropped.items())),
        selected=len(traces) + dropped.total(),
        predicate=repr(chosen),
        checkpoint=checkpoint,
        sides_digest=dag.sides_digest(),
    )


def _outcomes(
    dag: ArtifactDAG,
    chosen: Predicate,
    seq: int,
    sides: Sequence[Side],
    learner: str | None = None,
    verdicts: Sequence[ArtifactStatus] = (ArtifactStatus.ACCEPTED,),
) -> Iterator[tuple[list[TrainingTrace], Counter[str]]]:
    """Yield what becomes of the items up to `seq` that Φ selects, a batch at a time: traces, and drops by reason."""
    seen: set[bytes] = set()
    found = iter(dag.extract(and_(chosen, up_to(seq)), untrained_by=learner))
    while batch := list(itertools.islice(found, _BATCH)):
        dropped = Counter[str]()
        usable = _usable(dag, batch, sides, verdicts, dropped)
        if learner is not None and usable:
            with dag.reading() as connection:
                seen |= trained_contents(connection, learner, [content for *_, content in usable])
        fresh: list[TrainingTrace] = []
        for item, place, content in usable:
            if content in seen:
                dropped["exact duplicate of an earlier trace"] += 1
            else:
                seen.add(content)
                fresh.append(TrainingTrace(item=item, history=item.history, group=place.cluster, side=place.side))
        yield fresh, dropped


def _usable(
    dag: ArtifactDAG,
    batch: Sequence[RepositoryItem],
    sides: Sequence[Side],
    verdicts: Sequence[ArtifactStatus],
    dropped: Counter[str],
) -> list[tuple[RepositoryItem, Placement, bytes]]:
    with dag.reading() as connection:
        places = placements(connection, list({_root(item) for item in batch}))
    usable = []
    for item in batch:
        place = places[_root(item)]  # a chain follows its root's Ψ, even where Ψ was amended
        if reason := unusable(item, place.side, sides, verdicts):
            dropped[reason] += 1
        else:
            usable.append((item, place, content_digest(item)))
    return usable


def _checkpoint(dag: ArtifactDAG) -> Checkpoint:
    seq = dag.last_seq
    last = next(iter(dag.extract(up_to(seq), order_by="seq", descending=True, limit=1)), None)
    return Checkpoint(seq=seq, item_id=last.id if last else "")


def _judged(verdicts: Sequence[ArtifactStatus | str]) -> tuple[ArtifactStatus, ...]:
    try:
        judged = tuple(ArtifactStatus(verdict) for verdict in verdicts)
    except ValueError:
        judged = ()
    if not judged or not set(judged) <= {ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED}:
        raise UsageError(f"verdicts {[str(verdict) for verdict in verdicts]}: name accepted, rejected, or both")
    return judged


def _with_attempts(dag: ArtifactDAG, traces: Sequence[TrainingTrace]) -> list[TrainingTrace]:
    later = [trace.item.seq for trace in traces if trace.item.facts and trace.item.facts.attempt > 1]
    with dag.reading() as connection:
        paths = {seq: path[:-1] for seq, path in paths_to_root(connection, later).items()}
        before = sorted({seq for path in paths.values() for seq in path})
        found = {item.seq: item for item in items_by_seq(connection, before)}
    return [
        msgspec.structs.replace(
            trace,
            attempts=tuple(
                found[seq] for seq in paths.get(trace.item.seq, ()) if found[seq].status is ArtifactStatus.REJECTED
            ),
        )
        for trace in traces
    ]


def unusable(
    item: RepositoryItem,
    side: Side,
    sides: Sequence[Side],
    verdicts: Sequence[ArtifactStatus] = (ArtifactStatus.ACCEPTED,),
) -> str | None:
    """Return why an item cannot be trained on, the first reason that holds; None where it can.

    Args:
        item: as ℛ returns it.
        side: of its chain's root.
        sides: sides that may be used.
        verdicts: statuses that may be used.
    """
    facts = item.facts
    texts = (item.specification, item.constraints, item.artifact, *_told(item))
    reasons = {
        _not_among(item.status, verdicts): item.status not in verdicts,
        _SIDE_REASONS[side]: side not in sides,
        "redacted": facts is not None and facts.redacted,
        "excluded": facts is not None and facts.excluded,
        "broken chain: an earlier attempt is missing": facts is not None and facts.broken,
        "empty specification": not item.specification.strip(),
        "empty artifact": not item.artifact.strip(),
        "NUL or lone surrogates in its text": not all(_writable(text) for text in texts),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _not_among(status: ArtifactStatus, verdicts: Sequence[ArtifactStatus]) -> str:
    if ArtifactStatus.REJECTED not in verdicts:
        return "not accepted: an accepted artifact is needed"
    return "no verdict" if status is ArtifactStatus.PENDING else f"{status}: not among the verdicts asked for"


def _told(item: RepositoryItem) -> Iterator[str]:
    for entry in item.history:
        yield entry.artifact
        yield entry.feedback


def _writable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _root(item: RepositoryItem) -> str:
    return item.facts.root_id if item.facts else item.id


def _example(trace: TrainingTrace) -> dict[str, Any]:
    item = trace.item
    return {
        "prompt": format_prompt(item.specification, trace.history, constraints=item.constraints),
        "completion": item.artifact,
        "text": format_full_example(item),
        "metadata": {
            "source": item.source.value,
            "action_pair_id": item.action_pair_id,
            "workflow_id": item.workflow_id,
            "retry_count": trace.retries,
            "item_id": item.id,
        },
    }
