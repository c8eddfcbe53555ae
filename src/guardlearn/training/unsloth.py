"""The unsloth backend's own half: `FastLanguageModel` loads the model and adds the adapters (the guide's section 4).

Imported by `backends.open_backend` only, on a CUDA device, before transformers, trl and peft.
tests/test_unsloth_sources.py reads what is relied on from the sources of 2026.10.9; docs/gpu.md says what ran on a GPU.
"""

from __future__ import annotations

from unsloth import FastLanguageModel  # isort: skip - it must come first, it rewrites transformers, trl and peft

from pathlib import Path
from typing import Any

from guardlearn.errors import ModelError
from guardlearn.training.backends import BACKEND

__all__ = ["add_adapters", "load_base"]

_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load_base(model_name: str, max_seq_length: int, load_in_4bit: bool) -> Any:
    """Load a base model in 4 bit, or in the 16 bit that the GPU computes in; see `Backend.load_base`.

    Unsloth's own tokenizer is dropped: it may give it another pad token, and rows are tokenised with the base model's.

    Raises:
        ModelError: no such model, `max_seq_length` exceeds its positions, or Unsloth would have added a token to it.
    """
    name = str(Path(model_name).resolve()) if Path(model_name).is_dir() else model_name  # a path is never looked up
    config = _config(name)
    positions = getattr(config, "max_position_embeddings", max_seq_length)
    if max_seq_length > positions:
        raise ModelError(
            f"{model_name} has {positions} positions, fewer than max_length {max_seq_length}; Unsloth would stretch "
            "them, and the adapter would fit no other copy of the model: give at most that many"
        )
    try:
        model, _ = FastLanguageModel.from_pretrained(
            model_name=name, max_seq_length=max_seq_length, dtype=None, load_in_4bit=load_in_4bit
        )
    except Exception as error:  # each library raises its own kind for a missing or damaged file
        raise ModelError(f"Unsloth cannot load {model_name} ({' '.join(str(error).split())[:200]})") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if rows != config.vocab_size:
        raise ModelError(
            f"Unsloth made the {config.vocab_size} tokens of {model_name} {rows}, to have one to pad with; give its "
            "tokenizer a pad token that is not its end token"
        )
    setattr(model, BACKEND, "unsloth")
    return model


def add_adapters(model: Any, r: int, lora_alpha: int, seed: int) -> Any:
    """Add LoRA to the guide's seven projections, with Unsloth's gradient checkpointing; see `Backend.add_adapters`."""
    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    lacking = [name for name in _TARGETS if name not in there]
    if lacking:
        raise ModelError(
            f"{type(model).__name__} has no {', '.join(lacking)}; the unsloth backend adapts {', '.join(_TARGETS)}: "
            "train it with --backend trl, which adapts whatever linear layers there are"
        )
    return FastLanguageModel.get_peft_model(
        model,
        r=r,
        target_modules=list(_TARGETS),
        lora_alpha=lora_alpha,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=seed,
    )


def _config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name).get_text_config()
    except Exception as error:  # as in load_base
        raise ModelError(f"cannot load {name} ({' '.join(str(error).split())[:200]})") from error
