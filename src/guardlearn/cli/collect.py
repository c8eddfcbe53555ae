"""`guardlearn collect`: run the loop of Definition 7 over a specification file, into ℛ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.options import AdapterOption, GuardOption, ModelOption, RmaxOption, SeedOption


def command(
    specs: Annotated[Path, typer.Argument(help="Specifications, JSON Lines.")],
    db: Annotated[str, typer.Option("--db", help="The repository; created if it does not exist.")],
    guard: GuardOption,
    model: ModelOption = "demo",
    generator: Annotated[str, typer.Option(help="transformers | replay")] = "transformers",
    adapter: AdapterOption = None,
    rmax: RmaxOption = 4,
    samples: Annotated[int, typer.Option(min=1, help="Independent chains per specification.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may take.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer right after this text (repeatable).")] = None,
    seed: SeedOption = 0,
    as_json: console.Json = False,
) -> None:
    """Generate, guard and store attempts; rejected ones are retried with their feedback. Run again, it continues."""
    from guardlearn import adapters
    from guardlearn.cli.options import open_loop
    from guardlearn.collect import collect
    from guardlearn.dag import ArtifactDAG

    specifications = console.read_specifications(specs)
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "stop": tuple(stop or ()), "seed": seed}
    manifest = adapters.read_manifest(adapter) if adapter else None
    loop = open_loop(generator, model, adapter, guard, sampling, manifest)
    digest = adapters.adapter_digest(adapter) if adapter else ""
    with ArtifactDAG.open_or_create(db) as dag, console.progress("collect") as on_progress:
        summary = collect(
            dag,
            specifications,
            loop.generator,
            loop.guard,
            renderer=loop.renderer,
            adapter=digest,
            r_max=rmax,
            samples=samples,
            seed=seed,
            on_progress=on_progress,
        )
    if as_json:
        console.emit(summary)
        return
    rows = [
        [attempt, made, accepted, f"{accepted / made:.0%}" if made else "-"]
        for attempt, (made, accepted) in enumerate(
            zip(summary.attempts_by_position, summary.accepted_by_position, strict=True), 1
        )
    ]
    console.table(f"{summary.chains} chains in {db}", ["attempt", "made", "accepted", "rate"], rows)
    console.say(f"{summary.new_attempts} new attempts, {summary.refinements} refinements, {summary.seconds:.0f} s")
