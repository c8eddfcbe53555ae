"""Which chains of two evaluations belong together, and which evaluations cannot be paired at all.

Two rates are comparable where everything but the model was the same: specifications, guard and its version, R_max,
samples, prompts and sampling settings. Another seed is no obstacle, but then a pair shares its specification only.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from guardlearn.errors import DataError, UsageError
from guardlearn.evidence import Evidence, Outcome, Pair, Performance

__all__ = ["LeftOut", "Measured", "Paired", "Which", "measured", "pair_up"]

Which = Literal["base", "candidate"]

_NO_SETTING = ("seed", "answers")
"""What `describe` tells of a generator that is no setting: the noise, and what a replay has instead of a model."""


class Measured(NamedTuple):
    """One model of an evidence."""

    evidence: Evidence
    which: Which
    name: str
    """What people call it."""

    @property
    def performance(self) -> Performance:
        """Its figures as the evidence has them."""
        found = self.evidence.base if self.which == "base" else self.evidence.candidate
        assert found is not None  # `measured` sees to it
        return found

    @property
    def adapter(self) -> str | None:
        """The adapter that answered, as it was named; None: the bare base."""
        return self.evidence.against if self.which == "base" else self.evidence.adapter

    def chains(self) -> Iterator[tuple[Pair, Outcome]]:
        """Yield each pair of the evidence with how this model's chain went."""
        for pair in self.evidence.per_spec:
            one = pair.base if self.which == "base" else pair.candidate
            if one is not None:
                yield pair, one


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """Specifications that are in no figure of a comparison."""

    only_in_a: int = 0
    only_in_b: int = 0
    altered: int = 0
    """In both by their id, but with another text, group or action pair."""


class Paired(NamedTuple):
    """The chains of A (as base) and of B (as candidate) that belong together."""

    pairs: list[Pair]
    left_out: LeftOut
    same_noise: bool


def measured(evidence: Evidence, which: Which | None = None, name: str = "") -> Measured:
    """Return one model of an evidence.

    Args:
        evidence: what was measured.
        which: "base" or "candidate"; None: the candidate where there is one.
        name: for people; "": the model's name.

    Raises:
        UsageError: the evidence has no candidate.
    """
    has_candidate = evidence.candidate is not None
    if which == "candidate" and not has_candidate:
        raise UsageError(f"{name or evidence.model} has no candidate: only the base was measured; choose base")
    chosen: Which = which or ("candidate" if has_candidate else "base")
    return Measured(evidence, chosen, name or evidence.model)


def pair_up(a: Measured, b: Measured, *, common: bool) -> Paired:
    """Return the chains of both models by specification and sample, in A's order.

    Args:
        a: counts as the base.
        b: counts as the candidate.
        common: whether specifications that only one of both has may be left out.

    Raises:
        UsageError: they cannot be paired; the message names all that differs, with both values.
        DataError: an evidence names a chain twice.
    """
    _refuse_other_conditions(a, b)
    before, after = _by_chain(a), _by_chain(b)
    pairs, altered = [], set()
    for key, (own, outcome) in before.items():
        if key not in after:
            continue
        other, other_outcome = after[key]
        if not _same_specification(own, other):
            altered.add(own.id)
            continue
        pairs.append(msgspec.structs.replace(own, base=outcome, candidate=other_outcome))
    ours, theirs = {key[0] for key in before}, {key[0] for key in after}
    left_out = LeftOut(only_in_a=len(ours - theirs), only_in_b=len(theirs - ours), altered=len(altered))
    _refuse_other_specifications(a, b, pairs, left_out, common)
    both_common = a.evidence.pairing == b.evidence.pairing == "common random numbers"
    return Paired(pairs, left_out, both_common and _seeds(a) == _seeds(b))


def _refuse_other_conditions(a: Measured, b: Measured) -> None:
    mine, others = _conditions(a), _conditions(b)
    differ = [name for name in [*mine, *(others.keys() - mine.keys())] if mine.get(name) != others.get(name)]
    if differ:
        shown = "; ".join(f"{name} {_short(mine.get(name))} and {_short(others.get(name))}" for name in differ)
        raise UsageError(f"{a.name} and {b.name} cannot be paired: {shown}; measure both in the same way")


def _conditions(one: Measured) -> dict[str, Any]:
    """Return everything that must be the same, by what people call it."""
    evidence = one.evidence
    return {
        "guard": evidence.guard,
        "guard version": evidence.guard_version,
        "R_max": evidence.r_max,
        "samples per specification": evidence.samples_per_spec,
        "renderer": evidence.digests.get("renderer", ""),
        "prompts": evidence.digests.get("prompt", ""),
        **{f"sampling {name}": value for name, value in evidence.sampling.items() if name not in _NO_SETTING},
    }


def _refuse_other_specifications(
    a: Measured, b: Measured, pairs: Sequence[Pair], left_out: LeftOut, common: bool
) -> None:
    mine, others = (one.evidence.digests.get("specifications", "") for one in (a, b))
    # in another order they are the same specifications with another digest
    same = mine == others or (left_out == LeftOut() and all(pair.digest for pair in pairs))
    specs = len({pair.id for pair in pairs})
    if not same and not common:
        raise UsageError(
            f"{a.name} and {b.name} measured other specifications: {a.evidence.specs} with digest {_short(mine)} and "
            f"{b.evidence.specs} with digest {_short(others)}; --common compares the {specs} that are in both"
        )
    if specs < 2:
        raise UsageError(
            f"{a.name} and {b.name} share {specs} specification{'' if specs == 1 else 's'}, of {a.evidence.specs} and "
            f"{b.evidence.specs}; a comparison takes at least 2, better 100 in 37 groups or more"
        )


def _by_chain(one: Measured) -> dict[tuple[str, int], tuple[Pair, Outcome]]:
    counts = collections.Counter((pair.id, pair.sample) for pair in one.evidence.per_spec)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{one.name} names specification {twice[0][0]!r} sample {twice[0][1]} twice; evaluate again")
    return {(pair.id, pair.sample): (pair, outcome) for pair, outcome in one.chains()}


def _same_specification(one: Pair, other: Pair) -> bool:
    if one.digest and other.digest:
        return one.digest == other.digest
    return (one.group, one.action_pair_id) == (other.group, other.action_pair_id)  # all that older evidence says


def _seeds(one: Measured) -> tuple[Any, Any]:
    return one.evidence.seed, one.evidence.sampling.get("seed")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 30 else f"{text[:13]}…"
