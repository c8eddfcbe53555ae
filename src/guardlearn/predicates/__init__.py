"""Φ, the predicates that select items of ℛ: values with `&`, `|` and `~`, one syntax in Python and in text.

    from guardlearn.predicates import refinement, retries, source, parse

    chosen = refinement() & source("generator") & retries(at_least=3)
    assert parse(repr(chosen)) == chosen

`matches(item)` judges one item; ℛ runs the same predicate as SQL. Definitions 17, 18, 21 and 22.
"""

from guardlearn.predicates.expression import Predicate, and_, as_predicate, or_
from guardlearn.predicates.guide import (
    Φ_action_pair,
    Φ_all_successes,
    Φ_generator_only,
    Φ_high_value,
    Φ_human_only,
    Φ_recent,
    Φ_refinement,
    Φ_source,
    Φ_status,
    Φ_timestamp_after,
)
from guardlearn.predicates.policies import POLICIES, policy
from guardlearn.predicates.text import parse
from guardlearn.predicates.vocabulary import (
    VOCABULARY,
    action_pair,
    adapter,
    after,
    broken,
    created_after,
    created_before,
    everything,
    excluded,
    fresh,
    group,
    guard,
    item,
    model,
    recent,
    redacted,
    refinement,
    retries,
    reviewed,
    satisfies,
    side,
    source,
    status,
    up_to,
    workflow,
    workflow_ref,
)

__all__ = [
    "POLICIES",
    "VOCABULARY",
    "Predicate",
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
    "action_pair",
    "adapter",
    "after",
    "and_",
    "as_predicate",
    "broken",
    "created_after",
    "created_before",
    "everything",
    "excluded",
    "fresh",
    "group",
    "guard",
    "item",
    "model",
    "or_",
    "parse",
    "policy",
    "recent",
    "redacted",
    "refinement",
    "retries",
    "reviewed",
    "satisfies",
    "side",
    "source",
    "status",
    "up_to",
    "workflow",
    "workflow_ref",
]
