"""The trl backend: SFTTrainer with our batches, our order and our loss, through its public extension points.

The loss of a batch is sum_r w_r sum_t nll / sum_r w_r T_r over its rows r and their T_r completion tokens, so a row
counts by its weight and its length. The output head is computed on completion columns only: with a small model and a
large vocabulary it costs as much as the layers below. Errata 31-38.

Both backends train here. Under unsloth SFTTrainer and SFTConfig are Unsloth's own: it swaps them for others, made from
TRL's source, as it is imported. What is overridden here stays overridden there, and three things are relied on:
- the collator is ours, so Unsloth packs nothing;
- the model gets no labels, so Unsloth's forward returns real logits and keeps the mask of rows padded on the left;
- every setting is named below to which Unsloth's SFTConfig gives another default (tests/test_unsloth_sources.py).
"""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from guardlearn.training import backends
from guardlearn.training.model import autocast_dtype
from guardlearn.training.rows import IGNORED, Collator, TokenRow

__all__ = ["Options", "StepRecord", "WeightedTrainer", "build", "forget_checkpoints", "last_checkpoint", "mean_loss"]

_COMPLETE = "complete"
_EAGER_TOKENS = 256  # up to here plain attention beats the CPU's fused kernel; beyond, its B·heads·L² memory hurts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to optimise."""

    learning_rate: float
    warmup_ratio: float
    seed: int
    save_steps: int
    """Steps between weights checkpoints."""
    gradient_checkpointing: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimiser step."""

    step: int
    """1-based."""
    loss: float
    learning_rate: float
    tokens: int
    """Prompt and completion tokens, padding apart."""
    rows: list[int]
    """Row numbers."""
    seconds: float


class PlannedBatches(Sampler[list[int]]):
    """A batch sampler that follows a plan made beforehand."""

    def __init__(self, batches: Sequence[list[int]]) -> None:
        self.batches = batches
        self.batch_size = max(len(batch) for batch in batches)
        self.drop_last = False

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class WeightedTrainer(SFTTrainer):
    """SFTTrainer over planned batches of weighted rows."""

    def __init__(self, *args: Any, batches: Sequence[list[int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches
        self.last_batch: tuple[torch.Tensor, int, list[int]] | None = None
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self._sliced = "logits_to_keep" in inspect.signature(base.forward).parameters

    def get_train_dataloader(self) -> DataLoader:
        """Return the plan's batches, in the plan's order."""
        loader = DataLoader(
            self.train_dataset, batch_sampler=PlannedBatches(self.batches), collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the batch's weighted mean loss a token, a scalar."""
        total, weight = self.weighted_sums(model, inputs)
        loss = total / weight
        self.last_batch = (loss.detach(), int(inputs["attention_mask"].sum()), inputs["rows"].tolist())
        return (loss, {"loss": loss}) if return_outputs else loss

    def weighted_sums(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sum_r w_r sum_t nll and sum_r w_r T_r of a batch, both scalars."""
        labels = inputs["labels"]
        carries = labels != IGNORED
        first = int(carries.any(dim=0).nonzero()[0])
        keep = labels.shape[1] - first + 1  # the token before the first label predicts it
        outputs = model(
            **{name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")},
            **({"logits_to_keep": keep} if self._sliced else {}),
            use_cache=False,
        )
        carries = carries[:, -keep + 1 :]
        logits = outputs.logits[:, -keep:-1][carries].float()
        nll = torch.nn.functional.cross_entropy(logits, labels[:, -keep + 1 :][carries], reduction="none")
        weights = inputs["weights"][:, None].expand_as(carries)[carries]
        return (weights * nll).sum(), weights.sum()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card into weights checkpoints."""


class _Recorder(TrainerCallback):
    """Hands each finished step on, and marks weights checkpoints that are whole."""

    def __init__(self, on_step: Callable[[StepRecord], None] | None) -> None:
        self.on_step = on_step
        self.trainer: WeightedTrainer | None = None
        self.since = self.rate = 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.since = time.perf_counter()
        self.rate = kwargs["optimizer"].param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.on_step is None or self.trainer is None or self.trainer.last_batch is None:
            return
        loss, tokens, rows = self.trainer.last_batch
        seconds = time.perf_counter() - self.since
        record = StepRecord(
            step=state.global_step, loss=loss.item(), learning_rate=self.rate, tokens=tokens, rows=rows, seconds=seconds
        )
        self.on_step(record)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()


def build(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TokenRow],
    batches: Sequence[list[int]],
    folder: Path,
    options: Options,
    on_step: Callable[[StepRecord], None] | None = None,
) -> WeightedTrainer:
    """Return a trainer, ready to `train()`.

    Args:
        model: base model with LoRA adapters.
        tokenizer: the base model's.
        rows: what `tokenise` returned.
        batches: every step's row numbers, what `plan` returned.
        folder: gets weights checkpoints.
        options: how to optimise.
        on_step: called after every step.
    """
    cuda, dtype, unsloth = torch.cuda.is_available(), _autocast(model), backends.name_of(model) == "unsloth"
    if not cuda and max(len(row) for row in rows) <= _EAGER_TOKENS:
        model.get_base_model().set_attn_implementation("eager")
    config = SFTConfig(
        output_dir=str(folder),
        max_steps=len(batches),
        per_device_train_batch_size=max(len(batch) for batch in batches),
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        # of less than one step the library would make one, at learning rate 0: one step would train nothing
        warmup_steps=options.warmup_ratio if options.warmup_ratio * len(batches) >= 1 else 0,
        weight_decay=0.01,
        gradient_accumulation_steps=1,
        optim="adamw_8bit" if unsloth else "adamw_torch",  # Unsloth loads no model without bitsandbytes
        bf16=dtype == "bf16",
        fp16=dtype == "fp16",
        use_cpu=not cuda,
        # Unsloth armed its own with the adapters; to switch TRL's on would put that in its place
        gradient_checkpointing=options.gradient_checkpointing and not unsloth,
        max_length=None,  # TRL's default would cut completions
        padding_free=False,
        loss_type="nll",  # the loss is ours; TRL's default would patch the model for another
        auto_find_batch_size=False,
        torch_empty_cache_steps=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=cuda,
        logging_strategy="no",
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        seed=options.seed,
        report_to="none",
        disable_tqdm=True,
    )
    recorder = _Recorder(on_step)
    trainer = WeightedTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(_columns(rows)),
        data_collator=Collator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=[recorder],
        batches=batches,
    )
    recorder.trainer = trainer
    for chatty in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(chatty)
    return trainer


def _autocast(model: Any) -> str:
    """Return "bf16", "fp16" or "" for training `model` here; on a GPU as its 16-bit weights are, or none trains."""
    kept = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(model.get_input_embeddings().weight.dtype)
    return kept if kept and torch.cuda.is_available() else autocast_dtype()


def mean_loss(trainer: WeightedTrainer, rows: Sequence[TokenRow], batch_size: int) -> float:
    """Return the weighted mean loss a completion token over `rows`, without dropout or gradients."""
    columns, order = _columns(rows), sorted(range(len(rows)), key=lambda row: len(rows[row]))
    total = weight = 0.0
    device = trainer.accelerator.device
    trainer.model.eval()
    for start in range(0, len(order), batch_size):
        batch = trainer.data_collator([columns[row] for row in order[start : start + batch_size]])
        with torch.no_grad(), trainer.accelerator.autocast():
            sums = trainer.weighted_sums(trainer.model, {name: tensor.to(device) for name, tensor in batch.items()})
        total, weight = total + sums[0].item(), weight + sums[1].item()
    return total / weight


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole weights checkpoint, or None; what a kill left half-written is removed."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / _COMPLETE).is_file():
            whole[int(path.name.removeprefix("checkpoint-"))] = path
        else:
            shutil.rmtree(path)
    return whole[max(whole)] if whole else None


def forget_checkpoints(folder: Path) -> None:
    """Remove the weights checkpoints in `folder`."""
    for path in folder.glob("checkpoint-*"):
        if path.name.removeprefix("checkpoint-").isdecimal():
            shutil.rmtree(path)


def _columns(rows: Sequence[TokenRow]) -> list[dict[str, Any]]:
    return [
        {"prompt": row.prompt, "completion": row.completion, "weight": row.weight, "row": number}
        for number, row in enumerate(rows)
    ]
