"""ℛ, the repository of guarded attempts: append-only, in a database, with a history that can be checked.

Definitions 2, 10, 14 and 17; Theorem 3.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardlearn.dag.explaining import QueryPlan
    from guardlearn.dag.recorder import Chain
    from guardlearn.dag.store import ArtifactDAG, Selector
    from guardlearn.dag.verification import VerifyReport

__all__ = ["ArtifactDAG", "Chain", "QueryPlan", "Selector", "VerifyReport"]

_MODULES = {
    "ArtifactDAG": "store",
    "Chain": "recorder",
    "QueryPlan": "explaining",
    "Selector": "store",
    "VerifyReport": "verification",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for: processes that only read objects must not load the database's library."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'guardlearn.dag' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guardlearn.dag.{module}"), name)
