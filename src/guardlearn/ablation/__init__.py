"""Ablations: what a change in training brings, measured at equal wall time on the validation side.

An axis (`AXES`) has arms; each is trained with several seeds for the same time and held against the reference, paired
by specification. The held-out side is never read, so an ablation may decide how the loop trains, and the gate still
decides on specifications that nobody has looked at.
"""

from guardlearn.ablation.axes import AXES, Arm, arms_of
from guardlearn.ablation.config import AblationConfig, AblationSettings, read_settings
from guardlearn.ablation.planning import Planned, fewest_groups, plan_ablation, subset
from guardlearn.ablation.running import ablate
from guardlearn.ablation.timing import Cost, cost_of, steps_within

__all__ = [
    "AXES",
    "AblationConfig",
    "AblationSettings",
    "Arm",
    "Cost",
    "Planned",
    "ablate",
    "arms_of",
    "cost_of",
    "fewest_groups",
    "plan_ablation",
    "read_settings",
    "steps_within",
    "subset",
]
