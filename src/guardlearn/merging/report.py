"""What a merge is judged by."""

from __future__ import annotations

from pathlib import Path

import msgspec

from guardlearn.errors import ModelError
from guardlearn.merging.agreement import Agreement

__all__ = ["DTYPES", "TOLERANCE", "MergeReport", "judge", "must_agree", "must_differ"]

DTYPES = ("bfloat16", "float16", "float32")
"""What a merged model can be saved in."""

TOLERANCE = 1e-3
"""Most that two ways of computing the same logits may differ in float32."""

_NEARER = 2.0  # times; below it, rounding has eaten the adapter
_MOST_DISAGREEMENTS = 0.01  # of the positions


class MergeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge left, and how near it is to base + adapter."""

    base_model: str
    """Name, as the adapter's manifest has it."""
    dtype: str
    parameters: int
    base_model_digest: str
    adapter_digest: str
    model_digest: str
    """Of the merged folder; a job that takes it as its base names it so."""
    merging_difference: float
    """Largest difference of a logit, merged against unmerged, both in float32; at most 1e-3."""
    rounding_difference: float
    """The same after rounding to `dtype`; in float32 there is none, and the figures are equal."""
    agreement: Agreement
    """Of the saved folder, loaded again and computing in float32; expected are the rounded weights' logits."""


def must_differ(adapter: Path, difference: float) -> None:
    """Refuse an adapter that moves no logit of the bare base by more than the tolerance."""
    if not difference > TOLERANCE:
        raise ModelError(
            f"the adapter in {adapter} changes nothing measurable: no logit of the bare base moves by more than "
            f"{difference:.2g}; train it longer, or name another"
        )


def must_agree(adapter: Path, difference: float) -> None:
    """Refuse a merge whose logits in float32 are not those of base + adapter."""
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the adapter in {adapter} cannot be merged: in float32 the merged model's logits are up to "
            f"{difference:.2g} away from base + adapter, allowed is {TOLERANCE:g} (an adapter on tied embeddings does "
            "that); serve base and adapter side by side"
        )


def judge(report: MergeReport) -> None:
    """Refuse a saved model that is not base + adapter.

    Raises:
        ModelError: saying in what it is another one, and which dtype would help.
    """
    found, wider = report.agreement, "float32" if report.dtype == "float16" else "float16 or float32"
    if not found.expected_difference <= TOLERANCE:
        raise ModelError(
            f"the merged model, loaded again, gives logits up to {found.expected_difference:.2g} away from those "
            f"before it was saved, with the same weights (allowed: {TOLERANCE:g}): its config.json leaves something out"
        )
    if not found.base_difference >= _NEARER * found.adapter_difference:
        raise ModelError(
            f"in {report.dtype} the merged model is up to {found.adapter_difference:.2g} away from base + adapter and "
            f"{found.base_difference:.2g} from the bare base: rounding eats the adapter; merge it in {wider}"
        )
    if found.disagreements > _MOST_DISAGREEMENTS * found.positions:
        raise ModelError(
            f"in {report.dtype} the merged model chooses another token at {found.disagreements} of {found.positions} "
            f"positions, against a preference larger than what rounding moved there; merge it in {wider}"
        )
    if report.dtype == "float32" and found.identical_continuations < found.prompts:
        raise ModelError(
            f"the merged model continues {found.prompts - found.identical_continuations} of {found.prompts} prompts "
            f"otherwise than base + adapter, with logits at most {found.adapter_difference:.2g} away: two tokens are "
            "exactly tied there; give other prompts"
        )
