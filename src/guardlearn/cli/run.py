"""`guardlearn run`: the guide's section 9, and its proof: ℛ → adapter → evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardlearn.cli import console, evaluate, train
from guardlearn.cli.options import RmaxOption
from guardlearn.cli.selection import PolicyOption, WhereOption
from guardlearn.errors import UsageError


def command(
    db: Annotated[str, typer.Argument(help="The repository.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Gets job/, adapter/ and, with --specs, the evidence.")
    ],
    model: Annotated[str, typer.Option(help="demo, a model folder, or a hub name.")] = "demo",
    policy: PolicyOption = None,
    where: WhereOption = None,
    specs: Annotated[
        Path | None, typer.Option("--specs", help="Held-out specifications to measure base and adapter on.")
    ] = None,
    guard: Annotated[str | None, typer.Option("--guard", help="The guard that judges them.")] = None,
    rmax: RmaxOption = 4,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: 3 epochs.")] = None,
    as_json: console.Json = False,
) -> None:
    """Train on what a policy selects and, given held-out specifications and a guard, measure what it brought."""
    if (specs is None) != (guard is None):
        raise UsageError("--specs and --guard belong together: both to measure the adapter, or neither")
    train.command(db, output, model, policy, where, max_steps=max_steps, as_json=as_json and specs is None)
    if specs is not None and guard is not None:
        evaluate.command(specs, guard, output, model, adapter=output / "adapter", rmax=rmax, db=db, as_json=as_json)
