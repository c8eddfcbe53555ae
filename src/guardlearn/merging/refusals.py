"""What cannot be merged, found out before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guardlearn import adapters
from guardlearn.digests import digest_model
from guardlearn.errors import ModelError
from guardlearn.prompts import PromptConfig, Renderer, template_digest
from guardlearn.training.saving import ADAPTER_CONFIG

__all__ = [
    "Manifest",
    "base_digest",
    "check_template",
    "first_line",
    "read_adapter",
    "refuse_quantised",
]

Manifest = dict[str, Any] | None
"""What an adapter learned from; None where nothing says so."""

_WIDE = frozenset("F64 F32 F16 BF16 I64 I32 I16 U64 U32 U16 BOOL".split())
"""Types of a tensor that are not quantised weights."""


def refuse_quantised(base: Path) -> None:
    """Refuse a base whose weights have 4 or 8 bit: W + B A has more digits than they can hold.

    Raises:
        ModelError: saying which sign there is.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{base}/config.json cannot be read ({first_line(error)}); copy the base model whole"
        ) from error
    found = next((name for name in ("quantization_config", "quantization", "compression_config") if name in config), "")
    for path in sorted(base.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read ({first_line(error)}); copy the base model whole") from error
        found = found or next((f"{kind} weights" for kind in sorted(kinds - _WIDE)), "")
    if found:
        raise ModelError(
            f"{base} is quantised ({found}), and an adapter is never merged into 4 or 8 bit; give the 16-bit base it "
            "was made from"
        )


def read_adapter(folder: Path) -> Manifest:
    """Return an adapter's manifest.

    Raises:
        ModelError: no adapter, one that is damaged or was edited, of another kind than LoRA, or that changes nothing.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    published = adapters.read_published(folder)
    found, left = adapters.adapter_digest(folder), (published.get("result") or {}).get("adapter_digest")
    if left not in (None, found):
        raise ModelError(
            f"the adapter in {folder} was edited: its weights are {found[:12]}, its training left {left[:12]}; put it "
            "back as it was, or train it again"
        )
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / adapters.WEIGHTS)
    except (SafetensorError, ValueError, OSError) as error:
        raise ModelError(f"the adapter in {folder} cannot be read ({first_line(error)}); train it again") from error
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        kind = config.get("peft_type") if config.get("peft_type") != "LORA" else "LoRA with biases"
        raise ModelError(f"the adapter in {folder} cannot be merged ({kind}); only LoRA without biases can")
    if broken := next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None):
        raise ModelError(f"the adapter in {folder} holds numbers that are none ({broken}); its training diverged")
    if not any(tensor.any() for name, tensor in tensors.items() if ".lora_A." not in name):
        raise ModelError(f"the adapter in {folder} changes nothing (every B is zero); train it, or name another")
    manifest: Manifest = published.get("manifest")
    return manifest


def base_digest(base: Path, adapter: Path, manifest: Manifest) -> str:
    """Return the base's digest.

    Raises:
        ModelError: the adapter was trained on another base.
    """
    found = digest_model(base)
    written = (manifest or {}).get("base_model_digest", found)
    if found != written:
        raise ModelError(
            f"{adapter} was trained on another base model ({(manifest or {}).get('base_model')}): its digest is "
            f"{written}, that of {base} is {found}; give --model that one"
        )
    return found


def check_template(tokenizer: Any, base: Path, manifest: Manifest) -> None:
    """Refuse a tokenizer that would ask the merged model otherwise than it was trained.

    Raises:
        ModelError: another tokenizer or chat template.
    """
    if not manifest or not {"prompts", "template_digest"} <= manifest.keys():
        return
    renderer = Renderer(config=PromptConfig(**manifest["prompts"]))
    if template_digest(tokenizer, renderer) != manifest["template_digest"]:
        raise ModelError(
            f"tokenizer or chat template in {base} are not those the adapter was trained with: the merged model would "
            "be asked otherwise than it learned; put them back, or train again"
        )


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
