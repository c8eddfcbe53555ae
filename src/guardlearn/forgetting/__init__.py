"""What a candidate has moved away from: loss on general text, divergence on kept prompts; and whether it moved at all.

Both are measured against the bare base, whatever is live, so that rounds add up in plain sight. The third part of
forgetting, action pairs that were not trained, is an evaluation of its own (`loop/measuring.py`).
"""

from guardlearn.forgetting.differing import Change, compare_outputs
from guardlearn.forgetting.measuring import Divergence, Forgetting, TextLoss, measure_forgetting
from guardlearn.forgetting.scoring import Scorer, obstacle
from guardlearn.forgetting.texts import GeneralText, default_texts, read_texts

__all__ = [
    "Change",
    "Divergence",
    "Forgetting",
    "GeneralText",
    "Scorer",
    "TextLoss",
    "compare_outputs",
    "default_texts",
    "measure_forgetting",
    "obstacle",
    "read_texts",
]
