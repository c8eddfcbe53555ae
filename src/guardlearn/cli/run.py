"""`guardlearn run`: the guide's section 9, and its proof: ℛ → adapter → evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardlearn.cli import console, evaluate, train
from guardlearn.cli.options import RmaxOption
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen
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
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens a measured answer may take.")] = 512,
    as_json: console.Json = False,
) -> None:
    """Train on what a policy selects and, given held-out specifications and a guard, measure what it brought."""
    from guardlearn import report
    from guardlearn.dag import ArtifactDAG
    from guardlearn.jobs import TrainingConfig
    from guardlearn.pipeline import train_from_repository

    if (specs is None) != (guard is None):
        raise UsageError("--specs and --guard belong together: both to measure the adapter, or neither")
    predicate = chosen(policy, where)
    with ArtifactDAG.load(db, read_only=True) as dag, console.progress("train") as on_progress:
        config = TrainingConfig(max_steps=max_steps)
        result = train_from_repository(dag, model, output, predicate=predicate, config=config, on_progress=on_progress)
    evidence = None
    if specs is not None and guard is not None:
        sampling = {"max_new_tokens": max_new_tokens}
        evidence = evaluate.measure(specs, guard, output, model, output / "adapter", rmax, 1, db, sampling)
    if as_json:
        console.emit({"training": result, "evidence": evidence})
        return
    train.tell(result)
    if evidence is not None:
        report.terminal(evidence)
