"""Base models and LoRA adapters: load, add, save (the guide's section 4); Unsloth does it where it can run.

Errata 37 and 38.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardlearn.errors import ModelError, missing_library
from guardlearn.training import backends
from guardlearn.training.saving import ADAPTER_CONFIG, MANIFEST, manifest_in, placed, versions
from guardlearn.training.weights import PROVENANCE

__all__ = [
    "add_lora_adapters",
    "autocast_dtype",
    "check_folder",
    "load_model_for_training",
    "load_tokenizer",
    "load_trained_model",
    "quiet_libraries",
    "save_trained_model",
]

_CONTEXT = 4096


def load_model_for_training(
    model_name: str = "unsloth/llama-3-8b-Instruct", max_seq_length: int = _CONTEXT, load_in_4bit: bool = True
) -> tuple[Any, Any]:
    """Load a base model and its tokenizer: by Unsloth where `backends.choose` gives it, else by transformers.

    On a GPU call this before anything else imports transformers: Unsloth must come first.

    Args:
        model_name: a folder, or a hub name.
        max_seq_length: most tokens of a training row; a longer row is refused, never cut.
        load_in_4bit: quantise where that is possible (CUDA and bitsandbytes); elsewhere full precision is used.

    Raises:
        ModelError: no such model, no weights, or no end token.
        BackendUnavailable: torch, transformers or peft is missing.
    """
    backend = backends.open_backend(backends.choose())  # before the tokenizer, which imports transformers
    if Path(model_name).is_dir():
        check_folder(Path(model_name))
    tokenizer = load_tokenizer(model_name, max_seq_length)
    return backend.load_base(model_name, max_seq_length, load_in_4bit), tokenizer


def load_tokenizer(model_name: str, max_seq_length: int) -> Any:
    """Load a base model's tokenizer, with a pad token and `max_seq_length` as its `model_max_length`.

    Raises:
        ModelError: no such tokenizer, or it names no end token.
        BackendUnavailable: transformers is missing.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_library(str(error.name), "train", "training") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
    except Exception as error:  # each library raises its own kind for a missing or damaged file
        raise ModelError(f"no usable tokenizer at {model_name} ({str(error).splitlines()[0][:200]})") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {model_name} names no end token (eos_token); training could not teach to stop"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = max_seq_length
    return tokenizer


def add_lora_adapters(model: Any, r: int = 16, lora_alpha: int = 16, *, seed: int = 42) -> Any:
    """Return `model` with fresh LoRA adapters; the base stays frozen.

    They sit on every linear layer but the output head; Unsloth's on the attention's and the MLP's projections.

    Args:
        model: what `load_model_for_training` returned; it is changed in place.
        r: rank.
        lora_alpha: scale; the update is multiplied by lora_alpha / r.
        seed: decides the adapters' random half; the other half is 0, so the model's answers do not change yet.
    """
    return backends.open_backend(backends.name_of(model)).add_adapters(model, r, lora_alpha, seed)


def save_trained_model(model: Any, tokenizer: Any, output_path: str) -> None:
    """Save the LoRA adapters (not the whole model) and the tokenizer to a folder, whole or not at all.

    Weights are safetensors. `guardlearn.json` beside them says what is known: the base model's name, LoRA's settings,
    versions, and the manifest of what was learned where the model carries one (`guardlearn_manifest`).

    Args:
        model: what `add_lora_adapters` returned, trained or not.
        tokenizer: the base model's.
        output_path: made with its parents; an adapter that is there already is replaced, nothing else is. Weights
            checkpoints of `train_on_traces` stay, so that it may be the same folder, as in the guide.

    Raises:
        ModelError: the model carries no adapters, `output_path` holds something that is no adapter, or the disk does
            not take it; what was there before is then still there.
    """
    if not hasattr(model, "peft_config"):
        raise ModelError(f"{type(model).__name__} carries no adapters; save what add_lora_adapters returned")
    account = {"manifest": getattr(model, PROVENANCE, None), "saved": _account(model)}
    with placed(Path(output_path), replaces=ADAPTER_CONFIG, keeps="checkpoint-*") as staged:
        model.save_pretrained(str(staged), safe_serialization=True)
        tokenizer.save_pretrained(str(staged))
        (staged / MANIFEST).write_text(json.dumps(account, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_trained_model(model_name: str, adapter: str) -> tuple[Any, Any]:
    """Load a base model with a trained adapter on it, for inference; return it and its tokenizer.

    Raises:
        ModelError: no such model or adapter.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} is no adapter folder (no adapter_config.json); train one or name another")
    if Path(model_name).is_dir():
        check_folder(Path(model_name))
    tokenizer = load_tokenizer(model_name, _CONTEXT)
    base = backends.open_backend("trl").load_base(model_name, _CONTEXT, load_in_4bit=False)
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, adapter).eval()
    setattr(model, PROVENANCE, manifest_in(Path(adapter)))
    return model, tokenizer


def autocast_dtype() -> str:
    """Return "bf16" where this device computes in it, "fp16" on an older GPU, "" for full precision."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    return "bf16" if any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16")) else ""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' progress bars off the terminal for a while."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def check_folder(folder: Path) -> None:
    """Refuse a model folder without configuration or weights.

    Raises:
        ModelError: naming what is missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; a model folder is what save_pretrained writes")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise ModelError(f"{folder} holds no weights (*.safetensors); copy them in or name another model")


def _account(model: Any) -> dict[str, Any]:
    config = model.peft_config[model.active_adapter]
    name, targets = str(config.base_model_name_or_path or ""), config.target_modules
    return {
        "base_model": Path(name).name if Path(name).is_dir() else name,  # a path means nothing elsewhere
        "lora": {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": targets if isinstance(targets, str) else sorted(targets or ()),
        },
        "versions": versions("guardlearn", "torch", "transformers", "peft"),
    }
