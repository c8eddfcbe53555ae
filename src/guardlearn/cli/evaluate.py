"""`guardlearn evaluate`: base and candidate on the same specifications, paired."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardlearn.cli import console
from guardlearn.cli.options import AdapterOption, GuardOption, ModelOption, RmaxOption, SeedOption

if TYPE_CHECKING:
    from guardlearn.evaluation import Evidence
    from guardlearn.report import Story


def command(
    specs: Annotated[Path, typer.Argument(help="Specifications, JSON Lines.")],
    guard: GuardOption,
    output: Annotated[Path, typer.Option("-o", "--output", help="Gets evidence.json, report.html and the attempts.")],
    model: ModelOption = "demo",
    adapter: AdapterOption = None,
    rmax: RmaxOption = 4,
    samples: Annotated[int, typer.Option(min=1, help="Independent chains per specification.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may take.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer right after this text (repeatable).")] = None,
    db: Annotated[
        str | None, typer.Option("--db", help="Record this reading of the specifications in a repository.")
    ] = None,
    seed: SeedOption = 0,
    as_json: console.Json = False,
) -> None:
    """Run Definition 7's loop for the base and, with --adapter, the candidate. Run again, it continues."""
    from guardlearn import report

    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "stop": tuple(stop or ()), "seed": seed}
    evidence = measure(specs, guard, output, model, adapter, rmax, samples, db, sampling)
    if as_json:
        console.emit(evidence)
    else:
        report.terminal(evidence)
        console.say(f"report: {output / report.PAGE}")


def measure(
    specs: Path,
    guard: str,
    output: Path,
    model: str,
    adapter: Path | None,
    rmax: int,
    samples: int,
    db: str | None,
    sampling: dict[str, Any],
    story: Story | None = None,
) -> Evidence:
    """Measure base and candidate and write evidence.json and report.html.

    Args:
        specs: file of the specifications.
        guard: name of the guard.
        output: gets evidence.json, report.html and the attempts.
        model: base model.
        adapter: the candidate's folder; None: the base alone.
        rmax: R_max.
        samples: chains per specification.
        db: repository that notes the reading; None: none does.
        sampling: as in `SamplingConfig`.
        story: how the adapter was made; None: what stands beside the adapter.
    """
    from guardlearn import adapters, report
    from guardlearn.cli.options import open_loop
    from guardlearn.dag import ArtifactDAG
    from guardlearn.evaluation import evaluate
    from guardlearn.models import resolve_model

    specifications = console.read_specifications(specs)
    manifest = adapters.read_manifest(adapter) if adapter else adapters.manifest_in(resolve_model(model))
    loop = open_loop("transformers", model, None, guard, sampling, manifest)
    with console.progress("evaluate") as on_progress:
        evidence = evaluate(
            specifications,
            loop.generator,
            loop.guard,
            adapter=adapter,
            renderer=loop.renderer,
            r_max=rmax,
            samples=samples,
            seed=sampling.get("seed", 0),
            folder=output,
            manifest=manifest,
            on_progress=on_progress,
        )
    if db:
        with ArtifactDAG.load(db) as dag:
            digest = adapters.adapter_digest(adapter) if adapter else ""
            dag.record_reading(digest, dag.sides_digest(), len(specifications), "evaluate")
    report.write(output, evidence, story=story or (report.story_of_adapter(adapter) if adapter else None))
    return evidence
