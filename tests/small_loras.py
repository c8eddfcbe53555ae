"""LoRA folders as PEFT writes them, for the tiny model of the tests."""

from __future__ import annotations

import json
from pathlib import Path

ATTENTION = "model.layers.{}.self_attn.q_proj"
MLP = "model.layers.{}.mlp.down_proj"


def write_lora(folder: Path, model: Path, size: float = 0.05, seed: int = 1, **settings) -> Path:
    """Write an adapter on every q_proj and down_proj; `size` scales B, 0 makes it add nothing."""
    import torch

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    noise = torch.Generator().manual_seed(seed)
    pairs = {}
    for layer in range(config["num_hidden_layers"]):
        for name, inputs in ((ATTENTION, hidden), (MLP, inner)):
            down, up = torch.randn(4, inputs, generator=noise), torch.randn(hidden, 4, generator=noise)
            pairs[name.format(layer)] = (down, size * up if size else torch.zeros_like(up))
    return write_pairs(folder, pairs, **settings)


def write_pairs(folder: Path, pairs, **settings) -> Path:
    """Write an adapter of the given (A, B) by module."""
    from safetensors.torch import save_file

    tensors = {}
    for name, (down, up) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "tiny", "bias": "none"}
    config |= {"target_modules": sorted({name.rsplit(".", 1)[-1] for name in pairs}), "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return folder
