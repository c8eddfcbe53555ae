"""The trl backend: SFTTrainer with our batches, our order and our loss, through its public extension points.

One trainer for every method: an `Objective` says what a batch loses. A step's batch is divided over the processes, and
each one's share goes through the model in micro batches; the gradient is that of the whole batch at once. Where memory
runs out, micro batches get smaller and the step is done again. Errata 31-38.

Both backends train here. Under unsloth SFTTrainer and SFTConfig are Unsloth's own: it swaps them for others, made from
TRL's source, as it is imported. What is overridden here stays overridden there, and three things are relied on:
- the collator is ours, so Unsloth packs nothing;
- the model gets no labels (`sharing.last_logits`), so Unsloth's forward returns real logits and keeps the mask of
  rows padded on the left;
- every setting is named below to which Unsloth's SFTConfig gives another default (tests/test_unsloth_sources.py).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from guardlearn.training import backends, processes
from guardlearn.training.memory import Room, parts
from guardlearn.training.model import autocast_dtype
from guardlearn.training.objective import Objective, Row, Sft

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
    """Recompute activations: slower, and less memory; switched on without being asked where one row is too much."""
    micro_batch_size: int | None = None
    """Most rows that go through the model at once, at least 1; None: as many as a batch has."""


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

    def __init__(
        self, *args: Any, batches: Sequence[list[int]], objective: Objective, room: Room, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches
        self.objective = objective
        self.room = room
        self.last_batch: tuple[torch.Tensor, int, list[int]] | None = None

    @property
    def micro_batch_size(self) -> int:
        """Most rows that go through the model at once, now."""
        return self.room.micro_batch_size

    @property
    def notes(self) -> list[str]:
        """What was changed because memory ran out, in words."""
        return self.room.notes

    def get_train_dataloader(self) -> DataLoader:
        """Return the plan's batches, in the plan's order; every process gets them whole and takes its share later."""
        loader = DataLoader(
            self.train_dataset, batch_sampler=PlannedBatches(self.batches), collate_fn=self.data_collator
        )
        device = self.accelerator.device
        return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch, computed at once, a scalar."""
        whole = self.objective.whole(model, inputs)
        loss = self.objective.total(model, inputs, whole) / self.objective.weight(inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Leave the gradients of a batch's loss in the model; return that loss, a scalar."""
        # past what several processes wrap it in, which waits for the others within a pass: one process may go through
        # the model more often than another, or, without a row, not at all
        model = self.model
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # optimisers without a schedule have two modes
            self.optimizer.train()
        start, stop = processes.share(len(inputs["rows"]))
        loss = self.room.within(
            lambda: self._backward(model, inputs, start, stop),
            max(1, stop - start),
            f"in step {self.state.global_step + 1}",
            undo=model.zero_grad,
        )
        loss = self._over_processes(model, loss)
        self.last_batch = (loss, self.objective.tokens(inputs), inputs["rows"].tolist())
        return loss

    def _backward(self, model: Any, inputs: dict[str, Any], start: int, stop: int) -> torch.Tensor:
        """Add up the gradients of some rows of a batch; return what they add to its loss."""
        objective, weight = self.objective, self.objective.weight(inputs)
        loss = torch.zeros((), device=self.accelerator.device)
        with self.compute_loss_context_manager():
            whole = objective.whole(model, inputs)
        for first, last in parts(start, stop, self.micro_batch_size):
            with self.compute_loss_context_manager():
                part = objective.total(model, objective.part(inputs, first, last), whole) / weight
            self.accelerator.backward(part)
            loss += part.detach()
        return loss

    def _over_processes(self, model: Any, loss: torch.Tensor) -> torch.Tensor:
        """Add up a step's loss and gradients over all processes."""
        if processes.count() == 1:
            return loss
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        flat = torch.cat([loss.reshape(1), *(grad.reshape(-1).float() for grad in grads)])
        flat = self.accelerator.reduce(flat, "sum")
        sums = flat[1:].split([weight.numel() for weight in weights])
        for weight, total in zip(weights, sums, strict=True):
            weight.grad = total.view_as(weight).to(weight.dtype)
        return flat[0]

    def total(self, inputs: dict[str, Any]) -> float:
        """Return the total of a batch as it stands, without dropout or gradients."""
        rows = len(inputs["rows"])

        def add_up() -> float:
            with torch.no_grad(), self.accelerator.autocast():
                whole = self.objective.whole(self.model, inputs)
                return sum(
                    self.objective.total(self.model, self.objective.part(inputs, first, last), whole).item()
                    for first, last in parts(0, rows, self.micro_batch_size)
                )

        return self.room.within(add_up, rows, "in validation", undo=lambda: None, gradients=False)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card into weights checkpoints."""


class _Recorder(TrainerCallback):
    """Hands each finished step on, and marks weights checkpoints that are whole."""

    def __init__(self, on_step: Callable[[StepRecord], None] | None) -> None:
        self.on_step = on_step
        self.trainer: WeightedTrainer | None = None
        self.since = self.rate = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer is not None and state.global_step:
            self.trainer.room.restore(_mark(args, state))

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
        processes.wait()  # each writes its own random state
        if self.trainer is not None and processes.is_main():
            mark = _mark(args, state)
            staged = mark.with_name(f"{mark.name}.new")
            staged.write_text(json.dumps(self.trainer.room.state()), encoding="utf-8")
            staged.replace(mark)


def _mark(args: Any, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE


def build(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    batches: Sequence[list[int]],
    folder: Path,
    options: Options,
    on_step: Callable[[StepRecord], None] | None = None,
    *,
    objective: Objective | None = None,
    on_note: Callable[[str], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> WeightedTrainer:
    """Return a trainer, ready to `train()` once the objective has begun.

    Args:
        model: base model with LoRA adapters.
        tokenizer: the base model's.
        rows: what `tokenise` returned, or the rows of another method.
        batches: every step's row numbers, what `plan` returned.
        folder: gets weights checkpoints.
        options: how to optimise.
        on_step: called after every step, on every process.
        objective: the method; None: `Sft`.
        on_note: called with a sentence each time that less goes through the model at once, because memory ran out.
        callbacks: more of them; they run after ours.
    """
    objective = objective or Sft(tokenizer.pad_token_id)
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
    largest = max(len(batch) for batch in batches)
    recorder = _Recorder(on_step)
    trainer = WeightedTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([row.columns(number) for number, row in enumerate(rows)]),
        data_collator=objective.collate,
        processing_class=tokenizer,
        callbacks=[recorder, *callbacks],
        batches=batches,
        objective=objective,
        room=Room(model, min(options.micro_batch_size or largest, largest), on_note),
    )
    recorder.trainer = trainer
    for chatty in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(chatty)
    return trainer


def _autocast(model: Any) -> str:
    """Return "bf16", "fp16" or "" for training `model` here; on a GPU as its 16-bit weights are, or none trains."""
    kept = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(model.get_input_embeddings().weight.dtype)
    return kept if kept and torch.cuda.is_available() else autocast_dtype()


def mean_loss(trainer: WeightedTrainer, rows: Sequence[Row], batch_size: int, first: int = 0) -> float:
    """Return the loss of all `rows` together, without dropout or gradients: for SFT the mean a completion token.

    With several processes each calls it, for they share the work.

    Args:
        trainer: what `build` returned.
        rows: of the trainer's objective.
        batch_size: rows a batch.
        first: number of the first of `rows` among all rows of the training.
    """
    objective, device = trainer.objective, trainer.accelerator.device
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    starts = range(0, len(order), batch_size)
    total = weight = 0.0
    trainer.model.eval()
    for start in starts[processes.number() :: processes.count()]:
        batch = objective.collate([rows[row].columns(first + row) for row in order[start : start + batch_size]])
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        total, weight = total + trainer.total(inputs), weight + objective.weight(inputs).item()
    if processes.count() > 1:
        sums = trainer.accelerator.reduce(torch.tensor([total, weight], dtype=torch.float64, device=device), "sum")
        total, weight = sums.tolist()
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
