"""What a loop is to do: the tables [loop], [training] and [promotion] of guardlearn.toml."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec

from guardlearn.errors import UsageError
from guardlearn.gate import GateConfig
from guardlearn.jobs import TrainingConfig
from guardlearn.settings import Settings
from guardlearn.weighting import Weighting

__all__ = ["LoopConfig", "LoopSettings", "read_settings"]


class LoopConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Table [loop]: what a round learns from, and how its candidate is measured."""

    learner: str = "main"
    """Name that rounds, training checkpoints and promotions are kept under."""
    model: str = "demo"
    """Base model: `demo`, a folder, or a hub name."""
    generator: str = "transformers"
    """What measures: "transformers", or "replay" with `model` a file of answers."""
    base: str = ""
    """Base model that is trained; "" takes `model`."""
    guard: str = ""
    """Name of the guard that judges."""
    specs: tuple[str, ...] = ()
    """Specification files; those on the held-out side of ℛ measure, the others' prompts show forgetting."""
    folder: str = "rounds"
    """Gets a folder a round, and report.html."""
    select: str = "refinement"
    """Φ: a policy of Definition 22 or a predicate's text."""
    min_new_traces: int = 10
    """A round waits for so many traces that no round has had."""
    mode: Literal["restart", "continue"] = "restart"
    """Train the base on every selected trace, or the live adapter on those that it has not learned and some it has."""
    weighting: Weighting = Weighting()
    """Caps and weights of traces."""
    r_max: int = 4
    """Attempts of a chain in the measurement, the first included."""
    samples: int = 1
    """Chains a specification."""
    temperature: float = 0.7
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    """An answer ends right after any of these."""
    seed: int = 0
    """Of sampling and training; each round adds its number."""
    regressions: tuple[str, ...] = ()
    """Specification files of action pairs that are not trained: nothing may be lost there."""
    hidden_guards: tuple[str, ...] = ()
    """Guards whose feedback is never shown; they reveal a candidate that games the visible one."""
    general: str = ""
    """General texts, JSON Lines of {"text", "group"?}; "" takes those that come with guardlearn."""
    patience: int = 2
    """Refused rounds in a row after which the stop rule looks whether rounds still help."""

    def __post_init__(self) -> None:
        least = {"min_new_traces": 1, "r_max": 1, "samples": 1, "max_new_tokens": 1, "patience": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"{name} of [loop] is {getattr(self, name)}; it must be at least {bound}")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature of [loop] is {self.temperature}; it must be 0 or more")
        if not self.learner.strip() or "/" in self.learner:
            raise UsageError(f"learner of [loop] is {self.learner!r}; give a name without a slash")

    @property
    def base_model(self) -> str:
        """The model that is trained, as it was named."""
        return self.base or self.model


class LoopSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a settings file says about rounds."""

    loop: LoopConfig
    training: TrainingConfig
    promotion: GateConfig


def read_settings(settings: Settings) -> LoopSettings:
    """Return the three tables; files they name are relative to the settings file.

    Raises:
        DataError: a key is unknown or of a wrong type.
        UsageError: a value is outside its range.
    """
    loop = settings.table("loop", LoopConfig)
    here = settings.folder
    placed = {name: tuple(str(here / each) for each in getattr(loop, name)) for name in ("specs", "regressions")}
    return LoopSettings(
        loop=msgspec.structs.replace(
            loop,
            **placed,
            folder=str(here / loop.folder),
            general=str(here / loop.general) if loop.general else "",
            model=_placed(here, loop.model),
            base=_placed(here, loop.base),
        ),
        training=settings.table("training", TrainingConfig),
        promotion=settings.table("promotion", GateConfig),
    )


def _placed(here: Path, name: str) -> str:
    """Return a model's name; a folder or file beside the settings file becomes a path from here."""
    return str(here / name) if name and here != Path() and (here / name).exists() else name
