"""From records to what an ablation says: figures of each arm, and its differences to the reference, by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from guardlearn import evidence, statistics
from guardlearn.ablation.axes import AXES, Arm
from guardlearn.ablation.keeping import Allotment, Record, Trained
from guardlearn.ablation.timing import deviation
from guardlearn.ablation.work import Work
from guardlearn.evidence import Outcome
from guardlearn.report.ablation import Ablation, ArmFigures, Figures, Versus, sentence

__all__ = ["difference", "summarise"]

FIRST, ATTEMPTS = "first attempts", "attempts"
"""Outcomes that arms are told apart by."""

Records = Mapping[tuple[str, int | None], Record]


def summarise(
    work: Work, allotted: Allotment, trained: Mapping[tuple[str, int], Trained], records: Records
) -> Ablation:
    """Return what an ablation came to.

    Args:
        work: the ablation.
        allotted: the time of each training.
        trained: trainings by arm and seed.
        records: chains by arm and seed; those of the untrained model have no seed.
    """
    planned, seeds = work.planned, list(work.settings.ablation.seeds)
    outcome = ATTEMPTS if AXES[planned.over].by_attempts else FIRST
    base = [records[planned.reference, seed] for seed in seeds]
    others = [arm.name for arm in planned.arms if arm.name != planned.reference]
    found = {name: difference([records[name, seed] for seed in seeds], base, outcome, planned.r_max) for name in others}
    tested = {name: each.p_value for name, (each, _) in found.items() if each.p_value is not None}
    adjusted = statistics.holm(tested)
    differences = [_versus(name, *found[name], adjusted.get(name)) for name in others]
    walls = [each.wall_seconds for each in trained.values() if each.wall_seconds is not None]
    return Ablation(
        over=planned.over,
        outcome=outcome,
        reference=planned.reference,
        arms=[_arm(work, arm, seeds, trained, records) for arm in planned.arms],
        untrained=[_figures(name, [record], planned.r_max) for (name, seed), record in records.items() if seed is None],
        differences=differences,
        seeds=seeds,
        samples=work.settings.ablation.samples,
        r_max=planned.r_max,
        specs=len(planned.specs),
        groups=planned.groups,
        seconds=allotted.seconds,
        uneven=deviation(walls),
        same=planned.same,
        left_out=planned.left_out,
        notes=planned.notes,
        says=[sentence(each, planned.reference, outcome, len(others)) for each in differences],
        about=_about(work, base[0]),
    )


def difference(
    arm: Sequence[Record], reference: Sequence[Record], outcome: str, r_max: int
) -> tuple[statistics.Difference, int]:
    """Return an arm minus the reference, clustered by group, and how many pairs it rests on.

    A pair is one specification, sample and training seed. Attempts until accepted lie in [1, R_max], a chain that is
    never accepted counts R_max; their differences are scaled into [-1, 1] for the statistics and back.

    Args:
        arm: a record a seed.
        reference: of the same seeds, in the same order.
        outcome: `FIRST` or `ATTEMPTS`.
        r_max: R_max.
    """
    value, scale = (_first, 1.0) if outcome == FIRST else (_attempts_of(r_max), float(r_max - 1))
    groups: dict[str, list[float]] = {}
    for one, other in zip(arm, reference, strict=True):
        theirs = {(chain.spec, chain.sample): value(chain.outcome) for chain in other.chains}
        for chain in one.chains:
            ours, before = value(chain.outcome), theirs[chain.spec, chain.sample]
            if ours is not None and before is not None:
                groups.setdefault(chain.group, []).append((ours - before) / scale)
    return _scaled(statistics.clustered_difference(groups), scale), sum(map(len, groups.values()))


def _first(outcome: Outcome) -> float | None:
    return None if outcome.first is None else float(outcome.first)


def _attempts_of(r_max: int) -> Callable[[Outcome], float | None]:
    def attempts(outcome: Outcome) -> float | None:
        if outcome.outcome == "no verdict":
            return None
        return float(outcome.attempts if outcome.outcome == "solved" else r_max)

    return attempts


def _scaled(found: statistics.Difference, scale: float) -> statistics.Difference:
    if scale == 1.0:
        return found
    names = ("rate", "low", "high", "minimum_detectable", "bootstrap_low", "bootstrap_high")
    values = {name: getattr(found, name) for name in names}
    grown = {name: None if value is None else value * scale for name, value in values.items()}
    return statistics.Difference(**grown, p_value=found.p_value, method=found.method)


def _versus(name: str, found: statistics.Difference, pairs: int, adjusted: float | None) -> Versus:
    return Versus(
        arm=name,
        rate=found.rate,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        adjusted_p_value=adjusted,
        minimum_detectable=found.minimum_detectable,
        pairs=pairs,
        method=found.method,
    )


def _arm(
    work: Work, arm: Arm, seeds: Sequence[int], trained: Mapping[tuple[str, int], Trained], records: Records
) -> ArmFigures:
    own = [trained[arm.name, seed] for seed in seeds]
    traces = [work.planned.extractions[arm.name, seed].traces for seed in seeds]
    return ArmFigures(
        traces=[len(each) for each in traces],
        groups=[len({trace.group for trace in each}) for each in traces],
        steps=own[0].steps,
        passes=[each.passes[0] for each in own],
        wall_seconds=[each.wall_seconds for each in own],
        figures=_figures(arm.name, [records[arm.name, seed] for seed in seeds], work.planned.r_max),
    )


def _figures(name: str, records: Sequence[Record], r_max: int) -> Figures:
    chains = _chains(records)
    survival = evidence.survival_of(chains, r_max) if r_max > 1 else None
    expected = survival.expected_attempts if survival else None
    return Figures(
        name=name,
        first_attempt=evidence.rate_of(chains),
        by_seed=[evidence.rate_of(_chains([record])).rate for record in records],
        expected_attempts=expected.rate if expected else None,
        expected_attempts_low=expected.low if expected else None,
        expected_attempts_high=expected.high if expected else None,
        solved_within_r_max=survival.solved_by_attempt[-1] if survival else None,
    )


def _chains(records: Iterable[Record]) -> list[tuple[str, Outcome]]:
    return [(chain.group, chain.outcome) for record in records for chain in record.chains]


def _about(work: Work, record: Record) -> dict[str, str]:
    guard = work.bench.guard
    return {
        "model": Path(work.settings.loop.model).name,
        "guard": guard.name,
        "guard_version": guard.version,
        "pairing": record.pairing,
        "plan": work.planned.digest,
    }
