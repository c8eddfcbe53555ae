"""What an evaluation says: its records, and how the attempts of base and candidate become figures.

Pure: attempts in, one `Evidence` out, the same every time. R_max counts attempts, the first included; a fatal verdict
is unsolved; a chain that ended without a verdict is censored. Every interval is by group.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from guardlearn import statistics
from guardlearn.attempts import Attempt, ChainKey
from guardlearn.digests import digest_text
from guardlearn.types import ArtifactStatus, Specification

__all__ = ["Comparison", "Evidence", "Outcome", "Pair", "Performance", "Rate", "group_of", "summarise"]

UNNAMED_CAUSE = "no cause named"


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Share of first attempts that passed: the mean of group means, with its interval by group."""

    rate: float | None
    """None: no first attempt got a verdict."""
    low: float | None
    high: float | None
    passed: int
    judged: int
    """First attempts with a verdict; the others are in neither side of the rate."""
    no_verdict: int
    method: str


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """How one model did."""

    first_attempt: Rate
    expected_attempts: float | None
    """Restricted mean of attempts up to R_max, in [1, R_max]; the guide's E[retries] is this minus 1."""
    expected_attempts_low: float | None
    expected_attempts_high: float | None
    expected_retries: float | None
    solved_within_r_max: float | None
    """Share of specifications solved within R_max attempts, a mean of group means."""
    solved_by_attempt: list[float]
    """The same for 1 .. R_max attempts."""
    failures: dict[str, int]
    """Rejected first attempts by cause, most frequent first."""
    outcomes: dict[str, int]
    """Chains by how they ended: solved, unsolved, fatal, no verdict."""
    attempts: int
    truncated: int
    """Attempts whose answer ran into the token limit."""
    completion_tokens: int


class Conservative(msgspec.Struct, frozen=True, kw_only=True):
    """The difference with every no-verdict counted against the candidate: its own as failures, the base's as passes."""

    rate: float | None
    low: float | None
    high: float | None
    p_value: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate minus base: first attempts that pass, paired, by group."""

    rate: float | None
    low: float | None
    high: float | None
    p_value: float | None
    minimum_detectable: float | None
    """Smallest difference this sample could have shown (alpha 0.05 two-sided, power 0.8); None: none at all."""
    bootstrap_low: float | None
    bootstrap_high: float | None
    pairs: int
    """Pairs in which both got a verdict."""
    conservative: Conservative
    holds: bool
    """Whether the interval lies above 0, and also does so in the conservative reading."""
    method: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one chain went."""

    first: bool | None
    """Whether the first attempt passed; None: no verdict."""
    attempts: int
    outcome: str
    """solved | unsolved | fatal | no verdict."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One specification and sample, before and after."""

    id: str
    group: str
    action_pair_id: str
    sample: int
    base: Outcome
    candidate: Outcome | None = None


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """How pairs differ."""

    gained: int
    """First attempts that fail with the base and pass with the candidate."""
    lost: int
    same: int
    no_verdict: int
    """Pairs in which one of the two got none."""
    chains_changed: int
    """Chains that differ in any of first attempt, number of attempts and outcome."""


class ActionPair(msgspec.Struct, frozen=True, kw_only=True):
    """First attempts of one action pair."""

    action_pair_id: str
    specs: int
    groups: int
    base: float | None
    candidate: float | None
    difference: float | None
    low: float | None
    high: float | None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured about a candidate, and what it was measured with."""

    model: str
    adapter: str | None
    """Adapter as it was named; None: only the base was measured."""
    specs: int
    groups: int
    samples_per_spec: int
    r_max: int
    base: Performance
    candidate: Performance | None
    difference: Comparison | None
    changes: Changes | None
    by_action_pair: list[ActionPair]
    drops: dict[str, int]
    """What is in no rate, by reason."""
    pairing: str
    """What base and candidate share: "common random numbers", or "specification" on a server."""
    leakage: str
    """What the specifications were checked against."""
    seed: int
    sampling: dict[str, Any]
    guard: str
    guard_version: str
    digests: dict[str, str]
    """plan, specifications, adapter, prompt, renderer."""
    versions: dict[str, str]
    per_spec: list[Pair]


def group_of(specification: Specification) -> str:
    """Return the group a specification is counted in; without one, equal texts form a group."""
    return specification.group or f"text {digest_text(specification.specification)[:12]}"


def _outcomes(attempts: Iterable[Attempt]) -> dict[ChainKey, Outcome]:
    """Return how each chain went."""
    chains: dict[ChainKey, list[Attempt]] = collections.defaultdict(list)
    for attempt in attempts:
        chains[attempt.chain].append(attempt)
    return {key: _outcome(chain) for key, chain in chains.items()}


def _pair_up(
    specifications: Sequence[Specification],
    samples: int,
    base: Iterable[Attempt],
    candidate: Iterable[Attempt] | None,
) -> list[Pair]:
    """Return one pair a specification and sample, in the order of `specifications`."""
    before, after = _outcomes(base), _outcomes(candidate) if candidate is not None else None
    return [
        Pair(
            id=spec.id,
            group=group_of(spec),
            action_pair_id=spec.action_pair_id,
            sample=sample,
            base=before[spec.id, sample],
            candidate=after[spec.id, sample] if after is not None else None,
        )
        for spec in specifications
        for sample in range(samples)
    ]


def _performance(pairs: Sequence[Pair], attempts: Sequence[Attempt], which: str, r_max: int) -> Performance:
    """Return the figures of one model.

    Args:
        pairs: all chains.
        attempts: the attempts of that model.
        which: "base" or "candidate".
        r_max: R_max.
    """
    chains: list[tuple[str, Outcome]] = [(pair.group, getattr(pair, which)) for pair in pairs]
    firsts = [(group, one.first) for group, one in chains if one.first is not None]
    estimate = statistics.clustered_mean(_by_group((group, float(first)) for group, first in firsts))
    survival = statistics.expected_attempts([_survival_chain(group, one) for group, one in chains], r_max)
    expected = survival.expected_attempts if survival else None
    rejected = [a for a in attempts if a.attempt == 1 and a.verdict.status is ArtifactStatus.REJECTED]
    return Performance(
        first_attempt=Rate(
            rate=estimate.rate,
            low=estimate.low,
            high=estimate.high,
            passed=sum(first is True for _, first in firsts),
            judged=len(firsts),
            no_verdict=len(chains) - len(firsts),
            method=estimate.method,
        ),
        expected_attempts=expected.rate if expected else None,
        expected_attempts_low=expected.low if expected else None,
        expected_attempts_high=expected.high if expected else None,
        expected_retries=expected.rate - 1 if expected and expected.rate is not None else None,
        solved_within_r_max=survival.solved_by_attempt[-1] if survival else None,
        solved_by_attempt=list(survival.solved_by_attempt) if survival else [],
        failures=_counted(attempt.verdict.cause or UNNAMED_CAUSE for attempt in rejected),
        outcomes=_counted(one.outcome for _, one in chains),
        attempts=len(attempts),
        truncated=sum(attempt.generation.finish == "length" for attempt in attempts),
        completion_tokens=sum(attempt.generation.completion_tokens for attempt in attempts),
    )


def summarise(
    specifications: Sequence[Specification],
    base: Sequence[Attempt],
    candidate: Sequence[Attempt] | None,
    *,
    r_max: int,
    samples: int,
    seed: int,
    about: Mapping[str, Any],
) -> Evidence:
    """Return the evidence that attempts of base and candidate give.

    Args:
        specifications: what was evaluated, in order.
        base: attempts of the bare model.
        candidate: attempts with the adapter; None where only the base was measured.
        r_max: R_max.
        samples: chains per specification.
        seed: of the noise; the bootstrap uses it too.
        about: the fields of `Evidence` that name what was measured with what.
    """
    pairs = _pair_up(specifications, samples, base, candidate)
    changes = _changes(pairs) if candidate is not None else None
    return Evidence(
        specs=len(specifications),
        groups=len({pair.group for pair in pairs}),
        samples_per_spec=samples,
        r_max=r_max,
        base=_performance(pairs, base, "base", r_max),
        candidate=_performance(pairs, candidate, "candidate", r_max) if candidate is not None else None,
        difference=_comparison(pairs, seed) if candidate is not None else None,
        changes=changes,
        by_action_pair=_by_action_pair(pairs, seed),
        drops=_drops(pairs, changes),
        seed=seed,
        per_spec=pairs,
        **about,
    )


def _outcome(chain: Sequence[Attempt]) -> Outcome:
    last = max(chain, key=lambda attempt: attempt.attempt).verdict
    first = min(chain, key=lambda attempt: attempt.attempt).verdict
    if last.status is ArtifactStatus.PENDING:
        outcome = "no verdict"
    elif last.passed:
        outcome = "solved"
    else:
        outcome = "fatal" if last.fatal else "unsolved"
    verdict = None if first.status is ArtifactStatus.PENDING else first.passed
    return Outcome(first=verdict, attempts=len(chain), outcome=outcome)


def _survival_chain(group: str, outcome: Outcome) -> statistics.Chain:
    cut = outcome.outcome == "no verdict"
    judged = outcome.attempts - cut
    return statistics.Chain(group=group, judged=judged, solved=outcome.outcome == "solved", cut=cut)


def _comparison(pairs: Sequence[Pair], seed: int) -> Comparison:
    both = [(group, after - before) for group, before, after in _firsts(pairs)]
    plain = statistics.clustered_difference(_by_group(both), seed=seed)
    against = [(group, after - before) for group, before, after in _firsts(pairs, against_candidate=True)]
    worst = statistics.clustered_difference(_by_group(against), seed=seed)
    return Comparison(
        **dataclasses.asdict(plain),
        pairs=len(both),
        conservative=Conservative(rate=worst.rate, low=worst.low, high=worst.high, p_value=worst.p_value),
        holds=all(low is not None and low > 0 for low in (plain.low, worst.low)),
    )


def _firsts(pairs: Iterable[Pair], *, against_candidate: bool = False) -> Iterable[tuple[str, float, float]]:
    """Yield (group, base passed, candidate passed); without a verdict a pair is left out, or counted against."""
    for pair in pairs:
        before, after = pair.base.first, pair.candidate.first if pair.candidate else None
        if against_candidate:
            yield pair.group, float(before is not False), float(after is True)
        elif before is not None and after is not None:
            yield pair.group, float(before), float(after)


def _changes(pairs: Sequence[Pair]) -> Changes:
    steps = [after - before for _, before, after in _firsts(pairs)]
    return Changes(
        gained=steps.count(1.0),
        lost=steps.count(-1.0),
        same=steps.count(0.0),
        no_verdict=len(pairs) - len(steps),
        chains_changed=sum(pair.base != pair.candidate for pair in pairs),
    )


def _by_action_pair(pairs: Sequence[Pair], seed: int) -> list[ActionPair]:
    members: dict[str, list[Pair]] = collections.defaultdict(list)
    for pair in pairs:
        members[pair.action_pair_id].append(pair)
    rows = []
    for name, own in sorted(members.items()):
        difference = statistics.clustered_difference(
            _by_group((group, after - before) for group, before, after in _firsts(own)), seed=seed
        )
        rows.append(
            ActionPair(
                action_pair_id=name,
                specs=len({pair.id for pair in own}),
                groups=len({pair.group for pair in own}),
                base=_first_rate(own, "base"),
                candidate=_first_rate(own, "candidate"),
                difference=difference.rate,
                low=difference.low,
                high=difference.high,
            )
        )
    return rows


def _first_rate(pairs: Sequence[Pair], which: str) -> float | None:
    chains: list[tuple[str, Outcome | None]] = [(pair.group, getattr(pair, which)) for pair in pairs]
    judged = [(group, float(one.first)) for group, one in chains if one is not None and one.first is not None]
    return statistics.clustered_mean(_by_group(judged)).rate


def _drops(pairs: Sequence[Pair], changes: Changes | None) -> dict[str, int]:
    counts = {
        "base: no verdict on the first attempt": sum(pair.base.first is None for pair in pairs),
        "candidate: no verdict on the first attempt": sum(
            pair.candidate is not None and pair.candidate.first is None for pair in pairs
        ),
        "pairs without both verdicts": changes.no_verdict if changes else 0,
    }
    return {reason: count for reason, count in counts.items() if count}


def _by_group(values: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = collections.defaultdict(list)
    for group, value in values:
        groups[group].append(value)
    return groups


def _counted(words: Iterable[str]) -> dict[str, int]:
    counts = collections.Counter(words)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
