"""Merging: load, add the adapter, merge, round, save, load again, compare; whole or not at all."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.adapters import adapter_digest
from guardlearn.digests import digest_model
from guardlearn.errors import ModelError, UsageError, missing_library
from guardlearn.merging.agreement import (
    PROBES,
    Prompt,
    compare,
    encode_prompts,
    largest_difference,
    logits,
)
from guardlearn.merging.loading import Steps, load_model, load_with_adapter, measure_reference, quiet
from guardlearn.merging.refusals import (
    Manifest,
    base_digest,
    check_template,
    first_line,
    read_adapter,
    refuse_quantised,
)
from guardlearn.merging.report import DTYPES, MergeReport, judge, must_agree, must_differ
from guardlearn.models import resolve_model
from guardlearn.prompts import Renderer, template_digest
from guardlearn.training.saving import MANIFEST, placed, versions
from guardlearn.types import OnProgress

__all__ = ["merge_adapter"]

_GENERATION = "generation_config.json"

Weights = dict[str, tuple[tuple[int, ...], str]]


def merge_adapter(
    model: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    dtype: str = "bfloat16",
    prompts: Sequence[Prompt] | None = None,
    on_progress: OnProgress | None = None,
) -> MergeReport:
    """Merge an adapter into its base, save it as a model folder, load that again and compare; all or nothing.

    One copy of the model is in memory at a time, in float32: 4 bytes a parameter, and for logits 12 bytes times
    positions times vocabulary (0.4 GB where that is 49 thousand). A GPU is used where the model fits in.

    Args:
        model: the base: `demo`, a folder, or a hub name; 16 or 32 bit, never quantised.
        adapter: folder of a LoRA adapter.
        output: gets safetensors, tokenizer, generation settings and `guardlearn.json`; must not exist or be empty.
        dtype: "bfloat16" has float32's range; "float16" keeps more of the adapter, where its range suffices;
            "float32" keeps all of it.
        prompts: texts or chats to compare on; None: the twenty `PROBES`.
        on_progress: called with (steps done, steps, note).

    Raises:
        UsageError: another dtype, or no prompt.
        ModelError: a quantised base, an adapter of another base or one that changes nothing, an output that is there
            already, a disk that is full, or a merged model that does not agree. Nothing is then at `output`.
        BackendUnavailable: torch, transformers or peft is missing.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    folder = Path(adapter)
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_library(error.name or "peft", "train", "merging an adapter") from None
    base = resolve_model(str(model))
    refuse_quantised(base)
    manifest = read_adapter(folder)
    with placed(Path(output)) as staged, quiet():
        report = _merge(base, folder, manifest, staged, dtype, PROBES if prompts is None else prompts, on_progress)
        judge(report)
        merged = msgspec.to_builtins(report) | {"versions": versions("guardlearn", "torch", "transformers", "peft")}
        account = {"manifest": manifest, "merged": merged}
        (staged / MANIFEST).write_text(json.dumps(account, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return report


def _merge(
    base: Path,
    adapter: Path,
    manifest: Manifest,
    staged: Path,
    dtype: str,
    prompts: Sequence[Prompt],
    on_progress: OnProgress | None,
) -> MergeReport:
    """Leave the merged model in `staged`; return how far it is from base + adapter."""
    from guardlearn.generators.transformers import load_tokenizer

    steps = Steps(on_progress, 4 + len(prompts) * (6 if dtype == "float32" else 7))
    digest = steps.done("base read", base_digest(base, adapter, manifest))
    tokenizer = load_tokenizer(base)
    check_template(tokenizer, base, manifest)
    asked = encode_prompts(tokenizer, prompts)
    with_adapter = steps.done("base loaded", load_with_adapter(base, adapter))
    network = with_adapter.get_base_model()  # the base, its layers wrapped: settings made on it are its own
    reference = measure_reference(network, tokenizer, asked, steps)
    along = (reference.prompts, reference.continuations)
    with with_adapter.disable_adapter():
        bare = list(steps.each("bare base", logits(network, *along)))
    must_differ(adapter, largest_difference(bare, reference.logits))
    network = _merged(with_adapter, adapter)
    due = list(steps.each("merged", logits(network, *along)))
    merging = largest_difference(due, reference.logits)
    must_agree(adapter, merging)
    parameters = sum(weight.numel() for weight in network.parameters())
    saved = steps.done(f"saved in {dtype}", _save(network, tokenizer, base, staged, dtype))
    if dtype != "float32":
        due = list(steps.each("rounded", logits(network, *along)))
    del network, with_adapter  # one model at a time
    again = steps.done("loaded again", _load_again(staged, tokenizer, saved, dtype))
    return MergeReport(
        base_model=str((manifest or {}).get("base_model") or base.name),
        dtype=dtype,
        parameters=parameters,
        base_model_digest=digest,
        adapter_digest=adapter_digest(adapter),
        model_digest=digest_model(staged),
        merging_difference=merging,
        rounding_difference=largest_difference(due, reference.logits),
        agreement=compare(again, tokenizer, reference, bare, due, steps.each),
    )


# The model in memory


def _merged(network: Any, adapter: Path) -> Any:
    try:
        return network.merge_and_unload(safe_merge=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(f"the adapter in {adapter} cannot be merged ({first_line(error)})") from error


# Saving, and loading again


def _save(network: Any, tokenizer: Any, base: Path, staged: Path, dtype: str) -> Weights:
    """Save in `dtype`, leave the rounded weights in `network` as float32, return what they are."""
    import torch
    from transformers import GenerationConfig

    kind = getattr(torch, dtype)
    weights = _weights(network, kind)
    tensors = [tensor for tensor in network.state_dict(keep_vars=True).values() if tensor.is_floating_point()]
    for tensor in tensors:  # in place, so that there is never a second copy; tied weights stay tied
        tensor.data = tensor.data.to(kind)
    if (base / _GENERATION).is_file():
        network.generation_config = GenerationConfig()  # the base's own may be one that save_pretrained refuses
    network.save_pretrained(staged)
    if (base / _GENERATION).is_file():
        shutil.copyfile(base / _GENERATION, staged / _GENERATION)
    tokenizer.save_pretrained(staged)
    for tensor in tensors:
        tensor.data = tensor.data.float()
    return weights


def _weights(network: Any, dtype: Any) -> Weights:
    """Return each tensor's shape and the SHA-256 of its bytes once rounded to `dtype`.

    Raises:
        ModelError: a number that `dtype` cannot hold.
    """
    import torch

    found: Weights = {}
    for name, tensor in network.state_dict().items():
        value = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{name} holds {float(tensor.abs().max()):g}, more than {dtype} can; merge it in bfloat16 or float32"
            )
        raw = value.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
        found[name] = (tuple(value.shape), hashlib.sha256(raw).hexdigest())
    return found


def _load_again(staged: Path, tokenizer: Any, saved: Weights, dtype: str) -> Any:
    """Load the saved folder as anyone would; return it computing in float32.

    Raises:
        ModelError: a weight, the dtype or the tokenizer is not what was saved.
    """
    import torch

    from guardlearn.generators.transformers import load_tokenizer

    gc.collect()  # PEFT's layers point at each other: the model before this one must be gone
    try:
        network = load_model(staged, "auto")
    except ModelError as error:
        raise ModelError(f"the merged model cannot be loaded again: {error}") from error
    found = _weights(network, getattr(torch, dtype))
    if network.dtype is not getattr(torch, dtype) or found != saved:
        differ = sorted(name for name in found.keys() | saved.keys() if found.get(name) != saved.get(name))
        raise ModelError(
            f"the merged model was damaged while it was saved: loaded again it is {network.dtype}, and "
            f"{len(differ)} of {len(saved)} tensors differ, {differ[:1]} first; try again on a sound disk"
        )
    if template_digest(load_tokenizer(staged), Renderer()) != template_digest(tokenizer, Renderer()):
        raise ModelError(f"the tokenizer of {staged.name} is another one after saving; it cannot be merged by itself")
    return network.float()
