"""How a job trains: the settings that job.toml holds, resolved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from guardlearn.errors import UsageError
from guardlearn.prompts import PromptConfig
from guardlearn.types import View

__all__ = ["TrainingConfig"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How to train; written resolved into job.toml."""

    base_model: str = ""
    """Name of the base model as the job shows it; "" takes the model folder's name. Never a path."""
    views: tuple[str, ...] = (View.FIRST_ATTEMPT.value, View.REPAIR.value)
    """What each trace becomes."""
    retry: Literal["feedback", "artifact"] = "feedback"
    """A repair prompt shows the feedback only, or the rejected artifact too; as the traces were collected."""
    layout: Literal["plain", "guide"] = "plain"
    """How a prompt is laid out, as `PromptConfig.layout`; as the traces were collected."""
    max_length: int = 1024
    """Most tokens of a row, prompt and completion; longer ones are dropped and counted."""
    epochs: float = 3.0
    """Passes over the rows; a part of a pass is a part of its batches."""
    max_steps: int | None = None
    """Exactly this many steps, whatever `epochs` says; None: by epochs."""
    batch_size: int = 8
    """Rows a step."""
    learning_rate: float = 2e-4
    """Peak; it falls linearly to 0."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    lora_r: int = 16
    """Rank; the adapters sit on every linear layer but the output head."""
    lora_alpha: int = 16
    """Scale: the update is multiplied by lora_alpha / lora_r."""
    seed: int = 0
    """Decides the order of the rows and the start of the adapters."""
    save_steps: int | None = None
    """Steps between weights checkpoints, from which a killed training resumes; None: a tenth of the steps."""
    gradient_checkpointing: bool = False
    """True trades about a third of the speed for memory; for long rows on a GPU. Unsloth always uses its own."""
    load_in_4bit: bool = False
    """True quantises the frozen base weights while training, for memory; needs CUDA and bitsandbytes, else refused."""
    method: str = "sft"
    """Supervised fine-tuning on accepted artifacts."""
    backend: str = "auto"
    """"trl", "unsloth" (needs CUDA), or "auto": unsloth where it can run, else trl."""

    def __post_init__(self) -> None:
        positive = {"max_length", "epochs", "batch_size", "learning_rate", "lora_r", "lora_alpha"}
        for field in sorted(positive | {"max_steps", "save_steps"}):
            value = getattr(self, field)
            if (value is None and field in positive) or (value is not None and not value > 0):
                raise UsageError(f"{field} is {value!r}; it must be above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise UsageError(f"warmup_ratio is {self.warmup_ratio!r}; it must lie in [0, 1)")
        choices: dict[str, tuple[str, ...]] = {
            "method": ("sft",),
            "backend": ("auto", "trl", "unsloth"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise UsageError(f"{field} {getattr(self, field)!r} is unknown; choose {' or '.join(allowed)}")
        PromptConfig(retry=self.retry, layout=self.layout)  # refuses what it does not know
        if Path(self.base_model).is_absolute():
            raise UsageError(f"base_model {self.base_model!r} is a path; give a name, a job folder holds no path")
