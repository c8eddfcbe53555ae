"""Base and adapter as one model folder, for whatever loads models and no adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guardlearn.digests import digest_file
from guardlearn.exporting.report import ExportReport
from guardlearn.merging import merge_adapter
from guardlearn.merging.agreement import Prompt
from guardlearn.training.saving import MANIFEST
from guardlearn.types import OnProgress

__all__ = ["export_merged"]


def export_merged(
    adapter: Path,
    output: Path,
    model: str | Path,
    dtype: str,
    prompts: Sequence[Prompt] | None,
    on_progress: OnProgress | None,
) -> ExportReport:
    """Merge, and say so in an export's words; see `merge_adapter` for what it raises."""
    found = merge_adapter(model, adapter, output, dtype=dtype, prompts=prompts, on_progress=on_progress)
    return ExportReport(
        to="merged",
        base_model=found.base_model,
        base_model_digest=found.base_model_digest,
        adapter_digest=found.adapter_digest,
        model_digest=found.model_digest,
        files={path.name: digest_file(path) for path in sorted(output.iterdir()) if path.name != MANIFEST},
        agreement=found.agreement,
        merging=found,
    )
