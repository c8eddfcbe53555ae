"""One way to train the rows of a job folder, in a process of its own: `training.py` starts it, a turn at a time.

    python benchmarks/training_arms.py ARM JOB MODEL FOLDER --rows 64 --turn 2
    python benchmarks/training_arms.py losses JOB MODEL ADAPTER...

Reads a line from stdin before every turn of steps and prints one JSON object after it, so that several ways can take
turns on one machine. The last object holds the peak of memory, the tokens and the share of the ceiling.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measuring

ROWS_A_STEP = 8
LEARNING_RATE = 2e-4
"""The guide's, for every arm: TRL's default is a tenth of it, and how fast a loss falls should not hang on that."""

Row = dict[str, Any]
OnStep = Callable[[], None]


def guide(model: Any, tokenizer: Any, rows: Sequence[Row], steps: int, folder: str, on_step: OnStep) -> Any:
    """Section 5 of the guide, with errata 31, 33, 35 and 37 mended and the rest as written.

    Loss over the whole text, two rows at once padded to the longer one, four times a step, in any order; 32 bit where
    the device is no GPU with bfloat16; logits for every token, as trainers computed them when it was written.
    """
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    texts = [tokenizer.apply_chat_template(_messages(row), tokenize=False) for row in rows]
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    config = SFTConfig(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=ROWS_A_STEP // 2,
        warmup_steps=5,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        fp16=False,
        bf16=bf16,
        logging_steps=1,
        optim="adamw_torch",
        weight_decay=0.01,
        lr_scheduler_type="linear",
        seed=42,
        output_dir=folder,
        save_strategy="steps",
        save_steps=50,
        dataset_text_field="text",
        max_length=4096,
        packing=False,
        gradient_checkpointing=False,
        loss_type="nll",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    return _trained(SFTTrainer, model, config, Dataset.from_dict({"text": texts}), tokenizer, on_step)


def trl_defaults(model: Any, tokenizer: Any, rows: Sequence[Row], steps: int, folder: str, on_step: OnStep) -> Any:
    """What SFTConfig() does with conversations of prompt and completion; only the learning rate is set.

    And 32 bit where the processor has no bfloat16: there its default takes some fifty times as long.
    """
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from guardlearn.training.model import autocast_dtype

    config = SFTConfig(
        output_dir=folder,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        bf16=None if autocast_dtype() == "bf16" else False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    columns = {"prompt": [_messages(row)[:-1] for row in rows], "completion": [_messages(row)[-1:] for row in rows]}
    return _trained(SFTTrainer, model, config, Dataset.from_dict(columns), tokenizer, on_step)


def ours(model: Any, tokenizer: Any, rows: Sequence[Row], steps: int, folder: str, on_step: OnStep) -> Any:
    """`train_on_traces`, as a training process calls it."""
    from guardlearn.training import train_on_traces

    return train_on_traces(
        model,
        tokenizer,
        rows,
        folder,
        max_steps=steps,
        batch_size=ROWS_A_STEP,
        learning_rate=LEARNING_RATE,
        on_step=lambda step: on_step(),
    )


def _messages(row: Row) -> list[dict[str, str]]:
    return [*row["prompt"], {"role": "assistant", "content": row["completion"]}]


def _trained(trainer: Any, model: Any, config: Any, data: Any, tokenizer: Any, on_step: OnStep) -> Any:
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            on_step()

    made = trainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Steps()])
    made.remove_callback(PrinterCallback)
    made.train()
    return made


# -- ours without one of its ingredients ------------------------------------------------------------------------------


@contextlib.contextmanager
def _put(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)  # a name that is gone must fail, not change nothing
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def without_grouping() -> Any:
    """Rows of any length share a batch."""
    from guardlearn.training import methods

    planned = methods.plan
    return _put(methods, "plan", lambda lengths, *args, **kwargs: planned([1] * len(lengths), *args, **kwargs))


def without_sharing() -> Any:
    """What a batch's rows begin with is computed for each of them."""
    from guardlearn.training import sharing

    return _put(sharing, "_LEAST_SAVED", float("inf"))


def without_slicing() -> Any:
    """The output head is computed for every token."""
    from guardlearn.training import objective

    return _put(objective, "_slices", lambda model: False)


def without_bf16() -> Any:
    """32-bit matrix products."""
    from guardlearn.training import trl

    return _put(trl, "autocast_dtype", lambda: "")


def without_eager() -> Any:
    """Torch's fused attention, whatever the length."""
    from guardlearn.training import trl

    return _put(trl, "_EAGER_TOKENS", 0)


def with_checkpointing() -> Any:
    """Activations are computed twice instead of kept."""
    from guardlearn.training import trl

    return _put(trl, "Options", functools.partial(trl.Options, gradient_checkpointing=True))


def with_small_batches() -> Any:
    """Two rows at once, four times a step."""
    from guardlearn.training import trl

    return _put(trl, "Options", functools.partial(trl.Options, micro_batch_size=2))


@contextlib.contextmanager
def with_one_thread() -> Iterator[None]:
    """One thread instead of one a core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


ARMS = {"guide": guide, "trl": trl_defaults, "ours": ours}
"""`unsloth` is ours with the model that Unsloth loads."""

INGREDIENTS: dict[str, Callable[[], Any]] = {
    "sharing": without_sharing,
    "grouping": without_grouping,
    "slicing": without_slicing,
    "bf16": without_bf16,
    "eager": without_eager,
    "no_checkpointing": with_checkpointing,
    "whole_batches": with_small_batches,
    "threads": with_one_thread,
    "environment": contextlib.nullcontext,  # training.py starts it without the settings of jobs/running.py
}
"""What is taken away from `ours`, by name."""


# -- the process ------------------------------------------------------------------------------------------------------


class Turns:
    """Waits for a line before each turn of steps, and reports after it; waiting is not counted."""

    def __init__(self, turn: int) -> None:
        self.turn, self.steps, self.seconds = turn, 0, 0.0

    def begin(self) -> None:
        """Wait for the first turn."""
        sys.stdin.readline()
        self._since = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """Count a step; at the end of a turn report and wait."""
        self.steps += 1
        if self.steps % self.turn == 0:
            wall, cpu = (now - then for now, then in zip(_clocks(), self._since, strict=True))
            self.seconds += wall
            say(seconds=round(wall, 4), cpu_seconds=round(cpu, 4), steps=self.turn)
            self.begin()


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def say(**fields: Any) -> None:
    print(json.dumps(fields), file=sys.__stdout__, flush=True)


def load(arm: str, model_path: str, spent: Spent | None = None) -> tuple[Any, Any]:
    """Return the model with fresh adapters, and its tokenizer; the same start for every arm."""
    spent = spent or Spent()
    with spent.on("imports"):
        from guardlearn.training import backends

        backend = backends.open_backend(backends.choose("unsloth" if arm == "unsloth" else "trl"))
        from guardlearn.training import trl  # noqa: F401
        from guardlearn.training.model import load_tokenizer
    with spent.on("tokenizer"):
        tokenizer = load_tokenizer(model_path, 4096)
    with spent.on("base"):
        model = backend.load_base(model_path, 4096, False)
    with spent.on("adapters"):
        return backend.add_adapters(model, 16, 16, 0), tokenizer


class Spent:
    """Wall seconds by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - began, 3)


def warm_up(model: Any, tokenizer: Any) -> None:
    """Pay for lazy initialisation before anything is timed; leaves no gradient."""
    import torch

    ids = torch.tensor([tokenizer("def f(x: int) -> int:\n    return x" * 4)["input_ids"]], device=model.device)
    model.train()
    model(input_ids=ids).logits.float().mean().backward()
    model.zero_grad(set_to_none=True)


def peak_mib(cuda: bool) -> float:
    if cuda:
        import torch

        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(measuring._status("VmHWM") / 2**20)


def losses(model_path: str, job: Path, adapters: Sequence[str]) -> dict[str, float]:
    """Return the mean loss a completion token on the validation rows, in 32 bit: of the base and of each adapter."""
    import torch
    from peft import PeftModel

    from guardlearn.training.objective import Sft
    from guardlearn.training.rows import tokenise

    model, tokenizer = load("ours", model_path)
    base = model.get_base_model().float()
    rows, objective = tokenise(_lines(job / "validation.jsonl"), tokenizer, None), Sft(tokenizer.pad_token_id)
    batch = {
        name: tensor.to(base.device)
        for name, tensor in objective.collate([row.columns(number) for number, row in enumerate(rows)]).items()
    }

    def mean(network: Any) -> float:
        network.eval()
        with torch.no_grad():
            return round((objective.total(network, batch, {}) / objective.weight(batch)).item(), 4)

    found = {"base": mean(model)}  # fresh adapters add nothing
    for folder in adapters:
        adapted = PeftModel.from_pretrained(model.unload(), folder)
        found[Path(folder).name] = mean(adapted)
        model = adapted
    return found


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", help=", ".join([*ARMS, "unsloth", *INGREDIENTS, "losses"]))
    parser.add_argument("job", type=Path)
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+", help="gets weights and the adapter; losses: the adapters")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--turn", type=int, default=2, help="steps a turn")
    arguments = parser.parse_args()
    if arguments.arm == "losses":
        say(**losses(arguments.model, arguments.job, arguments.folders))
        return
    rows = _lines(arguments.job / "train.jsonl")[: arguments.rows]
    with contextlib.redirect_stdout(sys.stderr):
        train(arguments.arm, rows, arguments.model, Path(arguments.folders[0]), arguments.turn)


def train(arm: str, rows: Sequence[Row], model_path: str, folder: Path, turn: int) -> None:
    """Train one arm on `rows`, once each, and report."""
    import torch

    from guardlearn.training.ceiling import Meter
    from guardlearn.training.rows import tokenise

    spent = Spent()
    model, tokenizer = load(arm, model_path, spent)
    with spent.on("tokenise"):
        tokens = tokenise(rows, tokenizer, None)
    sequences = [pair for row in tokens for pair in row.sequences]
    turns, cuda = Turns(turn), torch.cuda.is_available()
    with INGREDIENTS.get(arm, contextlib.nullcontext)():
        warm_up(model, tokenizer)

        def begin(*_: Any) -> None:  # a turn holds steps, not the making of a trainer
            first.remove()
            torch.cuda.reset_peak_memory_stats() if cuda else measuring._resident_reset()
            say(ready=arm)
            turns.begin()

        first = model.register_forward_pre_hook(begin)
        steps, weights = len(rows) // ROWS_A_STEP, str(folder / "weights")
        trainer = ARMS.get(arm, ours)(model, tokenizer, rows, steps, weights, turns.step)
        peak = peak_mib(cuda)
        precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32"
        meter = Meter(model, precision)
    speed = meter.count(sequences, turns.seconds)
    model.save_pretrained(str(folder / arm))
    say(
        precision=precision,
        peak_mib=peak,
        rows=len(rows),
        tokens=sum(length for length, _ in sequences),
        completion_tokens=sum(completion for _, completion in sequences),
        tokens_per_second=round(speed.tokens_per_second, 1),
        completion_tokens_per_second=round(speed.completion_tokens_per_second, 1),
        share_of_ceiling=round(speed.share_of_ceiling, 3),
        ceiling_gflops=round(meter.ceiling / 1e9),
        before=spent.seconds,
    )


if __name__ == "__main__":
    main()
