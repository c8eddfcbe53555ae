"""The one call: refuse what cannot be exported, write beside the output, load again, compare, move into place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn import adapters
from guardlearn.digests import digest_file
from guardlearn.errors import UsageError, missing_library
from guardlearn.exporting import ollama, peft
from guardlearn.exporting.checking import STEPS_A_PROMPT, check_export
from guardlearn.exporting.merged import export_merged
from guardlearn.exporting.report import FORMS, ExportReport
from guardlearn.merging.agreement import PROBES, Prompt
from guardlearn.merging.loading import Steps, quiet
from guardlearn.merging.refusals import base_digest, check_template, read_adapter, refuse_quantised
from guardlearn.models import resolve_model
from guardlearn.training.saving import ADAPTER_CONFIG, MANIFEST, placed, versions
from guardlearn.types import OnProgress

__all__ = ["export_adapter"]


def export_adapter(
    adapter: str | Path,
    to: str,
    output: str | Path,
    *,
    model: str | Path = "demo",
    base_name: str | None = None,
    dtype: str | None = None,
    with_base: bool = False,
    prompts: Sequence[Prompt] | None = None,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Export an adapter to the form another program loads, load that again and compare; all or nothing.

    Args:
        adapter: folder of a LoRA adapter.
        to: "peft": a folder for vLLM and PEFT; "merged": a model folder, see `merge_adapter`; "ollama": a Modelfile
            and the adapter as GGUF.
        output: folder to appear; must not exist or be empty.
        model: the base: `demo`, a folder, or a hub name.
        base_name: what a PEFT configuration or FROM calls the base; None: the hub's name, else its folder here.
        dtype: of a merged model; None: bfloat16.
        with_base: copy the base into a PEFT folder, so that `transformers serve` loads both by the folder's path.
        prompts: texts or chats to compare on; None: the twenty `PROBES`.
        on_progress: called with (steps done, steps, note).

    Raises:
        UsageError: another form, or an option that it does not take.
        ModelError: a base or an adapter that does not fit or cannot be written so, an output that is there already, a
            disk that is full, or an export that is not base + adapter. Nothing is then at `output`.
        BackendUnavailable: a library is missing.
    """
    _check_options(to, base_name, dtype, with_base)
    folder = Path(adapter)
    if to == "merged":
        return export_merged(folder, Path(output), model, dtype or "bfloat16", prompts, on_progress)
    _check_libraries(to)
    base = resolve_model(str(model))
    manifest = read_adapter(folder)
    if with_base:
        refuse_quantised(base)  # whoever loads the folder would find another base than was compared
    name = base_name or (str(model) if _is_hub_name(str(model)) else str(base))
    probes = PROBES if prompts is None else prompts
    steps = Steps(on_progress, 3 + STEPS_A_PROMPT * len(probes))
    with placed(Path(output)) as staged, quiet():
        digest = steps.done("base read", base_digest(base, folder, manifest))
        tokenizer = _tokenizer(base)
        check_template(tokenizer, base, manifest)
        if to == "peft":
            peft.write_peft(base, folder, tokenizer, name, staged, with_base=with_base)
            notes = peft.vllm_notes(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")))
        else:
            notes = ollama.write_ollama(base, folder, tokenizer, name, staged)
        agreement = check_export(
            base, folder, tokenizer, probes, lambda: _load_again(to, base, folder, tokenizer, staged, with_base), steps
        )
        report = ExportReport(
            to=to,
            base_model=name,
            base_model_digest=digest,
            adapter_digest=adapters.adapter_digest(folder),
            model_digest="",
            files={path.name: digest_file(path) for path in sorted(staged.iterdir())},
            agreement=agreement,
            notes=notes,
        )
        _write_account(folder, staged, report)
    return report


def _check_options(to: str, base_name: str | None, dtype: str | None, with_base: bool) -> None:
    if to not in FORMS:
        raise UsageError(f"--to is {to!r}; allowed: {', '.join(FORMS)}")
    if dtype is not None and to != "merged":
        raise UsageError(f"--dtype is {dtype!r}, and --to {to} leaves the weights as they are; leave it out")
    if base_name is not None and to == "merged":
        raise UsageError(f"--base-name is {base_name!r}, and a merged model has no base beside it; leave it out")
    if with_base and to != "peft":
        raise UsageError(f"--with-base is for --to peft, not {to}; leave it out")


def _check_libraries(to: str) -> None:
    try:
        import peft as _  # noqa: F401
        import transformers  # noqa: F401

        if to == "ollama":
            import gguf  # noqa: F401
    except ImportError as error:
        raise missing_library(error.name or "peft", "train", "exporting an adapter") from None


def _is_hub_name(model: str) -> bool:
    return model.count("/") == 1 and not model.startswith((".", "~", "/")) and not Path(model).is_dir()


def _tokenizer(base: Path) -> Any:
    from guardlearn.generators.transformers import load_tokenizer

    return load_tokenizer(base)


def _load_again(to: str, base: Path, adapter: Path, tokenizer: Any, staged: Path, with_base: bool) -> Any:
    if to == "peft":
        return peft.load_peft(base, tokenizer, staged, with_base=with_base)
    return ollama.load_ollama(base, adapter, staged)


def _write_account(adapter: Path, staged: Path, report: ExportReport) -> None:
    """Leave what the adapter learned from, how it was trained, and what was compared, beside the export."""
    exported = msgspec.to_builtins(report)
    del exported["base_model"], exported["merging"]  # the name may be a path here; the digest says which base it is
    made = versions("guardlearn", "torch", "transformers", "peft", *(["gguf"] if report.to == "ollama" else []))
    account = adapters.read_published(adapter) | {"exported": exported | {"versions": made}}
    account.setdefault("manifest", None)
    (staged / MANIFEST).write_text(json.dumps(account, indent=2, sort_keys=True) + "\n", encoding="utf-8")
