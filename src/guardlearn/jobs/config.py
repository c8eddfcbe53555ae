"""How a job trains: the settings that job.toml holds, resolved."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from guardlearn.errors import UsageError
from guardlearn.prompts import PromptConfig
from guardlearn.types import ArtifactStatus, View

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
    """Exactly this many steps a stage, whatever the epochs say; None: by epochs."""
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
    """What is learned from: "sft" imitates accepted artifacts; "dpo" prefers them to the rejected attempts of their
    chains; "kto" takes each judged attempt by its verdict; "sft+kto" and "sft+dpo" are two stages of one job."""
    beta: float = 0.1
    """kto and dpo: how fast a change against the reference counts as enough; greater stays nearer to the reference."""
    sft_term: float = 1.0
    """dpo: weight of the accepted artifact's mean loss a token beside the preference loss, without which its
    probability may fall together with the rejected one's (Pang et al. 2024); 0: none."""
    second_learning_rate: float = 5e-5
    """Peak of a second stage."""
    second_epochs: float = 1.0
    """Passes of a second stage."""
    micro_batch_size: int | None = None
    """Rows that go through the model at once; None: a whole batch. It decides memory and never the result."""
    eval_steps: int | None = None
    """Steps between two looks at the validation loss; None: a tenth of the steps, where `early_stopping` or `keep`
    asks for looks."""
    early_stopping: int = 0
    """Looks in a row without a better validation loss after which a stage ends; 0: it never ends early."""
    keep: str = "last"
    """"last": the weights after the last step; "best": those with the least validation loss."""
    backend: str = "auto"
    """"trl", "unsloth" (needs CUDA), or "auto": unsloth where it can run, else trl."""

    def __post_init__(self) -> None:
        positive = {"max_length", "epochs", "batch_size", "learning_rate", "lora_r", "lora_alpha"}
        positive |= {"beta", "second_learning_rate", "second_epochs"}
        for field in sorted(positive | {"max_steps", "save_steps", "micro_batch_size", "eval_steps"}):
            value = getattr(self, field)
            if (value is None and field in positive) or (value is not None and not value > 0):
                raise UsageError(f"{field} is {value!r}; it must be above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise UsageError(f"warmup_ratio is {self.warmup_ratio!r}; it must lie in [0, 1)")
        for field in ("sft_term", "early_stopping"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UsageError(f"{field} is {getattr(self, field)!r}; it must be 0 or more")
        choices: dict[str, tuple[str, ...]] = {
            "method": ("sft", "kto", "dpo", "sft+kto", "sft+dpo"),
            "keep": ("last", "best"),
            "backend": ("auto", "trl", "unsloth"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise UsageError(f"{field} {getattr(self, field)!r} is unknown; choose {' or '.join(allowed)}")
        if "kto" in self.methods and self.batch_size < 2:
            raise UsageError(
                f"batch_size is {self.batch_size}; {self.method} compares the rows of a batch with each other, so it "
                "must be at least 2"
            )
        PromptConfig(retry=self.retry, layout=self.layout)  # refuses what it does not know
        if Path(self.base_model).is_absolute():
            raise UsageError(f"base_model {self.base_model!r} is a path; give a name, a job folder holds no path")

    @property
    def methods(self) -> list[str]:
        """The method of each stage, in order."""
        return self.method.split("+")

    @property
    def of_attempts(self) -> bool:
        """Whether rows are made of rejected attempts too."""
        return self.method != "sft"

    @property
    def extraction(self) -> dict[str, Any]:
        """What `extract_traces` must be asked for, beside Φ and sides: its keyword arguments."""
        if not self.of_attempts:
            return {}
        both = {"verdicts": (ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED)} if "kto" in self.methods else {}
        return {"attempts": True, **both}
