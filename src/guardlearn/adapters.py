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
from guardlearn.training.saving import ADAPTER_CONFIG, MANIFEST, WEIGHTS, manifest_in, placed

__all__ = [
    "ADAPTER_CONFIG",
    "MANIFEST",
    "WEIGHTS",
    "adapter_digest",
    "config_digest",
    "manifest_in",
    "publish",
    "read_manifest",
    "read_published",
]


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


def read_published(adapter: Path) -> dict[str, Any]:
    """Return all that stands beside an adapter: `manifest`, and `result`, the training's own account; {} for nothing.

    Raises:
        ModelError: no adapter there, or what stands beside it is unreadable.
    """
    if read_manifest(adapter) is None:
        return {}
    published: dict[str, Any] = json.loads((adapter / MANIFEST).read_text(encoding="utf-8"))
    return published


def config_digest(adapter: Path) -> str:
    """Return the SHA-256 of an adapter's configuration: rank and scale decide as much as the weights do.

    Raises:
        ModelError: no adapter there.
    """
    config = adapter / ADAPTER_CONFIG
    if not config.is_file():
        raise ModelError(f"{adapter} is no adapter folder (no {ADAPTER_CONFIG}); train one or name another")
    return digest_file(config)


def adapter_digest(adapter: Path) -> str:
    """Return the SHA-256 of an adapter's weights.

    Raises:
        ModelError: no weights there.
    """
    weights = adapter / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{adapter} holds no {WEIGHTS}; the training did not finish, or the folder is no adapter")
    return digest_file(weights)
