"""`guardlearn run`: the guide's section 9, and its proof: ℛ → adapter → evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn.cli import console, evaluate, train
from guardlearn.cli.opening import opened
from guardlearn.cli.options import PromptsOption, RmaxOption, read_prompts
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen
from guardlearn.errors import UsageError

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.pipeline import PipelineResult
    from guardlearn.report import Story


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
    prompts: PromptsOption = None,
    rmax: RmaxOption = 4,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: 3 epochs.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens a measured answer may take.")] = 512,
    as_json: console.Json = False,
) -> None:
    """Train on what a policy selects and, given held-out specifications and a guard, measure what it brought."""
    from guardlearn import report
    from guardlearn.pipeline import train_from_repository

    if (specs is None) != (guard is None):
        raise UsageError("--specs and --guard belong together: both to measure the adapter, or neither")
    predicate, asked = chosen(policy, where), read_prompts(prompts)
    config = train.configured(max_steps=max_steps)
    with opened(db) as dag:
        with console.progress("train") as progress:
            result = train_from_repository(
                dag, model, output, predicate=predicate, config=config, prompts=asked, on_progress=progress
            )
        story = _story(dag, output, model, result) if specs else None
    evidence = None
    if specs is not None and guard is not None:
        sampling = {"max_new_tokens": max_new_tokens}
        evidence = evaluate.measure(specs, guard, output, model, output / "adapter", rmax, 1, db, sampling, story)
    if as_json:
        console.emit({"training": result, "evidence": evidence})
        return
    train.tell(result)
    if evidence is not None:
        report.terminal(evidence)
        console.say(f"report: {output / report.PAGE}")


def _story(dag: ArtifactDAG, output: Path, model: str, result: PipelineResult) -> Story:
    from guardlearn import report
    from guardlearn.models import resolve_model

    with console.progress("chains") as on_progress:
        return report.story(dag, output / "job", resolve_model(model), dropped=result.dropped, on_progress=on_progress)
