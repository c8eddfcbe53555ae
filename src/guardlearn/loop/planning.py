"""The first step of a round: what is new, what is trained on, and what the measurement can show, before anything runs.

A trace is new to a learner in exactly one round: it counts as new until a round has trained with it, whatever was
decided about that round's adapter then. What a plan says is stored in ℛ, and every later step works from that: what
lands in ℛ meanwhile, items or verdicts, is the next round's. Definitions 14 and 15; errata 41-45.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn import gate, statistics
from guardlearn.dag import ArtifactDAG, rounds
from guardlearn.dag.checkpoints import trained_contents, trained_seqs
from guardlearn.dag.rounds import RoundStep, State
from guardlearn.digests import digest_json
from guardlearn.errors import NoTracesError, UsageError
from guardlearn.evidence import group_of
from guardlearn.gate import GateConfig
from guardlearn.jobs import recorded_histories, traces_again
from guardlearn.lineage import live_adapter
from guardlearn.loop.config import LoopSettings
from guardlearn.traces import Checkpoint, Extraction, content_digest, extract_traces
from guardlearn.types import ArtifactStatus, Side, Specification, TrainingTrace
from guardlearn.weighting import weigh

__all__ = [
    "GAIN",
    "Outlook",
    "Waiting",
    "held_out_digest",
    "looks",
    "on_side",
    "outlook",
    "plan_round",
    "planned_extraction",
    "rounds_of",
]

GAIN = 0.1
"""The gain that a plan is made for where none is named: 10 points."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Why no round begins yet."""

    new: int
    """Traces that no round has had."""
    needed: int
    reason: str


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What a measurement on this held-out set can show at its next look."""

    specs: int
    groups: int
    look: int
    level: float
    """Of the one-sided test at this look."""
    gain: float
    """The gain that was asked about."""
    groups_needed: int | None
    """For `gain` with the configured power; None: no number of groups shows it."""
    detectable: float | None
    """Smallest true gain that these groups show with the configured power; None: not even a gain of 1."""
    power: float
    assumed: bool
    """Whether the spread was assumed (base at 50 %) rather than taken from the last round's differences."""


def rounds_of(dag: ArtifactDAG, learner: str | None = None) -> list[list[RoundStep]]:
    """Return the steps of each round, round by round, in order of their beginning."""
    with dag.reading() as connection:
        steps = rounds.read(connection, learner)
    found: dict[tuple[str, int], list[RoundStep]] = {}
    for step in steps:
        found.setdefault((step.learner, step.round), []).append(step)
    return list(found.values())


def on_side(dag: ArtifactDAG, specs: Sequence[Specification], side: Side) -> list[Specification]:
    """Return those of `specs` that ℛ keeps on a side, in their order."""
    return [spec for spec in specs if dag.side_of(spec.specification, spec.group) is side]


def held_out_digest(specs: Sequence[Specification]) -> str:
    """Return what names a held-out version: the digest of its specifications in order."""
    return digest_json([msgspec.to_builtins(spec) for spec in specs])


def looks(dag: ArtifactDAG, digest: str) -> int:
    """Return how many rounds of any learner have looked at this held-out version.

    A round has looked when it measured, and also when it was given up after it had an adapter: nobody knows what was
    seen by then. One that was refused before any sampling has not.
    """
    count = 0
    for steps in rounds_of(dag):
        if steps[0].details.get("held_out", {}).get("digest") != digest:
            continue
        by_state = {step.state: step.details for step in steps}
        measured = by_state.get(State.MEASURED)
        if measured is not None:
            count += measured["evidence"] is not None
        else:
            count += State.TRAINED in by_state and State.REFUSED in by_state
    return count


def outlook(
    dag: ArtifactDAG, learner: str, held_out: Sequence[Specification], samples: int, config: GateConfig, gain: float
) -> Outlook:
    """Return what the next measurement of this learner can show.

    Args:
        dag: ℛ; it is only read.
        learner: whose last differences tell how groups vary.
        held_out: specifications that will be measured.
        samples: chains a specification.
        config: the gate's settings.
        gain: true gain that is hoped for, in (0, 1].

    Raises:
        UsageError: `gain` outside (0, 1].
    """
    if not 0 < gain <= 1:
        raise UsageError(f"gain is {gain}; a difference of pass rates lies above 0 and is at most 1")
    groups = len({group_of(spec) for spec in held_out})
    look = looks(dag, held_out_digest(held_out)) + 1
    moments = _moments(dag, learner)
    assumed = moments is None
    if moments is None:
        per_group = max(1, round(len(held_out) * samples / max(1, groups)))
        moments = statistics.assumed_moments(0.5, min(gain, 0.5), per_group)
    needed, detectable = gate.plan(gain, moments, groups, look, config)
    return Outlook(
        specs=len(held_out),
        groups=groups,
        look=look,
        level=statistics.level_of_look(config.alpha, look),
        gain=gain,
        groups_needed=needed.groups if needed else None,
        detectable=detectable,
        power=config.power,
        assumed=assumed,
    )


def plan_round(
    dag: ArtifactDAG, settings: LoopSettings, specs: Sequence[Specification], measures: Mapping[str, Any]
) -> tuple[int, dict[str, Any]] | Waiting:
    """Return the next round's number and plan, or why none begins yet; nothing is stored.

    Args:
        dag: ℛ; it is only read.
        settings: what the loop is to do.
        specs: every specification of the loop; their sides in ℛ decide which ones measure.
        measures: what else the round will be measured with; it is kept with the plan.

    Raises:
        UsageError: no held-out specification, or so few groups that no gain could ever be shown.
        ModelError: the live adapter is not what was promoted.
        DataError: the sides of ℛ cannot support a measurement.
    """
    config = settings.loop
    with dag.reading() as connection:
        last = rounds.read(connection, config.learner, last=True)
    number = last[0].round + 1 if last else 1
    try:
        extraction = extract_traces(dag, config.select, **settings.training.extraction)
    except NoTracesError as error:
        return Waiting(new=0, needed=config.min_new_traces, reason=str(error))
    new = _new(dag, config.learner, extraction.traces)
    if len(new) < config.min_new_traces:
        reason = f"{len(new)} new traces, a round takes {config.min_new_traces}"
        return Waiting(new=len(new), needed=config.min_new_traces, reason=reason)
    held_out = on_side(dag, specs, Side.HELD_OUT)
    seen = _checked(outlook(dag, config.learner, held_out, config.samples, settings.promotion, GAIN))
    return number, _plan(dag, settings, extraction, new, held_out, seen, number) | {"measures": dict(measures)}


def planned_extraction(dag: ArtifactDAG, plan: Mapping[str, Any]) -> Extraction:
    """Return the traces that a plan names, as they were when it was made, however ℛ has grown since.

    Raises:
        JobError: an item is gone, or its texts were redacted since; `abandon` gives such a round up.
    """
    ids: list[str] = plan["item_ids"]
    traces = traces_again(
        dag,
        ids,
        sides={name: Side(side) for name, side in zip(ids, plan["sides"], strict=True)},
        groups=dict(zip(ids, plan["groups"], strict=True)),
        histories=plan["histories"],
        attempts=plan.get("attempts"),
        rejected=plan.get("rejected_item_ids", ()),
    )
    return Extraction(
        traces=traces,
        dropped=plan["dropped"],
        selected=plan["selected"],
        predicate=plan["predicate"],
        checkpoint=Checkpoint(seq=plan["seq"], item_id=plan["checkpoint_item"]),
        sides_digest=plan["sides_digest"],
    )


def _plan(
    dag: ArtifactDAG,
    settings: LoopSettings,
    extraction: Extraction,
    new: Sequence[str],
    held_out: Sequence[Specification],
    seen: Outlook,
    number: int,
) -> dict[str, Any]:
    config = settings.loop
    live = live_adapter(dag, config.learner)
    incumbent = None if live is None else {"adapter": str(live.folder), "digest": live.digest, "round": live.round}
    parent = incumbent if config.mode == "continue" else None
    learned = _learned(dag, config.learner, live.digest) if live is not None and parent is not None else None
    fresh = None if learned is None else [t.item.id for t in extraction.traces if t.item.id not in learned]
    seed = config.seed + number
    weighed = weigh(extraction.traces, config.weighting, new_ids=fresh, seed=seed)
    more: dict[str, Any] = {}
    if settings.training.of_attempts:
        rejected = [trace.item.id for trace in weighed.traces if trace.item.status is ArtifactStatus.REJECTED]
        attempts = {trace.item.id: [each.id for each in trace.attempts] for trace in weighed.traces}
        more = {"attempts": attempts, "rejected_item_ids": rejected}
    return more | {
        "predicate": extraction.predicate,
        "seq": extraction.checkpoint.seq,
        "checkpoint_item": extraction.checkpoint.item_id,
        "selected": extraction.selected,
        "dropped": extraction.dropped,
        "item_ids": [trace.item.id for trace in weighed.traces],
        "groups": [trace.group for trace in weighed.traces],
        "sides": [trace.side.value for trace in weighed.traces],
        "histories": recorded_histories(weighed.traces),
        "new_item_ids": list(new),
        "sides_digest": extraction.sides_digest,
        "mode": config.mode,
        "parent": parent,
        "incumbent": incumbent,
        "weighting": msgspec.to_builtins(config.weighting) | {"counts": dict(weighed.counts)},
        "weights": dict(weighed.weights),
        "base_model": config.base_model,
        "seed": seed,
        "training": _resolved(settings, seed),
        "held_out": {"digest": held_out_digest(held_out), "specs": seen.specs, "groups": seen.groups},
        "look": seen.look,
        "detectable": seen.detectable,
        "settings": {
            "loop": msgspec.to_builtins(config),
            "training": msgspec.to_builtins(settings.training),
            "promotion": msgspec.to_builtins(settings.promotion),
        },
    }


def _resolved(settings: LoopSettings, seed: int) -> dict[str, Any]:
    """Return how this round trains: the table [training] with the round's seed and the base model's name."""
    said: dict[str, Any] = msgspec.to_builtins(settings.training)
    return said | {"seed": seed, "base_model": said["base_model"] or Path(settings.loop.base_model).name}


def _checked(seen: Outlook) -> Outlook:
    if not seen.specs:
        raise UsageError(
            "none of the loop's specifications is on ℛ's held-out side, so no candidate could be measured; name more "
            "under specs in [loop], with a group each, and collect or register them"
        )
    fewest = max(2, math.ceil(math.log2(1 / seen.level)))
    if seen.groups < fewest:
        raise UsageError(
            f"{seen.groups} held-out groups can show no gain at look {seen.look} (level {seen.level:.2g}): the test "
            f"needs at least {fewest}; add held-out specifications of other groups"
        )
    return seen


def _new(dag: ArtifactDAG, learner: str, traces: Sequence[TrainingTrace]) -> list[str]:
    """Return the ids of train-side traces that no round of this learner has had, by item and by content."""
    wanted = {trace.item.seq: content_digest(trace.item) for trace in traces if trace.side is Side.TRAIN}
    with dag.reading() as connection:
        taken = trained_seqs(connection, learner, list(wanted))
        known = trained_contents(connection, learner, list(wanted.values()))
    fresh = {seq for seq, content in wanted.items() if seq not in taken and content not in known}
    return [trace.item.id for trace in traces if trace.item.seq in fresh]


def _learned(dag: ArtifactDAG, learner: str, digest: str) -> set[str]:
    """Return the items that the adapter of a digest has learned from, its parents' included."""
    by_digest: dict[str, Mapping[str, Any]] = {}
    for steps in rounds_of(dag, learner):
        details = {step.state: step.details for step in steps}
        if State.TRAINED in details:
            by_digest[details[State.TRAINED]["adapter_digest"]] = details[State.PLANNED]
    learned: set[str] = set()
    while digest in by_digest:
        plan = by_digest.pop(digest)
        learned |= set(plan["item_ids"])
        digest = (plan["parent"] or {}).get("digest", "")
    return learned


def _moments(dag: ArtifactDAG, learner: str) -> statistics.Moments | None:
    """Return how groups differed in the last measurement that had any difference."""
    for steps in reversed(rounds_of(dag, learner)):
        for step in steps:
            if step.state is State.MEASURED and step.details["figures"]["changed"]:
                judged = step.details["figures"]["held_out"]["judged"]
                moments = statistics.moments_of([values for _, values in sorted(judged.items()) if values])
                if moments is not None and moments.spread > 0:
                    return moments
    return None
