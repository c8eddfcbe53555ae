"""guardlearn turns the retries of guard-checked LLM generation into a model that passes first time, and proves it.

The public API, loaded on first use (PEP 562), so that `import guardlearn` costs nothing heavy. The guide's function
names live here too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "ArtifactStatus": "types",
    "FeedbackEntry": "types",
    "GuardContext": "types",
    "RepositoryItem": "types",
    "Source": "types",
    "Specification": "types",
    "TrainingTrace": "types",
    "Verdict": "types",
    "GuardlearnError": "errors",
    "format_prompt": "prompts",
}

if TYPE_CHECKING:
    from guardlearn.errors import GuardlearnError as GuardlearnError
    from guardlearn.prompts import format_prompt as format_prompt
    from guardlearn.types import ArtifactStatus as ArtifactStatus
    from guardlearn.types import FeedbackEntry as FeedbackEntry
    from guardlearn.types import GuardContext as GuardContext
    from guardlearn.types import RepositoryItem as RepositoryItem
    from guardlearn.types import Source as Source
    from guardlearn.types import Specification as Specification
    from guardlearn.types import TrainingTrace as TrainingTrace
    from guardlearn.types import Verdict as Verdict

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'guardlearn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guardlearn.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
