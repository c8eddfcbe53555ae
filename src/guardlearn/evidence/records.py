"""The records of an evidence file. What was added later has a default, so that older files still load."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "ActionPair",
    "Changes",
    "Comparison",
    "Conservative",
    "Evidence",
    "GroupCost",
    "Outcome",
    "Pair",
    "Performance",
    "Rate",
    "Spent",
]


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
    """0 where a server counted none."""
    prompt_tokens: int | None = None
    """None: not counted."""
    seconds: float | None = None
    """What writing all its answers took, the sum over attempts; None: not measured."""


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
    digest: str = ""
    """First 16 hex digits of the specification's SHA-256; "" in files from before it was noted."""


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
    p_value: float | None = None
    """Two-sided sign-flip test over groups; None: fewer than two groups."""
    adjusted_p_value: float | None = None
    """The same for as many action pairs as were tested (Holm)."""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What answers cost, accepted or not."""

    prompt_tokens: int | None
    completion_tokens: int | None
    """None: a server counted none."""
    seconds: float | None
    """Sum of `Generation.seconds`; None: not measured."""


class GroupCost(msgspec.Struct, frozen=True, kw_only=True):
    """What the chains of one group cost; by group and not by chain, so that `per_spec` holds no clock time."""

    group: str
    chains: int
    base: Spent
    candidate: Spent | None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured about a candidate, and what it was measured with."""

    model: str
    adapter: str | None
    """Adapter as it was named; None: only the base was measured."""
    against: str | None = None
    """Adapter that answered as the base; None: the bare base."""
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
    """plan, specifications, adapter, prompt, renderer, and against where that is not the bare base."""
    versions: dict[str, str]
    per_spec: list[Pair]
    costs: list[GroupCost] = []
