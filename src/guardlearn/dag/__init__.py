"""ℛ, the repository of guarded attempts: append-only, in a database, with a history that can be checked.

Definitions 2, 10, 14 and 17; Theorem 3.
"""

from guardlearn.dag.explaining import QueryPlan
from guardlearn.dag.recorder import Chain
from guardlearn.dag.store import ArtifactDAG, Selector
from guardlearn.dag.verification import VerifyReport

__all__ = ["ArtifactDAG", "Chain", "QueryPlan", "Selector", "VerifyReport"]
