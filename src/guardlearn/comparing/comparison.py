"""The comparison of two models that were measured apart, with everything that `evaluate` says of base and candidate."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Literal

import msgspec

from guardlearn import statistics
from guardlearn.comparing.costs import Cost, cost
from guardlearn.comparing.pairing import LeftOut, Measured, Paired, pair_up
from guardlearn.evidence import (
    ActionPair,
    Changes,
    Comparison,
    Outcome,
    Pair,
    Rate,
    by_action_pair,
    changes_of,
    difference_of,
    rate_of,
    survival_of,
)

__all__ = ["Bound", "Compared", "ModelFigures", "PassAtK", "compare"]


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """The guide's bound on what stays unsolved, beside what did."""

    epsilon: float
    """The mean share of first attempts that pass. The bound asks for more: that no attempt passes less often."""
    bound: float
    """(1 - epsilon)^R_max."""
    observed: float
    """Share unsolved after R_max attempts; where specifications differ in how hard they are it lies above the bound."""


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How one of the two models did on the specifications compared."""

    name: str
    which: str
    """base | candidate, of its evidence."""
    model: str
    adapter: str | None
    """None: the bare base."""
    seed: int
    first_attempt: Rate
    expected_attempts: float | None
    expected_attempts_low: float | None
    expected_attempts_high: float | None
    expected_retries: float | None
    solved_within_r_max: float | None
    solved_by_attempt: list[float]
    bound: Bound | None
    """None: nothing was judged."""
    outcomes: dict[str, int]
    cost: Cost | None
    """Per accepted artifact; None where specifications were left out, for costs are not known of each."""


class PassAtK(msgspec.Struct, frozen=True, kw_only=True):
    """Share of specifications of which at least one of k independent first attempts passes, a mean of group means."""

    k: int
    specs: int
    """Specifications with k first attempts or more that both models got a verdict on."""
    a: float | None
    b: float | None
    difference: float | None
    """B minus A."""
    low: float | None
    high: float | None


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """B beside A, on the same specifications."""

    a: ModelFigures
    b: ModelFigures
    pairing: str
    """What a pair shares: "common random numbers" or "specification"."""
    specs: int
    groups: int
    samples_per_spec: int
    r_max: int
    left_out: LeftOut
    difference: Comparison
    """B minus A; missing verdicts are held against B."""
    mcnemar_p_value: float | None
    """Exact, two-sided; None where some group has more than one chain, for then they are not independent."""
    changes: Changes
    pass_at_k: list[PassAtK]
    """Empty with one sample per specification."""
    by_action_pair: list[ActionPair]
    notes: list[str]
    """What speaks against reading too much into it, in sentences."""


def compare(a: Measured, b: Measured, *, common: bool = False) -> Compared:
    """Return how B differs from A.

    Args:
        a: what is compared with.
        b: what is compared.
        common: whether to compare only the specifications that are in both.

    Raises:
        UsageError: they cannot be paired; the message names all that differs, with both values.
        DataError: an evidence names a chain twice.
    """
    paired = pair_up(a, b, common=common)
    pairs, seed, r_max = paired.pairs, a.evidence.seed, a.evidence.r_max
    changes = changes_of(pairs)
    group_sizes = collections.Counter(pair.group for pair in pairs)
    alone = all(size == 1 for size in group_sizes.values())
    return Compared(
        a=_figures(a, [(pair.group, pair.base) for pair in pairs], r_max, paired.left_out),
        b=_figures(b, [(pair.group, pair.candidate) for pair in pairs if pair.candidate], r_max, paired.left_out),
        pairing="common random numbers" if paired.same_noise else "specification",
        specs=len({pair.id for pair in pairs}),
        groups=len(group_sizes),
        samples_per_spec=a.evidence.samples_per_spec,
        r_max=r_max,
        left_out=paired.left_out,
        difference=difference_of(pairs, seed),
        mcnemar_p_value=statistics.mcnemar_exact(changes.gained, changes.lost) if alone else None,
        changes=changes,
        pass_at_k=_pass_at_k(pairs, a.evidence.samples_per_spec, seed),
        by_action_pair=by_action_pair(pairs, seed),
        notes=list(_notes(a, b, paired, changes)),
    )


def _figures(one: Measured, chains: Sequence[tuple[str, Outcome]], r_max: int, left_out: LeftOut) -> ModelFigures:
    rate, survival = rate_of(chains), survival_of(chains, r_max)
    expected = survival.expected_attempts if survival else None
    solved = survival.solved_by_attempt[-1] if survival else None
    return ModelFigures(
        name=one.name,
        which=one.which,
        model=one.evidence.model,
        adapter=one.adapter,
        seed=one.evidence.seed,
        first_attempt=rate,
        expected_attempts=expected.rate if expected else None,
        expected_attempts_low=expected.low if expected else None,
        expected_attempts_high=expected.high if expected else None,
        expected_retries=expected.rate - 1 if expected and expected.rate is not None else None,
        solved_within_r_max=solved,
        solved_by_attempt=list(survival.solved_by_attempt) if survival else [],
        bound=_bound(rate.rate, solved, r_max),
        outcomes=dict(collections.Counter(outcome.outcome for _, outcome in chains).most_common()),
        cost=cost(one.performance) if left_out == LeftOut() else None,
    )


def _bound(epsilon: float | None, solved: float | None, r_max: int) -> Bound | None:
    if epsilon is None or solved is None:
        return None
    return Bound(epsilon=epsilon, bound=statistics.unsolved_bound(epsilon, r_max), observed=1 - solved)


def _pass_at_k(pairs: Sequence[Pair], samples: int, seed: int) -> list[PassAtK]:
    """Return pass@k for k = 2, 4, 8 … and the number of samples; pass@1 is the first-attempt rate."""
    if samples < 2:
        return []
    firsts: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for pair in pairs:
        own = firsts.setdefault((pair.group, pair.id), [])
        before, after = pair.base.first, pair.candidate.first if pair.candidate else None
        if before is not None and after is not None:
            own.append((before, after))
    powers = [2**power for power in range(1, samples.bit_length()) if 2**power < samples]
    return [_pass_at(k, firsts, seed) for k in [*powers, samples]]


def _pass_at(k: int, firsts: dict[tuple[str, str], list[tuple[bool, bool]]], seed: int) -> PassAtK:
    sides: dict[Literal["a", "b"], dict[str, list[float]]] = {"a": {}, "b": {}}
    differences: dict[str, list[float]] = {}
    specs = 0
    for (group, _), own in firsts.items():
        if len(own) < k:
            continue
        specs += 1
        before = statistics.pass_at_k(len(own), sum(first for first, _ in own), k)
        after = statistics.pass_at_k(len(own), sum(first for _, first in own), k)
        sides["a"].setdefault(group, []).append(before)
        sides["b"].setdefault(group, []).append(after)
        differences.setdefault(group, []).append(after - before)
    difference = statistics.clustered_difference(differences, seed=seed)
    return PassAtK(
        k=k,
        specs=specs,
        a=statistics.clustered_mean(sides["a"]).rate,
        b=statistics.clustered_mean(sides["b"]).rate,
        difference=difference.rate,
        low=difference.low,
        high=difference.high,
    )


def _notes(a: Measured, b: Measured, paired: Paired, changes: Changes) -> list[str]:
    said, one, other = [], a.evidence, b.evidence
    left = paired.left_out
    if left != LeftOut():
        said.append(
            f"Left out: {left.only_in_a} specifications that only A has, {left.only_in_b} that only B has, "
            f"{left.altered} that differ under the same id."
        )
    if not all(pair.digest for pair in paired.pairs):
        said.append("An evidence is from before texts were noted: specifications are matched by id and group alone.")
    if one.seed != other.seed:
        said.append(f"Seeds {one.seed} and {other.seed}: pairs share the specification only, not the sampling noise.")
    elif not paired.same_noise:
        said.append("Pairs share the specification only, not the sampling noise.")
    if one.model != other.model:
        said.append(f"The models differ: {one.model} and {other.model}.")
    if len({pair.group for pair in paired.pairs}) < 2:
        said.append("One group only: nothing can be said about other groups, so there is no interval.")
    if changes.no_verdict:
        said.append(f"{changes.no_verdict} pairs have not both verdicts.")
    if not changes.chains_changed:
        said.append("Every chain went the same way with both.")
    return said
