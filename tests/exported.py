"""A small LoRA folder with what it learned from beside it, for the tests of exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from guardlearn.adapters import ADAPTER_CONFIG, MANIFEST, adapter_digest
from guardlearn.digests import digest_model
from guardlearn.generators.transformers import load_tokenizer
from guardlearn.prompts import Renderer, template_digest
from small_loras import write_lora

FEW = ["Write a function.", [{"role": "user", "content": "Say hello"}]]
"""Prompts for tests that compare little."""


def published(folder: Path, model: Path, **settings: Any) -> Path:
    """Write an adapter of `model` as `publish` leaves one."""
    write_lora(folder, model, **settings)
    manifest = {
        "base_model": "tiny",
        "base_model_digest": digest_model(model),
        "prompts": Renderer().settings(),
        "template_digest": template_digest(load_tokenizer(model), Renderer()),
        "item_ids": ["a1"],
    }
    content = {"manifest": manifest, "result": {"adapter_digest": adapter_digest(folder), "steps": 3}}
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


def copied(adapter: Path, to: Path, *, known: bool = False, **config: Any) -> Path:
    """Copy an adapter with other settings; unless `known`, nothing says what it came from."""
    shutil.copytree(adapter, to)
    path = to / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if not known:
        (to / MANIFEST).unlink()
    return to
