"""The adapter weights of a model in memory: copied, put back, or taken from an adapter folder.

PEFT's own names are used, so that what is copied here is what `save_trained_model` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardlearn.errors import ModelError
from guardlearn.training.saving import WEIGHTS

__all__ = ["PROVENANCE", "adapter_weights", "load_adapter_weights", "put_adapter_weights"]

PROVENANCE = "guardlearn_manifest"
"""Attribute of a model in memory that holds the manifest of what its adapter learned from, where that is known."""


def adapter_weights(model: Any) -> dict[str, Any]:
    """Return a copy of a PEFT model's adapter weights, by name.

    Raises:
        ModelError: the model carries no adapters.
    """
    if not hasattr(model, "peft_config"):
        raise ModelError(f"{type(model).__name__} carries no adapters; give what add_lora_adapters returned")
    from peft import get_peft_model_state_dict

    return {name: weight.detach().clone() for name, weight in get_peft_model_state_dict(model).items()}


def put_adapter_weights(model: Any, weights: dict[str, Any]) -> None:
    """Put adapter weights into a PEFT model: all of them, and no others.

    Raises:
        ModelError: the weights are of other adapters than the model's.
    """
    own = adapter_weights(model)
    if {name: weight.shape for name, weight in own.items()} != {name: w.shape for name, w in weights.items()}:
        raise ModelError(
            f"the adapter holds {len(weights)} tensors that do not fit the model's {len(own)}: another base model, "
            "rank or target modules; add adapters with the settings it was trained with"
        )
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, weights)


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Put the weights of an adapter folder into a PEFT model.

    Raises:
        ModelError: no adapter there, or one that does not fit.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder} holds no {WEIGHTS}; the training did not finish, or the folder is no adapter")
    from safetensors.torch import load_file

    put_adapter_weights(model, load_file(path))
