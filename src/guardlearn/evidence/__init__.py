"""What an evaluation says: its records, and how the attempts of base and candidate become figures.

Pure: attempts in, one `Evidence` out, the same every time. R_max counts attempts, the first included; a fatal verdict
is unsolved; a chain that ended without a verdict is censored. Every interval is by group.
"""

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
from guardlearn.evidence.summary import (
    by_action_pair,
    changes_of,
    difference_of,
    group_of,
    rate_of,
    summarise,
    survival_of,
)

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
    "by_action_pair",
    "changes_of",
    "difference_of",
    "group_of",
    "rate_of",
    "summarise",
    "survival_of",
]
