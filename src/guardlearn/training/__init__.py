"""Training: the guide's functions (sections 4 and 5), and `python -m guardlearn.training JOB` for a job folder.

Needs only the standard library, torch, transformers, trl, peft, accelerate and datasets; nothing heavy is imported
before a function is called. One file a backend (`trl`), one a method (`sft`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardlearn.training.model import add_lora_adapters as add_lora_adapters
    from guardlearn.training.model import load_model_for_training as load_model_for_training
    from guardlearn.training.model import load_trained_model as load_trained_model
    from guardlearn.training.model import save_trained_model as save_trained_model
    from guardlearn.training.sft import train_on_traces as train_on_traces

_EXPORTS = {
    "add_lora_adapters": "model",
    "load_model_for_training": "model",
    "load_trained_model": "model",
    "save_trained_model": "model",
    "train_on_traces": "sft",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'guardlearn.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guardlearn.training.{module}"), name)
