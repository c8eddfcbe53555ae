"""Whether what was exported, loaded again from the disk, is base + adapter and not the bare base.

The comparison is that of a merge (`merging.agreement`), in float32, where an export that changes no weight has nothing
to differ by: the logits agree within 1e-3 and every probe is continued alike.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guardlearn.errors import ModelError
from guardlearn.merging.agreement import Agreement, Prompt, compare, encode_prompts, largest_difference, logits
from guardlearn.merging.loading import Steps, load_with_adapter, measure_reference
from guardlearn.merging.report import TOLERANCE, must_differ

__all__ = ["STEPS_A_PROMPT", "check_export", "judge_export"]

STEPS_A_PROMPT = 5
"""Of progress, beside the two loads."""


def check_export(
    base: Path,
    adapter: Path,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    load_again: Callable[[], Any],
    steps: Steps,
) -> Agreement:
    """Compare an export with base + adapter on greedy answers to `prompts`; one model is in memory at a time.

    Args:
        base: the base's folder.
        adapter: the adapter that was exported.
        tokenizer: the base's.
        prompts: texts or chats.
        load_again: loads what was exported, computing in float32, in evaluation mode.
        steps: counts 2 and 5 a prompt.

    Raises:
        ModelError: the adapter moves nothing, or the export is not base + adapter.
    """
    asked = encode_prompts(tokenizer, prompts)
    with_adapter = steps.done("base + adapter loaded", load_with_adapter(base, adapter))
    network = with_adapter.get_base_model()
    reference = measure_reference(network, tokenizer, asked, steps)
    with with_adapter.disable_adapter():
        bare = list(steps.each("bare base", logits(network, reference.prompts, reference.continuations)))
    must_differ(adapter, largest_difference(bare, reference.logits))
    del network, with_adapter
    gc.collect()  # PEFT's layers point at each other
    again = steps.done("loaded again", load_again())
    found = compare(again, tokenizer, reference, bare, reference.logits, steps.each)
    judge_export(found)
    return found


def judge_export(found: Agreement) -> None:
    """Refuse an export that is not base + adapter.

    Raises:
        ModelError: saying in what it differs.
    """
    if not found.base_difference > TOLERANCE:
        raise ModelError(
            f"the export, loaded again, answers as the bare base does (logits within {found.base_difference:.2g}): it "
            "has lost the adapter; report this with the base's and the adapter's config.json"
        )
    if not found.adapter_difference <= TOLERANCE:
        raise ModelError(
            f"the export, loaded again, gives logits up to {found.adapter_difference:.2g} away from base + adapter "
            f"(allowed: {TOLERANCE:g}); try again on a sound disk, or export --to merged"
        )
    if found.identical_continuations < found.prompts:
        raise ModelError(
            f"the export continues {found.prompts - found.identical_continuations} of {found.prompts} prompts "
            f"otherwise than base + adapter, with logits at most {found.adapter_difference:.2g} away: two tokens are "
            "exactly tied there; give other prompts"
        )
