"""What an export left, and how near it is to base + adapter."""

from __future__ import annotations

import msgspec

from guardlearn.merging import MergeReport
from guardlearn.merging.agreement import Agreement

__all__ = ["FORMS", "ExportReport"]

FORMS = ("peft", "merged", "ollama")
"""What an adapter can be exported to."""


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """An export that was loaded again from the disk and compared with base + adapter."""

    to: str
    """peft | merged | ollama."""
    base_model: str
    """Name of the base in the export; for a merged model, as the adapter's manifest has it."""
    base_model_digest: str
    adapter_digest: str
    """Of the adapter that was exported."""
    model_digest: str
    """Of a merged model's folder; "" where there is none."""
    files: dict[str, str]
    """SHA-256 by name, `guardlearn.json` apart."""
    agreement: Agreement
    """Computing in float32; expected are base + adapter's logits, for a merged model the rounded weights'."""
    merging: MergeReport | None = None
    """For a merged model: how it was rounded."""
    notes: list[str] = []
    """What programs that load it must be told, or cannot take; in words."""
