"""The adapter that a job goes on from: its weights are where training starts, with a fresh optimiser.

A job's manifest names it by the digest of its weights; with another one, or none, the job would be another job. What is
checked here is read from files, before any model is loaded; that its tensors fit is seen when they are put in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_adapter
from guardlearn.errors import JobError, ModelError
from guardlearn.training.saving import ADAPTER_CONFIG, WEIGHTS, manifest_in
from guardlearn.training.settings import Job
from guardlearn.training.weights import load_adapter_weights

__all__ = ["check_parent", "start_from"]

_PLAIN = {"peft_type": "LORA", "use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}
"""How guardlearn's own adapters scale; the weights' shapes would not show another way."""


def check_parent(job: Job, parent: Path | None) -> None:
    """Refuse a parent that is not the one the job was written with.

    Args:
        job: says its digest, rank and scale.
        parent: the adapter's folder; None: none was given.

    Raises:
        JobError: a parent is missing, or the job starts from the base.
        ModelError: it is no adapter, another one, or of another base model, rank or scale than the job's.
    """
    written = job.manifest.get("parent_adapter")
    if parent is None:
        if written is not None:
            raise JobError(f"{job.folder} goes on from the adapter of digest {written}; give its folder with --parent")
        return
    if written is None:
        raise JobError(f"{job.folder} starts from the base model; leave --parent {parent} out, or write it with parent")
    if not (parent / WEIGHTS).is_file() or not (parent / ADAPTER_CONFIG).is_file():
        raise ModelError(f"the parent {parent} is no adapter folder ({ADAPTER_CONFIG}, {WEIGHTS}); name another")
    found = digest_adapter(parent)
    if found != written:
        raise ModelError(
            f"{parent} is not the adapter that {job.folder} goes on from: its weights' digest is {found}, the manifest "
            f"says {written}; give --parent that one, or write the job again"
        )
    _check_base(job, parent)
    _check_settings(job, parent, _config(parent / ADAPTER_CONFIG))


def start_from(model: Any, parent: Path) -> None:
    """Put a parent's weights into the fresh adapters of a model.

    Raises:
        ModelError: its target modules are not the model's.
    """
    try:
        load_adapter_weights(model, parent)
    except ModelError as error:
        raise ModelError(f"the parent {parent} does not fit this job: {error}") from error


def _check_base(job: Job, parent: Path) -> None:
    """Refuse a parent that says it is of another base; of one that says nothing the weights must fit."""
    said = (manifest_in(parent) or {}).get("base_model_digest")
    written = job.manifest.get("base_model_digest")
    if said is not None and said != written:
        raise ModelError(
            f"the parent {parent} is of another base model (digest {said}) than {job.folder} (digest {written}); write "
            "the job with a parent of its base, or start from the base"
        )


def _check_settings(job: Job, parent: Path, config: dict[str, Any]) -> None:
    wanted = {"r": job.settings.lora_r, "lora_alpha": job.settings.lora_alpha}
    plain = {name: value for name, value in _PLAIN.items() if name in config}
    for name, value in (wanted | plain).items():
        if config.get(name) != value:
            raise ModelError(
                f"the parent {parent} has {name} {config.get(name)!r}, {job.folder} trains with {value!r}; write the "
                "job with the parent's settings, or start from the base"
            )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON ({error}); name another parent") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no settings but {config!r:.40}; name another parent")
    return config
