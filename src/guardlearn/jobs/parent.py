"""The adapter that a job goes on from: what it is, and what it learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.digests import digest_adapter
from guardlearn.errors import ModelError
from guardlearn.jobs.config import TrainingConfig

__all__ = ["Parent", "read_parent"]

_CONFIG, _ACCOUNT = "adapter_config.json", "guardlearn.json"  # what PEFT writes, and what publishing adds


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """A finished adapter."""

    digest: str
    """SHA-256 of its weights."""
    manifest: dict[str, Any]
    """What it learned from; empty where nothing says so."""

    def inherited(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a job's manifest says once its adapter also knows what the parent learned.

        Args:
            own: `item_ids`, `specification_digests` and `groups` of the job's own traces.
        """
        before = [*self.manifest.get("inherited_item_ids", ()), *self.manifest.get("item_ids", ())]
        again = set(own["item_ids"])
        more = {
            name: sorted({*own[name], *self.manifest.get(name, ())}) for name in ("specification_digests", "groups")
        }
        return {"inherited_item_ids": [name for name in dict.fromkeys(before) if name not in again], **more}


def read_parent(folder: Path, config: TrainingConfig, base_digest: str) -> Parent:
    """Read an adapter that a job is to go on from.

    Args:
        folder: the adapter's.
        config: how the job trains.
        base_digest: of the job's base model.

    Raises:
        ModelError: no finished adapter, one of another base model, rank or scale, or one edited since it was trained.
    """
    try:
        said = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        digest = digest_adapter(folder)
        account = json.loads((folder / _ACCOUNT).read_text(encoding="utf-8")) if (folder / _ACCOUNT).exists() else {}
        manifest, result = dict(account.get("manifest") or {}), dict(account.get("result") or {})
        lora = {"lora_r": said.get("r"), "lora_alpha": said.get("lora_alpha")}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder} is no finished adapter to go on from ({error}); name another parent") from error
    for name, value in lora.items():
        if value != getattr(config, name):
            raise ModelError(
                f"the parent adapter {folder} has {name} {value}, the job {getattr(config, name)}; train with the "
                "parent's, or start from the base"
            )
    base = manifest.get("base_model_digest", base_digest)
    if base != base_digest:
        raise ModelError(
            f"the parent adapter {folder} is of another base model (digest {base}, this one's is {base_digest}); start "
            "from the base, or give the parent's"
        )
    if result.get("adapter_digest", digest) != digest:
        raise ModelError(
            f"the parent adapter {folder} was edited: its weights' SHA-256 is {digest}, its training left "
            f"{result['adapter_digest']}; put it back, or name another parent"
        )
    return Parent(digest=digest, manifest=manifest)
