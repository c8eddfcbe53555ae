"""A folder for `ollama create`: a Modelfile, and the adapter as GGUF beside it.

Ollama's documentation takes both a folder of safetensors and a GGUF file as an ADAPTER. Only the file holds what is
loaded: of a folder, Ollama's converter (convert/convert_llama_adapter.go at commit fb30760, read, not run) reorders the
first half of Llama's query and key layers, where llama.cpp reorders the second; W + s B A would then be another matrix.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guardlearn.errors import UsageError
from guardlearn.exporting.lora_gguf import read_lora_gguf, write_lora_gguf
from guardlearn.exporting.templates import Markers, find_markers
from guardlearn.merging.loading import load_with_adapter
from guardlearn.training.weights import put_adapter_weights

__all__ = ["ADAPTER_FILE", "load_ollama", "write_ollama"]

ADAPTER_FILE = "adapter.gguf"


def write_ollama(base: Path, adapter: Path, tokenizer: Any, base_name: str, staged: Path) -> list[str]:
    """Write Modelfile and adapter; return what could not be written, in words.

    Args:
        base: the base's folder.
        adapter: the adapter's.
        tokenizer: the base's.
        base_name: what stands after FROM: a model of Ollama, a GGUF file, or a folder of safetensors.
        staged: where to write.

    Raises:
        ModelError: an architecture or a layer that has no place there.
        UsageError: a base's name of several lines.
    """
    if "\n" in base_name or not base_name.strip():
        raise UsageError(f"--base-name is {base_name!r}; allowed: a model's name in Ollama, or a path")
    write_lora_gguf(adapter, _config(base), staged / ADAPTER_FILE)
    markers = find_markers(tokenizer)
    lines = [f"FROM {base_name}", f"ADAPTER ./{ADAPTER_FILE}"]
    if isinstance(markers, Markers):
        lines.append(f'TEMPLATE """{markers.go}"""')
        lines += [f'SYSTEM """{markers.default_system}"""'] if markers.default_system else []
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in _ends(base, tokenizer)]
    lines += [f"PARAMETER {name} {value}" for name, value in _sampling(base).items()]
    (staged / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if isinstance(markers, Markers):
        return []
    return [
        f"no TEMPLATE: {markers}; Ollama uses what it knows of {base_name}: compare its prompts with the template's"
    ]


def load_ollama(base: Path, adapter: Path, staged: Path) -> Any:
    """Return the base with the adapter that is in the GGUF file, in float32, in evaluation mode.

    Raises:
        ModelError: the file is damaged.
    """
    network = load_with_adapter(base, adapter)
    put_adapter_weights(network, read_lora_gguf(staged / ADAPTER_FILE, adapter, _config(base)))
    return network.get_base_model()


def _config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return config


def _generation(base: Path) -> dict[str, Any]:
    path = base / "generation_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return settings


def _ends(base: Path, tokenizer: Any) -> list[str]:
    """Return the texts of the tokens that end an answer."""
    configured = _generation(base).get("eos_token_id")
    several = configured if isinstance(configured, list) else [configured]
    ids = {each for each in (*several, tokenizer.eos_token_id) if each is not None}
    return [tokenizer.decode([each]) for each in sorted(ids)]


def _sampling(base: Path) -> dict[str, Any]:
    """Return how the base's makers sample from it; Ollama's own defaults where they do not say."""
    settings = _generation(base)
    named = (
        {name: settings.get(name) for name in ("temperature", "top_k", "top_p")} if settings.get("do_sample") else {}
    )
    return {name: value for name, value in named.items() if value is not None}
