"""The guide's own names for predicates (its section 6), with the guide's arguments.

`dag` is taken and not needed: what a predicate asks about a chain comes with the item. The faults of the guide's
versions are not reproduced: a refinement has a REJECTED ancestor (erratum 3), high value counts REJECTED ancestors
(erratum 4), "GENERATOR" is the generator (erratum 10), times are compared as times (errata 12 and 14).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from guardlearn.predicates import vocabulary as words
from guardlearn.predicates.expression import Predicate
from guardlearn.types import ArtifactStatus, Source

__all__ = [
    "Φ_action_pair",
    "Φ_all_successes",
    "Φ_generator_only",
    "Φ_high_value",
    "Φ_human_only",
    "Φ_recent",
    "Φ_refinement",
    "Φ_source",
    "Φ_status",
    "Φ_timestamp_after",
]


def Φ_status(status: ArtifactStatus | str) -> Predicate:
    """Select by status."""
    return words.status(status)


def Φ_source(source: Source | str) -> Predicate:
    """Select by source (GENERATOR or HUMAN)."""
    return words.source(source)


def Φ_action_pair(action_pair_id: str) -> Predicate:
    """Select by action pair."""
    return words.action_pair(action_pair_id)


def Φ_timestamp_after(cutoff: datetime | str) -> Predicate:
    """Select items created after cutoff."""
    return words.created_after(cutoff)


def Φ_refinement(dag: Any = None) -> Predicate:
    """Definition 21: accepted items with a rejected attempt before them."""
    return words.refinement()


def Φ_generator_only(dag: Any = None) -> Predicate:
    """Generator refinements only (exclude human artifacts)."""
    return words.refinement() & words.source(Source.GENERATOR)


def Φ_human_only(dag: Any = None) -> Predicate:
    """Human refinements only (for preference alignment)."""
    return words.refinement() & words.source(Source.HUMAN)


def Φ_high_value(dag: Any = None, min_retries: int = 3) -> Predicate:
    """High-value traces (many retries = hard problems)."""
    return words.refinement() & words.retries(at_least=min_retries)


def Φ_recent(dag: Any = None, days: float = 30) -> Predicate:
    """Recent refinements only (avoid specification drift)."""
    return words.refinement() & words.recent(days=days)


def Φ_all_successes() -> Predicate:
    """All successful artifacts (including first-attempt)."""
    return words.status(ArtifactStatus.ACCEPTED)
