"""SHA-256 digests of texts, JSON values and files; standard library only, so the training process has it too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = [
    "digest_adapter",
    "digest_bytes",
    "digest_file",
    "digest_files",
    "digest_json",
    "digest_model",
    "digest_text",
]


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_text(text: str) -> str:
    """Return the SHA-256 of `text` in UTF-8; lone surrogates are kept (`surrogatepass`)."""
    return digest_bytes(text.encode("utf-8", "surrogatepass"))


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value written with sorted keys and no spaces (as Definition 11 hashes W)."""
    return digest_text(json.dumps(value, sort_keys=True, separators=(",", ":")))


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in chunks of 1 MiB."""
    running = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            running.update(chunk)
    return running.hexdigest()


def digest_files(folder: Path, *patterns: str) -> str:
    """Return one SHA-256 over the names and contents of the files in `folder` that match any glob pattern."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return digest_json({path.name: digest_file(path) for path in found})


def digest_model(folder: Path) -> str:
    """Return the digest of a model folder's configuration and weights, by which manifests name a base model."""
    return digest_files(folder, "config.json", "*.safetensors", "pytorch_model*.bin")


def digest_adapter(folder: Path) -> str:
    """Return the digest of an adapter folder's weights, by which manifests name a parent; OSError without any."""
    return digest_file(folder / "adapter_model.safetensors")
