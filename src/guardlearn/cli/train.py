"""`guardlearn train`: from ℛ to an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.cli.options import PromptsOption, read_prompts
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen

if TYPE_CHECKING:
    from guardlearn.pipeline import PipelineResult


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Gets job/ and adapter/.")],
    model: Annotated[str, typer.Option(help="demo, a model folder, or a hub name.")] = "demo",
    policy: PolicyOption = None,
    where: WhereOption = None,
    view: Annotated[str, typer.Option(help="both | first_attempt | repair")] = "both",
    prompts: PromptsOption = None,
    method: Annotated[
        str, typer.Option(help="sft | kto | dpo | sft+kto | sft+dpo; all but sft learn from rejected attempts too.")
    ] = "sft",
    backend: Annotated[str, typer.Option(help="auto | trl | unsloth")] = "auto",
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the rows.")] = 3.0,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many steps, whatever the epochs.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 2e-4,
    seed: Annotated[int, typer.Option(help="Seed of data order and LoRA's start.")] = 0,
    python: Annotated[str | None, typer.Option(help="Interpreter of the training process.")] = None,
    as_json: console.Json = False,
) -> None:
    """Extract, train a LoRA adapter in its own process, publish it. The same command after a crash continues."""
    from guardlearn.jobs import TrainingConfig
    from guardlearn.pipeline import train_from_repository

    config = TrainingConfig(
        views=("first_attempt", "repair") if view == "both" else (view,),
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        method=method,
        backend=backend,
    )
    predicate, asked = chosen(policy, where), read_prompts(prompts)
    with opened(db) as dag, console.progress("train") as on_progress:
        result = train_from_repository(
            dag,
            model,
            output,
            predicate=predicate,
            config=config,
            prompts=asked,
            python=python,
            on_progress=on_progress,
        )
    if as_json:
        console.emit(result)
    else:
        tell(result)


def tell(result: PipelineResult) -> None:
    """Say what was trained on, for people."""
    counts = [[result.selected, result.traces, result.rows, result.validation_rows]]
    console.table(result.predicate, ["selected", "traces", "rows", "validation rows"], counts)
    console.say(f"dropped: {console.flat(result.dropped | result.dropped_rows)}")
    console.say(f"adapter: {result.adapter}")
