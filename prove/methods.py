"""SFT alone against SFT then KTO and SFT then DPO, an ablation of the demo with its real small model: 3 training seeds
each, the same wall time for every training, measured on the validation side (six families that the demo keeps there and
fourteen of its training families; held-out is not read). The default method is the one that this supports: SFT, unless
another is better by interval and adjusted p-value. It holds where no training lies more than 20 % from the median wall
time, and the same command run again trains nothing and says the same."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from ablation import Asked, compare

from guardlearn.jobs import TrainingConfig
from guardlearn.report.ablation import UNEVEN

ASKED = Asked(names=("sft", "sft+kto", "sft+dpo"), seeds=(0, 1, 2), steps=60, first_stage=0.6)


def run(work):
    result = compare(work, {"method": ASKED})
    found = result["ablations"]["method"]
    better = [each["arm"] for each in found["differences"] if better_than_reference(each)]
    default = TrainingConfig().method
    result |= {"better": better, "default": default}
    even = found["uneven"] is not None and found["uneven"] <= UNEVEN
    held = result["the_same_when_run_again"] and result["readings_of_held_out"] == 0
    return result, even and held and default in (better or ["sft"])


def better_than_reference(versus):
    """Whether interval and adjusted p-value both say so, as the table's own words do."""
    return versus["low"] > 0 and versus["adjusted_p_value"] < 0.05
