"""Finished adapters: published from a job folder with what they learned from beside them.

An adapter folder is what PEFT writes, plus `guardlearn.json`: the job's manifest and the training's result.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_file
from guardlearn.errors import ModelError

__all__ = ["MANIFEST", "adapter_digest", "publish", "read_manifest"]

MANIFEST = "guardlearn.json"
_WEIGHTS = "adapter_model.safetensors"


def publish(job: Path, to: Path) -> Path:
    """Copy a finished job's adapter to `to`, with its manifest; moved into place last.

    Raises:
        ModelError: `to` holds something that is no adapter.
    """
    if to.exists() and not (to / "adapter_config.json").is_file():
        raise ModelError(f"{to} exists and is no adapter folder; choose another place for the adapter")
    staged, old = to.with_name(f".{to.name}.new"), to.with_name(f".{to.name}.old")
    for leftover in (staged, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(job / "adapter", staged)
    content = {
        "manifest": json.loads((job / "manifest.json").read_text(encoding="utf-8")),
        "result": json.loads((job / "result.json").read_text(encoding="utf-8")),
    }
    (staged / MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if to.exists():
        to.rename(old)
    staged.rename(to)
    shutil.rmtree(old, ignore_errors=True)
    return to


def read_manifest(adapter: Path) -> dict[str, Any] | None:
    """Return what a published adapter learned from (the job's manifest), or None where nothing says so.

    Raises:
        ModelError: no adapter there, or its manifest is unreadable.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} is no adapter folder (no adapter_config.json); train one or name another")
    path = adapter / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["manifest"]
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{path} is not readable as an adapter's manifest ({error}); publish the adapter again"
        ) from error
    return manifest


def adapter_digest(adapter: Path) -> str:
    """Return the SHA-256 of an adapter's weights.

    Raises:
        ModelError: no weights there.
    """
    weights = adapter / _WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{adapter} holds no {_WEIGHTS}; the training did not finish, or the folder is no adapter")
    return digest_file(weights)
