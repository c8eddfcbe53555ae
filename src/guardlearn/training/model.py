"""Base models and LoRA adapters: load, add, save (the guide's section 4), without Unsloth's need of a GPU.

Errata 37 and 38.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardlearn.errors import BackendUnavailable, ModelError

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

log = logging.getLogger(__name__)


def load_model_for_training(model_name: str, max_seq_length: int = 4096, load_in_4bit: bool = True) -> tuple[Any, Any]:
    """Load a base model and its tokenizer.

    Args:
        model_name: a folder, or a hub name.
        max_seq_length: most tokens of a training row; a longer row is refused, never cut.
        load_in_4bit: quantise where that is possible (CUDA and bitsandbytes); elsewhere full precision is used.

    Raises:
        ModelError: no such model, no weights, or no end token.
        BackendUnavailable: torch, transformers or peft is missing.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig
        from transformers.utils import is_bitsandbytes_available
    except ImportError as error:
        raise _missing(error) from error
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32}
    if load_in_4bit and cuda and is_bitsandbytes_available():
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=options["dtype"])
    elif load_in_4bit:
        log.info("4 bit needs CUDA and bitsandbytes; loading %s in %s", model_name, options["dtype"])
    if Path(model_name).is_dir():
        check_folder(Path(model_name))
    tokenizer = load_tokenizer(model_name, max_seq_length)
    with quiet_libraries():
        try:
            model = AutoModelForCausalLM.from_pretrained(model_name, **options)
        except Exception as error:  # each library raises its own kind for a missing or damaged file
            raise ModelError(f"cannot load {model_name} ({str(error).splitlines()[0][:200]})") from error
    return model.to("cuda") if cuda and "quantization_config" not in options else model, tokenizer


def load_tokenizer(model_name: str, max_seq_length: int) -> Any:
    """Load a base model's tokenizer, with a pad token and `max_seq_length` as its `model_max_length`.

    Raises:
        ModelError: no such tokenizer, or it names no end token.
        BackendUnavailable: transformers is missing.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise _missing(error) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
    except Exception as error:  # as above
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
    """Return `model` with fresh LoRA adapters on every linear layer but the output head; the base stays frozen.

    Args:
        model: what `load_model_for_training` returned; it is changed in place.
        r: rank.
        lora_alpha: scale; the update is multiplied by lora_alpha / r.
        seed: decides the adapters' random half; the other half is 0, so the model's answers do not change yet.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r, lora_alpha=lora_alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def save_trained_model(model: Any, tokenizer: Any, output_path: str) -> None:
    """Save the LoRA adapters (not the whole model) and the tokenizer to a folder."""
    model.save_pretrained(output_path)
    tokenizer.save_pretrained(output_path)


def load_trained_model(model_name: str, adapter: str) -> tuple[Any, Any]:
    """Load a base model with a trained adapter on it, for inference; return it and its tokenizer.

    Raises:
        ModelError: no such model or adapter.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} is no adapter folder (no adapter_config.json); train one or name another")
    base, tokenizer = load_model_for_training(model_name, load_in_4bit=False)
    from peft import PeftModel

    return PeftModel.from_pretrained(base, adapter).eval(), tokenizer


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


def _missing(error: ImportError) -> BackendUnavailable:
    return BackendUnavailable(f"training needs {error.name}; run: pip install 'guardlearn[train]'")
