"""`guardlearn train`: from ℛ to an adapter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.cli.options import PromptsOption, read_prompts
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen

if TYPE_CHECKING:
    from guardlearn.jobs import TrainingConfig
    from guardlearn.pipeline import PipelineResult


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Gets job/ and adapter/.")],
    model: Annotated[str, typer.Option(help="demo, a model folder, or a hub name.")] = "demo",
    policy: PolicyOption = None,
    where: WhereOption = None,
    view: Annotated[str | None, typer.Option(help="both | first_attempt | repair; default: both.")] = None,
    prompts: PromptsOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="sft (default) | kto | dpo | sft+kto | sft+dpo; all but sft learn from rejected attempts too."
        ),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="auto (default) | trl | unsloth")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="Passes over the rows; default: 3.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many steps, whatever the epochs.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a step; default: 8.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Peak learning rate; default: 2e-4.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data order and LoRA's start; default: 0.")] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter of the training process.")] = None,
    log_to: Annotated[
        str | None, typer.Option("--log-to", help="tensorboard | trackio: curves there too, where it is installed.")
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Extract, train a LoRA adapter in its own process, publish it. The same command after a crash continues.

    What no option says, the table [training] of guardlearn.toml does.
    """
    from guardlearn.pipeline import train_from_repository

    config = configured(
        views=("first_attempt", "repair") if view == "both" else view and (view,),
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
            log_to=log_to,
            on_progress=on_progress,
        )
    if as_json:
        console.emit(result)
    else:
        tell(result)


def configured(**given: Any) -> TrainingConfig:
    """Return [training] of guardlearn.toml, with what was given on the command line in its place; None was not."""
    from guardlearn import settings
    from guardlearn.jobs import TrainingConfig

    table = settings.read().table("training", TrainingConfig)
    return dataclasses.replace(table, **{name: value for name, value in given.items() if value is not None})


def tell(result: PipelineResult) -> None:
    """Say what was trained on, for people."""
    counts = [[result.selected, result.traces, result.rows, result.validation_rows]]
    console.table(result.predicate, ["selected", "traces", "rows", "validation rows"], counts)
    console.say(f"dropped: {console.flat(result.dropped | result.dropped_rows)}")
    console.say(f"adapter: {result.adapter}")
