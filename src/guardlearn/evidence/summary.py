"""How attempts become the figures of an evidence."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from guardlearn import statistics
from guardlearn.attempts import Attempt, ChainKey
from guardlearn.digests import digest_json, digest_text
from guardlearn.evidence.records import (
    ActionPair,
    Changes,
    Comparison,
    Conservative,
    Evidence,
    GroupCost,
    Outcome,
    Pair,
    Performance,
    Rate,
    Spent,
)
from guardlearn.types import ArtifactStatus, Specification

__all__ = ["by_action_pair", "changes_of", "difference_of", "group_of", "rate_of", "summarise", "survival_of"]

UNNAMED_CAUSE = "no cause named"

Chains = Sequence[tuple[str, Outcome]]
"""How chains of one model went, each with its group."""


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
            digest=digest,
            base=before[spec.id, sample],
            candidate=after[spec.id, sample] if after is not None else None,
        )
        for spec in specifications
        for digest in (digest_json(msgspec.to_builtins(spec))[:16],)
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
    chains = [(pair.group, getattr(pair, which)) for pair in pairs]
    survival = survival_of(chains, r_max)
    expected = survival.expected_attempts if survival else None
    rejected = [a for a in attempts if a.attempt == 1 and a.verdict.status is ArtifactStatus.REJECTED]
    spent = _spent(attempts)
    return Performance(
        first_attempt=rate_of(chains),
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
        prompt_tokens=spent.prompt_tokens,
        seconds=spent.seconds,
    )


def rate_of(chains: Chains) -> Rate:
    """Return the share of first attempts that passed."""
    firsts = [(group, one.first) for group, one in chains if one.first is not None]
    estimate = statistics.clustered_mean(_by_group((group, float(first)) for group, first in firsts))
    return Rate(
        rate=estimate.rate,
        low=estimate.low,
        high=estimate.high,
        passed=sum(first is True for _, first in firsts),
        judged=len(firsts),
        no_verdict=len(chains) - len(firsts),
        method=estimate.method,
    )


def survival_of(chains: Chains, r_max: int) -> statistics.Survival | None:
    """Return how many attempts the chains needed; None: nothing was judged."""
    return statistics.expected_attempts([_survival_chain(group, one) for group, one in chains], r_max)


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
    changes = changes_of(pairs) if candidate is not None else None
    return Evidence(
        specs=len(specifications),
        groups=len({pair.group for pair in pairs}),
        samples_per_spec=samples,
        r_max=r_max,
        base=_performance(pairs, base, "base", r_max),
        candidate=_performance(pairs, candidate, "candidate", r_max) if candidate is not None else None,
        difference=difference_of(pairs, seed) if candidate is not None else None,
        changes=changes,
        by_action_pair=by_action_pair(pairs, seed),
        drops=_drops(pairs, changes),
        seed=seed,
        per_spec=pairs,
        costs=_costs(pairs, base, candidate),
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


def difference_of(pairs: Sequence[Pair], seed: int) -> Comparison:
    """Return candidate minus base: first attempts that pass, paired, by group."""
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


def changes_of(pairs: Sequence[Pair]) -> Changes:
    """Return how pairs differ."""
    steps = [after - before for _, before, after in _firsts(pairs)]
    return Changes(
        gained=steps.count(1.0),
        lost=steps.count(-1.0),
        same=steps.count(0.0),
        no_verdict=len(pairs) - len(steps),
        chains_changed=sum(pair.base != pair.candidate for pair in pairs),
    )


def by_action_pair(pairs: Sequence[Pair], seed: int) -> list[ActionPair]:
    """Return the first attempts of each action pair, by name."""
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
                p_value=difference.p_value,
            )
        )
    adjusted = statistics.holm({row.action_pair_id: row.p_value for row in rows if row.p_value is not None})
    return [msgspec.structs.replace(row, adjusted_p_value=adjusted.get(row.action_pair_id)) for row in rows]


def _first_rate(pairs: Sequence[Pair], which: str) -> float | None:
    chains: list[tuple[str, Outcome | None]] = [(pair.group, getattr(pair, which)) for pair in pairs]
    judged = [(group, float(one.first)) for group, one in chains if one is not None and one.first is not None]
    return statistics.clustered_mean(_by_group(judged)).rate


def _costs(pairs: Sequence[Pair], base: Iterable[Attempt], candidate: Iterable[Attempt] | None) -> list[GroupCost]:
    chains = collections.Counter(pair.group for pair in pairs)
    before, after = _attempts_by_group(base), _attempts_by_group(candidate or ())
    return [
        GroupCost(
            group=group,
            chains=count,
            base=_spent(before[group]),
            candidate=_spent(after[group]) if candidate is not None else None,
        )
        for group, count in chains.items()
    ]


def _attempts_by_group(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    groups: dict[str, list[Attempt]] = collections.defaultdict(list)
    for attempt in attempts:
        groups[group_of(attempt.specification)].append(attempt)
    return groups


def _spent(attempts: Sequence[Attempt]) -> Spent:
    written = [attempt.generation for attempt in attempts]
    known = all(each.tokens_known for each in written)
    return Spent(
        prompt_tokens=sum(each.prompt_tokens for each in written) if known else None,
        completion_tokens=sum(each.completion_tokens for each in written) if known else None,
        seconds=math.fsum(each.seconds for each in written) or None,  # nothing is written in no time
    )


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
