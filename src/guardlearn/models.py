"""Where a model name leads: a local folder, a model guardlearn ships, or one from the Hugging Face hub."""

from __future__ import annotations

import importlib
from pathlib import Path

from guardlearn.errors import ModelError, missing_library
from guardlearn.types import OnProgress

__all__ = ["resolve_model"]

_SHIPPED = {"demo": "guardlearn.demo.model:demo_model"}
"""Names of models that come with guardlearn: name → function that returns their folder."""


def resolve_model(name: str, on_progress: OnProgress | None = None) -> Path:
    """Return the folder of a model: `demo`, a local folder, or a hub name (downloaded once).

    Raises:
        ModelError: nothing by that name, or a folder without configuration or weights.
        BackendUnavailable: a hub name, and huggingface-hub is not installed.
    """
    if name in _SHIPPED:
        module, function = _SHIPPED[name].split(":")
        folder: Path = getattr(importlib.import_module(module), function)(on_progress)
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(
            f"no model folder at {name}; give a folder, a hub name (owner/name) or one of {sorted(_SHIPPED)}"
        )
    return _download(name)


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; a model folder is what save_pretrained writes")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise ModelError(f"{folder} holds no weights (*.safetensors); copy them in or name another model")
    return folder.resolve()


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_library("huggingface-hub", "train", f"model {name!r}") from None
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(name, ignore_patterns=["*.gguf", "*.onnx", "original/*"])))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ModelError(f"model {name!r} is no local folder and the hub did not give it ({reason})") from error
