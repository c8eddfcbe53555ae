"""The named policies of Definition 22: what a training run may select by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from guardlearn.errors import UsageError
from guardlearn.predicates.expression import Predicate
from guardlearn.predicates.vocabulary import recent, refinement, retries, source, status
from guardlearn.types import ArtifactStatus, Source

__all__ = ["POLICIES", "policy"]

POLICIES: dict[str, Callable[[], Predicate]] = {
    "refinement": refinement,
    "all": lambda: status(ArtifactStatus.ACCEPTED),
    "generator": lambda: refinement() & source(Source.GENERATOR),
    "human": lambda: refinement() & source(Source.HUMAN),
    "high_value": lambda: refinement() & retries(at_least=3),
    "recent": lambda: refinement() & recent(days=30),
}
"""Each name of Definition 22 with the predicate it stands for."""


def policy(name: str) -> Predicate:
    """Return the predicate that a policy's name stands for.

    Raises:
        UsageError: no policy has this name (an unknown name never falls back to another, erratum 21).
    """
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"unknown policy {name!r}{hint}; the policies are: {', '.join(POLICIES)}")
    return POLICIES[name]()
