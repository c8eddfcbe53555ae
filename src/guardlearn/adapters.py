"""Finished adapters: published from a job folder with what they learned from beside them.

An adapter folder is what PEFT writes, plus `guardlearn.json`: the job's manifest and the training's result, or what
`save_trained_model` knew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_file
from guardlearn.errors import ModelError
from guardlearn.training.saving import ADAPTER_CONFIG, MANIFEST, placed

__all__ = ["MANIFEST", "WEIGHTS", "adapter_digest", "manifest_in", "publish", "read_manifest"]

WEIGHTS = "adapter_model.safetensors"
"""File of an adapter's folder that holds its weights."""


def publish(job: Path, to: Path) -> Path:
    """Copy a finished job's adapter to `to`, with its manifest; moved into place last.

    Raises:
        ModelError: `to` holds something that is no adapter, or the disk does not take it; `to` is then as it was.
    """
    if to.exists() and not (to / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{to} exists and is no adapter folder; choose another place for the adapter")
    content = {
        "manifest": json.loads((job / "manifest.json").read_text(encoding="utf-8")),
        "result": json.loads((job / "result.json").read_text(encoding="utf-8")),
    }
    with placed(to, replaces=ADAPTER_CONFIG) as staged:
        shutil.copytree(job / "adapter", staged, dirs_exist_ok=True)
        (staged / MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return to


def read_manifest(adapter: Path) -> dict[str, Any] | None:
    """Return what a published adapter learned from (the job's manifest), or None where nothing says so.

    Raises:
        ModelError: no adapter there, or its manifest is unreadable.
    """
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{adapter} is no adapter folder (no {ADAPTER_CONFIG}); train one or name another")
    return manifest_in(adapter)


def manifest_in(folder: Path) -> dict[str, Any] | None:
    """Return what the adapter or merged model in `folder` learned from, or None where nothing says so.

    Raises:
        ModelError: its manifest is unreadable.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")).get("manifest")
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"{path} is not readable as an adapter's manifest ({error}); publish the adapter again"
        ) from error
    if manifest is not None and not isinstance(manifest, dict):
        raise ModelError(f"{path} holds no adapter's manifest but {manifest!r:.40}; publish the adapter again")
    return manifest


def adapter_digest(adapter: Path) -> str:
    """Return the SHA-256 of an adapter's weights.

    Raises:
        ModelError: no weights there.
    """
    weights = adapter / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{adapter} holds no {WEIGHTS}; the training did not finish, or the folder is no adapter")
    return digest_file(weights)
