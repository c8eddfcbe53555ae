"""A PEFT folder for those who load adapters by themselves: vLLM, PEFT, and with its base inside `transformers serve`.

The weights are copied byte for byte, so that the adapter keeps its digest. Its configuration is written plainly: what
PEFT would assume anyway is left out, because other versions of PEFT know other fields.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from guardlearn.errors import ModelError
from guardlearn.merging.loading import load_model, load_with_adapter
from guardlearn.merging.refusals import first_line
from guardlearn.prompts import Renderer, template_digest
from guardlearn.training.saving import ADAPTER_CONFIG, WEIGHTS

__all__ = ["load_peft", "plain_config", "vllm_notes", "write_peft"]

_ALWAYS = ("r", "lora_alpha", "lora_dropout", "bias", "fan_in_fan_out", "use_rslora", "use_dora", "modules_to_save")
"""Fields that programs read without knowing PEFT's defaults."""
_PEFT_ALONE = ("peft_version", "revision", "megatron_core", "qalora_group_size")
"""Fields that say nothing of a plain LoRA."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank allows (its vllm/config/lora.py); 16 unless told otherwise."""
_VLLM_RANK = 16
_USUAL = frozenset(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
_BASE_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")


def write_peft(base: Path, adapter: Path, tokenizer: Any, base_name: str, staged: Path, *, with_base: bool) -> None:
    """Write the folder.

    Args:
        base: the base's folder.
        adapter: the adapter's.
        tokenizer: the base's, whose chat template the adapter was trained with.
        base_name: what the configuration calls the base.
        staged: where to write.
        with_base: copy the base's configuration and weights in.

    Raises:
        ModelError: the base is to be copied, and its weights are no safetensors.
    """
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    plain = plain_config(config, base_name)
    (staged / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(adapter / WEIGHTS, staged / WEIGHTS)
    tokenizer.save_pretrained(staged)
    if not with_base:
        return
    if not any(base.glob("*.safetensors")):
        raise ModelError(
            f"{base} holds no safetensors to be copied in; leave --with-base out, or save it in them first"
        )
    for path in sorted({path for pattern in _BASE_FILES for path in base.glob(pattern)}):
        if path.name != WEIGHTS:
            shutil.copyfile(path, staged / path.name)


def plain_config(config: dict[str, Any], base_name: str) -> dict[str, Any]:
    """Return an adapter's configuration without what PEFT assumes anyway, its numbers whole where they are."""
    said = {name: value for name, value in config.items() if value not in (None, False, {}, [])}
    kept = {name: value for name, value in said.items() if name not in _PEFT_ALONE}
    always = {name: config[name] for name in _ALWAYS if name in config}
    alpha = config["lora_alpha"]
    targets = config.get("target_modules")
    return {
        **kept,
        **always,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "target_modules": sorted(targets) if isinstance(targets, list) else targets,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
    }


def load_peft(base: Path, tokenizer: Any, staged: Path, *, with_base: bool) -> Any:
    """Load the folder as its user would: with its own base by one name, or on the base.

    Args:
        base: the base's folder.
        tokenizer: the base's.
        staged: the folder.
        with_base: the base is in it, too.

    Raises:
        ModelError: it cannot be loaded, or its tokenizer is another one.
    """
    import torch

    from guardlearn.generators.transformers import load_tokenizer

    if template_digest(load_tokenizer(staged), Renderer()) != template_digest(tokenizer, Renderer()):
        raise ModelError(f"the tokenizer of {base} is another one after saving; export --to merged, or copy it by hand")
    if not with_base:
        return load_with_adapter(base, staged).get_base_model()
    network = load_model(staged, torch.float32)
    try:
        active = network.active_adapters()
    except ValueError as error:
        raise ModelError(f"transformers loads {staged.name} without its adapter ({first_line(error)})") from error
    if not active:
        raise ModelError(f"transformers loads {staged.name} without its adapter")
    return network


def vllm_notes(config: dict[str, Any]) -> list[str]:
    """Return what vLLM must be told to load an adapter of this configuration, or why it cannot, in words."""
    obstacles = [
        *(["DoRA"] if config.get("use_dora") else []),
        *(["modules_to_save"] if config.get("modules_to_save") else []),
        *(
            ["a rank or an alpha of some layers' own"]
            if config.get("rank_pattern") or config.get("alpha_pattern")
            else []
        ),
        *([f"rank {config['r']}, over {_RANKS[-1]}"] if config["r"] > _RANKS[-1] else []),
    ]
    if obstacles:
        return [f"vLLM cannot serve it as trained ({', '.join(obstacles)}): export --to merged"]
    notes = []
    if config["r"] > _VLLM_RANK:
        notes.append(f"vLLM needs --max-lora-rank {next(rank for rank in _RANKS if rank >= config['r'])}")
    targets = config.get("target_modules")
    others = sorted(set(targets) - _USUAL) if isinstance(targets, list) else [str(targets)]
    if others:
        notes.append(f"see that vLLM's class of this model takes adapters on {', '.join(others)}")
    return notes
