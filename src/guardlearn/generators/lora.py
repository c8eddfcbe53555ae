"""Merges a LoRA adapter into a model's weights, and takes it out again bit for bit.

W' = W + (alpha / r) B A (Hu et al. 2021). Merged, an adapter costs nothing per token; the originals of the touched
weights are kept, so that base and adapter share one model in memory. An adapter whose B is zero changes no bit, and
neither does one that adds less than a float32 rounds: where a base weight is exactly 0 even 1e-31 would stay, and such
a model's answers would differ from the base's by rounding alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from guardlearn.errors import ModelError
from guardlearn.generators.packing import repack

__all__ = ["AdapterSlot"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model's modules."""
_ROUNDING = 2.0**-24
"""Half a unit in the last place of a float32, as a share."""


class AdapterSlot:
    """The one place of a model where an adapter sits, or none."""

    def __init__(self, model: Any) -> None:
        """Serve `model`, which carries no adapter yet."""
        self._model = model
        self._originals: dict[str, torch.Tensor] = {}

    def use(self, adapter: Path | None) -> None:
        """Merge the adapter in this folder, after taking out the one before; None leaves the bare base.

        Raises:
            ModelError: no adapter there, of another base model, or of a kind that cannot be merged. The base
                is then in place.
        """
        self._restore()
        if adapter is None:
            return
        config, tensors = _read(adapter)
        modules = dict(self._model.named_modules())
        merged = {}
        for name, down, up in _pairs(adapter, tensors):
            weight = getattr(modules.get(name), "weight", None)
            if weight is None or (up.shape[0], down.shape[1]) != _shape(weight, config):
                raise ModelError(_foreign(adapter, config, name, (up.shape[0], down.shape[1]), weight))
            delta = _scale(config, name, down.shape[0]) * (up.float() @ down.float())
            if _adds_something(weight, delta):  # adding zeros would still turn -0.0 into 0.0
                merged[name] = _merge(weight, delta, config)
        with torch.no_grad():
            for name, weight in merged.items():
                self._originals[name] = modules[name].weight.detach().clone()
                modules[name].weight.copy_(weight)
        repack(modules[name] for name in merged)

    def digest(self) -> str:
        """Return a digest of the weights that the adapter in place has changed; where it changed no bit, of nothing.

        Equal digests are equal models: what is not in them is the base's, bit for bit.
        """
        running = hashlib.sha256()
        modules = dict(self._model.named_modules())
        for name, original in sorted(self._originals.items()):
            weight = modules[name].weight.detach()
            if not torch.equal(weight, original):
                running.update(f"{name}\0{tuple(weight.shape)}\0{weight.dtype}\0".encode())
                running.update(weight.contiguous().cpu().flatten().view(torch.uint8).numpy())
        return running.hexdigest()

    def _restore(self) -> None:
        modules = dict(self._model.named_modules())
        with torch.no_grad():
            for name, original in self._originals.items():
                modules[name].weight.copy_(original)
        repack(modules[name] for name in self._originals)
        self._originals.clear()


def _read(adapter: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (_CONFIG, _WEIGHTS):
        if not (adapter / name).is_file():
            raise ModelError(f"{adapter} is no adapter folder (no {name}); train one or name another")
    try:
        config = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(adapter / _WEIGHTS)
    except (ValueError, OSError, SafetensorError) as error:
        raise ModelError(f"the adapter in {adapter} cannot be read ({error}); train it again") from error
    special = [name for name in ("use_dora", "modules_to_save", "lora_bias") if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or special:
        kind = special[0] if special else config.get("peft_type")
        raise ModelError(f"the adapter in {adapter} cannot be merged ({kind}); only plain LoRA without biases can")
    return config, tensors


def _pairs(adapter: Path, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield (module, A, B): A (rank, inputs), B (outputs, rank)."""
    for name, down in tensors.items():
        if name.endswith(".lora_B.weight"):
            continue
        partner = tensors.get(name.replace(".lora_A.", ".lora_B."))
        if not name.endswith(".lora_A.weight") or partner is None:
            raise ModelError(f"the adapter in {adapter} cannot be merged (tensor {name}); only plain LoRA can")
        yield name.removeprefix(_PREFIX).removesuffix(".lora_A.weight"), down, partner


def _shape(weight: torch.Tensor, config: dict[str, Any]) -> tuple[int, ...]:
    shape = tuple(weight.shape)
    return shape[::-1] if config.get("fan_in_fan_out") else shape


def _adds_something(weight: torch.Tensor, delta: torch.Tensor) -> bool:
    """Whether any change exceeds what rounding does to a weight of the layer's root mean square, or is no number."""
    size = weight.detach().float().square().mean().sqrt().item()
    return not delta.abs().max().item() <= _ROUNDING * size  # NaN is above nothing, and must not pass for nothing


def _merge(weight: torch.Tensor, delta: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    if config.get("fan_in_fan_out"):
        delta = delta.T
    return (weight.detach().float() + delta.to(weight.device)).to(weight.dtype)  # rounded once, at the end


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    alpha = _matching(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _matching(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that fits the end of a module's name, as PEFT reads them."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _foreign(
    adapter: Path, config: dict[str, Any], module: str, needed: tuple[int, int], weight: torch.Tensor | None
) -> str:
    found = "has no such layer" if weight is None else f"has {tuple(weight.shape)}"
    return (
        f"the adapter in {adapter} belongs to another base model ({config.get('base_model_name_or_path')!r}): "
        f"it changes {module} of shape {needed}, this model {found}; name its own base"
    )
