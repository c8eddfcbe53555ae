"""What an ablation compares under which conditions: the table [ablation] of guardlearn.toml.

What answers and how it samples is said in [loop], what all arms share in training in [training].
"""

from __future__ import annotations

import math

import msgspec

from guardlearn.errors import UsageError
from guardlearn.jobs import TrainingConfig
from guardlearn.loop.config import LoopConfig
from guardlearn.loop.config import read_settings as read_loop
from guardlearn.settings import Settings

__all__ = ["AblationConfig", "AblationSettings", "read_settings"]


class AblationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Table [ablation]: how often and for how long each arm trains, and how it is measured."""

    folder: str = "ablation"
    """Gets a folder an axis."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training; each arm trains once a seed."""
    samples: int = 1
    """Chains a specification."""
    r_max: int | None = None
    """Attempts of a chain in the measurement; None: 1, and 4 where ways of asking a retry are compared."""
    minutes: float | None = None
    """Wall time of each training, its start included; None: what the reference takes for the steps of [training]."""
    calibration_steps: int = 8
    """Steps, a stage, of the short training that tells what an arm's step costs."""
    first_stage: float = 0.7
    """Share of the time for steps that the first of two stages gets; methods of one stage take all of it."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds of [ablation] are {list(self.seeds)}; give at least one, each once")
        for name, bound in {"samples": 1, "calibration_steps": 3}.items():
            if getattr(self, name) < bound:
                raise UsageError(f"{name} of [ablation] is {getattr(self, name)}; it must be at least {bound}")
        if self.r_max is not None and self.r_max < 1:
            raise UsageError(f"r_max of [ablation] is {self.r_max}; it must be at least 1")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UsageError(f"minutes of [ablation] is {self.minutes}; it must be above 0")
        if not 0 < self.first_stage < 1:
            raise UsageError(f"first_stage of [ablation] is {self.first_stage}; it must lie between 0 and 1")


class AblationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a settings file says about an ablation."""

    ablation: AblationConfig
    loop: LoopConfig
    training: TrainingConfig


def read_settings(settings: Settings) -> AblationSettings:
    """Return the three tables; files and folders they name are relative to the settings file.

    Raises:
        DataError: a key is unknown or of a wrong type.
        UsageError: a value is outside its range.
    """
    found, ablation = read_loop(settings), settings.table("ablation", AblationConfig)
    placed = msgspec.structs.replace(ablation, folder=str(settings.folder / ablation.folder))
    return AblationSettings(ablation=placed, loop=found.loop, training=found.training)
