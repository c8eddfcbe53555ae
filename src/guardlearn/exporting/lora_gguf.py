"""A LoRA adapter as a GGUF file, in the form that llama.cpp's `--lora` and Ollama's `ADAPTER` load.

Tensors bear llama.cpp's names with `.lora_a` (rank, inputs) and `.lora_b` (outputs, rank) added; the scale is
alpha / rank. Of Llama's query and key layers llama.cpp keeps the rows in another order: it interleaves the two halves
that RoPE rotates together. The rows of W + s B A are B's, so B is what is reordered.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from guardlearn.errors import ModelError
from guardlearn.training.saving import ADAPTER_CONFIG, WEIGHTS

__all__ = ["ARCHITECTURES", "read_lora_gguf", "write_lora_gguf"]

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "gemma": "gemma", "gemma2": "gemma2"}
"""transformers' model type → llama.cpp's architecture: those whose adapters Ollama's documentation names
(docs/modelfile.mdx of github.com/ollama/ollama), mixtures of experts apart."""

_REORDERED = {"llama": {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}}
"""By architecture: layers whose rows are reordered, and the field with their number of heads."""
_PREFIX = "base_model.model."


class _Pair(NamedTuple):
    """One adapted layer."""

    module: str
    """transformers' name."""
    name: str
    """llama.cpp's, without `.weight`."""
    heads: int
    """Of a layer whose rows are reordered; 0 for another."""
    down: Any
    """A: (rank, inputs)."""
    up: Any
    """B: (outputs, rank)."""


def write_lora_gguf(adapter: Path, base_config: dict[str, Any], path: Path) -> None:
    """Write an adapter folder's weights as float32 GGUF.

    Where layers have scales of their own (rsLoRA, patterns of rank or alpha), they go into B: GGUF has one alpha.

    Args:
        adapter: a plain LoRA folder.
        base_config: the base's config.json.
        path: file to be written.

    Raises:
        ModelError: an architecture, a layer or a kind of LoRA that has no place there.
    """
    from gguf import GGUFWriter

    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    architecture, alpha = _architecture(base_config), float(config["lora_alpha"])
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for pair in _pairs(adapter, config, base_config):
        rank = pair.down.shape[0]
        own = _scale(config, pair.module, rank) * rank / alpha
        up = (pair.up if own == 1 else pair.up * own).numpy()
        writer.add_tensor(f"{pair.name}.weight.lora_a", pair.down.numpy())
        writer.add_tensor(f"{pair.name}.weight.lora_b", _interleaved(up, pair.heads) if pair.heads else up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_lora_gguf(path: Path, adapter: Path, base_config: dict[str, Any]) -> dict[str, Any]:
    """Return a GGUF adapter's weights under PEFT's names, scaled as `adapter`'s configuration would scale them.

    Args:
        path: the file.
        adapter: folder of the adapter it was made from, whose configuration they are to be loaded with.
        base_config: the base's config.json.

    Raises:
        ModelError: the file is damaged, or holds other layers than the adapter.
    """
    import torch
    from gguf import GGUFReader

    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    try:
        reader = GGUFReader(path)
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
        weights = {}
        for pair in _pairs(adapter, config, base_config):
            down, up = (found.pop(f"{pair.name}.weight.lora_{half}") for half in "ab")
            up = _in_halves(up, pair.heads) if pair.heads else up
            own = alpha / down.shape[0] / _scale(config, pair.module, down.shape[0])
            weights[f"{_PREFIX}{pair.module}.lora_A.weight"] = down
            weights[f"{_PREFIX}{pair.module}.lora_B.weight"] = up if own == 1 else up * own
    except (KeyError, ValueError, OSError, IndexError) as error:
        raise ModelError(f"{path.name} cannot be read again ({error}); write it again on a sound disk") from error
    if found:
        raise ModelError(f"{path.name} holds {sorted(found)[0]}, which the adapter does not; write it again")
    return weights


def _architecture(base_config: dict[str, Any]) -> str:
    kind = base_config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"Ollama's documentation names no adapters for {kind!r}, only for {', '.join(ARCHITECTURES)}; export --to "
            "merged, convert that with llama.cpp's convert_hf_to_gguf.py, and name the file after FROM"
        )
    return ARCHITECTURES[kind]


def _pairs(adapter: Path, config: dict[str, Any], base_config: dict[str, Any]) -> Iterator[_Pair]:
    """Yield the adapted layers, float32, in the order of their names.

    Raises:
        ModelError: a layer that llama.cpp does not have, or a tensor that is no A or B.
    """
    from safetensors.torch import load_file

    architecture = _architecture(base_config)
    if config.get("use_dora") or config.get("modules_to_save") or config.get("fan_in_fan_out"):
        raise ModelError(f"the adapter in {adapter} is no plain LoRA, and GGUF holds no other; export --to merged")
    tensors = load_file(adapter / WEIGHTS)
    names = _names(architecture, base_config["num_hidden_layers"])
    for key in sorted(tensors):
        if key.endswith(".lora_B.weight"):
            continue
        module = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        up = tensors.get(key.replace(".lora_A.", ".lora_B."))
        name = names.get(module)
        if up is None or name is None or not key.endswith(".lora_A.weight"):
            raise ModelError(
                f"the adapter in {adapter} changes {module}, which has no place in a GGUF adapter; export --to merged"
            )
        field = _REORDERED.get(architecture, {}).get(name.rpartition(".")[2])
        heads = (base_config.get(field) or base_config["num_attention_heads"]) if field else 0
        yield _Pair(module, name, heads, tensors[key].float().contiguous(), up.float().contiguous())


def _names(architecture: str, layers: int) -> dict[str, str]:
    """Return llama.cpp's name of each linear layer, by transformers' name."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(each for each in MODEL_ARCH if MODEL_ARCH_NAMES[each] == architecture)
    known = get_tensor_name_map(kind, layers)
    projections = [f"self_attn.{name}_proj" for name in "qkvo"] + [
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    modules = [f"model.layers.{layer}.{name}" for layer in range(layers) for name in projections]
    return {module: name for module in modules if (name := known.get_name(module)) is not None}


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Return what PEFT multiplies B A by in this layer; patterns fit the end of its name, as PEFT reads them."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)
    number = float(config["lora_alpha"] if alpha is None else alpha)
    return number / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _interleaved(rows: Any, heads: int) -> Any:
    """Put (outputs, rank) into llama.cpp's order: within a head, one of the first half, one of the second, …"""
    import numpy

    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return numpy.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _in_halves(rows: Any, heads: int) -> Any:
    """Undo `_interleaved`, on a tensor."""
    places = rows.shape[0] // heads
    return rows.reshape(heads, places // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
