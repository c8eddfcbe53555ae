"""The trl backend's own half: transformers loads the base model, PEFT adds the adapters. Runs anywhere."""

from __future__ import annotations

import logging
from typing import Any

from guardlearn.errors import ModelError, missing_library
from guardlearn.training.model import quiet_libraries

__all__ = ["add_adapters", "load_base"]

log = logging.getLogger(__name__)


def load_base(model_name: str, max_seq_length: int, load_in_4bit: bool) -> Any:
    """Load a base model: bfloat16 on a GPU that computes in it, else float32; see `Backend.load_base`.

    Any row length will do here. 4 bit needs CUDA and bitsandbytes; elsewhere full precision is used.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig
        from transformers.utils import is_bitsandbytes_available
    except ImportError as error:
        raise missing_library(str(error.name), "train", "training") from error
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32}
    if load_in_4bit and cuda and is_bitsandbytes_available():
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=options["dtype"])
    elif load_in_4bit:
        log.info("4 bit needs CUDA and bitsandbytes; loading %s in %s", model_name, options["dtype"])
    with quiet_libraries():
        try:
            model = AutoModelForCausalLM.from_pretrained(model_name, **options)
        except Exception as error:  # each library raises its own kind for a missing or damaged file
            raise ModelError(f"cannot load {model_name} ({str(error).splitlines()[0][:200]})") from error
    return model.to("cuda") if cuda and "quantization_config" not in options else model


def add_adapters(model: Any, r: int, lora_alpha: int, seed: int) -> Any:
    """Add LoRA to every linear layer but the output head; see `Backend.add_adapters`."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r, lora_alpha=lora_alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)
