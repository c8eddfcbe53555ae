"""What a round trains on: which of the extracted traces, and how much each counts.

Pure functions of the traces: no clock, no chance but a seeded one, and the order in which traces come decides nothing.
Only the train side is chosen from and weighted; every validation trace stays as it is. In this order:

1. a cap: of one specification at most so many traces, so that an easy one with many chains does not fill a round;
2. replay: where training goes on from an adapter, only so many of the traces that it has learned already for each new
   one; rehearsal against forgetting (erratum 40), bounded so that a round's cost follows what is new;
3. weights: recency, difficulty and balance of sources (erratum 39). A row's loss is multiplied by its trace's weight
   and divided by the weights of its batch, so weights compare traces with each other; they do not make a step larger.

The effective sample size (sum w)^2 / sum w^2 (Kish, Survey Sampling, 1965, section 11.7) says how many traces of equal
weight would tell as much.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from guardlearn.errors import UsageError
from guardlearn.traces import content_digest
from guardlearn.types import Side, TrainingTrace

__all__ = ["Weighed", "Weighting", "weigh"]

_DAY_SECONDS = 86_400.0
_MOST_DIFFICULTY = 4.0  # beyond, a few long chains are all that is trained on
_MOST_HALVINGS = 20.0  # a weight that vanished would be no weight: the trainer takes numbers above 0


class Weighting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caps and weights of traces; as it stands nothing is left out, and every trace counts the same."""

    per_spec: int = 0
    """Most traces of one specification (equal Ψ, as text); 0: no cap. Those not learned yet are kept first, then the
    newest: they come from the present guard and from the best adapter so far."""
    half_life_days: float = 0.0
    """A trace so many days older than the newest one counts half as much, never below 2^-20; 0: age does not count."""
    difficulty: float = 0.0
    """A trace counts (1 + retries)^difficulty, retries as the rejected attempts before it: at 1 in proportion to the
    attempts it took, so that what the model finds hard fills more of the loss; 0: retries do not count."""
    balance_sources: bool = False
    """Every source (generator, human, imported, unknown) gets the same total weight."""
    replay: float = 1.0
    """Where training goes on from an adapter: at most so many learned traces for each new one; 0: new ones alone."""

    def __post_init__(self) -> None:
        for name in ("per_spec", "half_life_days", "difficulty", "replay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"{name} of weighting is {value!r}; allowed: 0 or more")
        if self.per_spec != int(self.per_spec):
            raise UsageError(f"per_spec of weighting is {self.per_spec!r}; allowed: a whole number, 0 for no cap")
        if self.difficulty > _MOST_DIFFICULTY:
            raise UsageError(f"difficulty of weighting is {self.difficulty!r}; allowed: 0 to {_MOST_DIFFICULTY:g}")


class Weighed(msgspec.Struct, frozen=True, kw_only=True):
    """What a round trains on."""

    traces: list[TrainingTrace]
    """In the order they were given in."""
    weights: dict[str, float]
    """By item id, of the train side; their mean is 1. Empty where all are equal."""
    counts: dict[str, Any]
    """What became of the train side, plain JSON: "traces" kept, "dropped_by_cap", "dropped_by_replay",
    "effective_sample_size", "sources" (share of the weight, by source); with `new_ids` also "new" and "replayed"."""


def weigh(
    traces: Sequence[TrainingTrace],
    weighting: Weighting | None = None,
    *,
    new_ids: Collection[str] | None = None,
    seed: int = 0,
) -> Weighed:
    """Choose and weight traces.

    Args:
        traces: as extracted, both sides.
        weighting: caps and weights; None: every trace, all equal.
        new_ids: item ids that the adapter training goes on from has not learned; None: training starts from the base,
            and everything is new.
        seed: decides which learned traces are replayed, by their content; equal seeds choose equally.
    """
    settings = weighting or Weighting()
    train = [trace for trace in traces if trace.side is Side.TRAIN]
    new = {trace.item.id for trace in train if new_ids is None or trace.item.id in new_ids}
    capped = _capped(train, settings.per_spec, new, seed)
    kept = _replayed(capped, settings.replay, new, seed)
    weights = _weights(kept, settings)
    counts: dict[str, Any] = {
        "traces": len(kept),
        "dropped_by_cap": len(train) - len(capped),
        "dropped_by_replay": len(capped) - len(kept),
        "effective_sample_size": _effective(kept, weights),
        "sources": _shares(kept, weights),
    }
    if new_ids is not None:
        fresh = sum(trace.item.id in new for trace in kept)
        counts |= {"new": fresh, "replayed": len(kept) - fresh}
    chosen = {trace.item.id for trace in kept}
    left = [trace for trace in traces if trace.side is not Side.TRAIN or trace.item.id in chosen]
    return Weighed(traces=left, weights=weights, counts=counts)


def _capped(traces: Sequence[TrainingTrace], cap: int, new: Collection[str], seed: int) -> list[TrainingTrace]:
    if not cap:
        return list(traces)

    def rank(trace: TrainingTrace) -> tuple[bool, float, bytes, str]:
        return trace.item.id not in new, -trace.item.created_at.timestamp(), *_lot(trace, seed)

    by_spec: dict[str, list[TrainingTrace]] = {}
    for trace in sorted(traces, key=rank):
        by_spec.setdefault(trace.item.specification, []).append(trace)
    kept = {trace.item.id for same in by_spec.values() for trace in same[:cap]}
    return [trace for trace in traces if trace.item.id in kept]


def _replayed(traces: Sequence[TrainingTrace], replay: float, new: Collection[str], seed: int) -> list[TrainingTrace]:
    learned = [trace for trace in traces if trace.item.id not in new]
    most = math.floor(round(replay * (len(traces) - len(learned)), 6))
    kept = {trace.item.id for trace in sorted(learned, key=lambda trace: _lot(trace, seed))[:most]}
    return [trace for trace in traces if trace.item.id in new or trace.item.id in kept]


def _lot(trace: TrainingTrace, seed: int) -> tuple[bytes, str]:
    """Return a trace's place in a seeded draw: by what it teaches, its id only where two teach the same."""
    return hashlib.sha256(b"%d\0" % seed + content_digest(trace.item)).digest(), trace.item.id


def _weights(traces: Sequence[TrainingTrace], settings: Weighting) -> dict[str, float]:
    raw = {trace.item.id: 1.0 for trace in traces}
    if settings.half_life_days and traces:
        newest = max(trace.item.created_at for trace in traces)
        for trace in traces:
            days = (newest - trace.item.created_at).total_seconds() / _DAY_SECONDS
            raw[trace.item.id] = 2.0 ** -min(days / settings.half_life_days, _MOST_HALVINGS)
    if settings.difficulty:
        for trace in traces:
            raw[trace.item.id] *= (1.0 + trace.retries) ** settings.difficulty
    if settings.balance_sources:
        totals = _by_source(traces, raw)
        raw = {trace.item.id: raw[trace.item.id] / totals[trace.item.source.value] for trace in traces}
    if len(set(raw.values())) <= 1:
        return {}
    total = _sum(raw.values())
    return {name: weight * len(raw) / total for name, weight in raw.items()}


def _effective(traces: Sequence[TrainingTrace], weights: Mapping[str, float]) -> float:
    if not weights:
        return float(len(traces))
    return _sum(weights.values()) ** 2 / _sum(weight * weight for weight in weights.values())


def _shares(traces: Sequence[TrainingTrace], weights: Mapping[str, float]) -> dict[str, float]:
    totals = _by_source(traces, weights)
    whole = _sum(totals.values())
    return {source: total / whole for source, total in sorted(totals.items())}


def _by_source(traces: Sequence[TrainingTrace], weights: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for trace in traces:
        found.setdefault(trace.item.source.value, []).append(weights.get(trace.item.id, 1.0))
    return {source: _sum(values) for source, values in found.items()}


def _sum(values: Iterable[float]) -> float:
    """Return the correctly rounded sum: the order of the traces must not show in the last digit."""
    return math.fsum(values)
