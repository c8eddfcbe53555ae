"""A LoRA adapter merged into its base model for good, checked before it is called done.

W + scale · B A (Hu et al. 2021) is computed in float32 and rounded once. Three things may then part the saved model
from base + adapter. Each is measured by itself, in float32 arithmetic, along base + adapter's own greedy continuations
of twenty prompts:

    merging    merged against unmerged weights, both float32     logits within 1e-3
    rounding   the weights before and after rounding             bounded by what the adapter brings, see below
    reloading  the saved folder against what was to be saved     weights bit for bit, logits within 1e-3

How far rounding moves a logit depends on the dtype and the model, so no number of ours could bound it. What it may not
do is eat the adapter: the saved model must stay at least twice as near to base + adapter as to the bare base, and
choose another token only where the preference was smaller than what rounding moved there (`Agreement.disagreements`).
A base published in bfloat16 lies on its grid, and a change of less than half a step rounds back to the base's own
weight, so bfloat16 loses some of the adapter itself; float16's steps are eight times smaller.
"""

from guardlearn.merging.merge import merge_adapter
from guardlearn.merging.report import DTYPES, MergeReport

__all__ = ["DTYPES", "MergeReport", "merge_adapter"]
