"""Which items a command works on: a named policy, or a predicate's text."""

from __future__ import annotations

from typing import Annotated

import typer

from guardlearn import predicates
from guardlearn.errors import UsageError

__all__ = ["PolicyOption", "WhereOption", "chosen"]

PolicyOption = Annotated[
    str | None, typer.Option("--policy", help="refinement (default) | all | generator | human | high_value | recent")
]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", help='A predicate, as in refinement() & retries(at_least=3) & action_pair("sql").'),
]


def chosen(policy: str | None, where: str | None) -> predicates.Predicate:
    """Return the predicate that was asked for.

    Raises:
        UsageError: both were given, or no such policy, or a malformed predicate.
    """
    if policy and where:
        raise UsageError("--policy and --where exclude each other; write the policy into the predicate")
    return predicates.parse(where) if where else predicates.policy(policy or "refinement")
