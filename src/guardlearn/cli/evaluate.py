"""`guardlearn evaluate`: base and candidate on the same specifications, paired."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardlearn.cli import console, stopping
from guardlearn.cli.options import (
    AdapterOption,
    AddressOption,
    EngineOption,
    GeneratorOption,
    GuardOption,
    ModelOption,
    RmaxOption,
    SandboxOption,
    SeedOption,
)

if TYPE_CHECKING:
    from guardlearn.evaluation import Evidence
    from guardlearn.report import Story


def command(
    specs: Annotated[Path, typer.Argument(help="Specifications, JSON Lines.")],
    guard: GuardOption,
    output: Annotated[Path, typer.Option("-o", "--output", help="Gets evidence.json, report.html and the attempts.")],
    model: ModelOption = None,
    generator: GeneratorOption = "transformers",
    adapter: AdapterOption = None,
    rmax: RmaxOption = 4,
    samples: Annotated[int, typer.Option(min=1, help="Independent chains per specification.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may take.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer right after this text (repeatable).")] = None,
    db: Annotated[
        str | None,
        typer.Option("--db", help="Record this reading in a repository; it also says what `promoted` is."),
    ] = None,
    seed: SeedOption = 0,
    engine: EngineOption = "local",
    address: AddressOption = None,
    sandbox: SandboxOption = "auto",
    as_json: console.Json = False,
) -> None:
    """Run Definition 7's loop for the base and, with --adapter, the candidate. Run again, it continues."""
    from guardlearn import report
    from guardlearn.cli.options import chosen_weights

    chosen = chosen_weights(generator, model, adapter, db)
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "stop": tuple(stop or ()), "seed": seed}
    where: dict[str, Any] = {"engine": engine, "address": address}
    try:
        evidence = measure(specs, guard, output, *chosen, rmax, samples, db, sampling, generator=generator, **where)
    except KeyboardInterrupt:
        console.say("guardlearn: stopped; the same command continues")
        stopping.leave(stopping.INTERRUPTED)
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
    generator: str = "transformers",
    engine: str = "local",
    address: str | None = None,
) -> Evidence:
    """Measure base and candidate and write evidence.json and report.html.

    Args:
        specs: file of the specifications.
        guard: name of the guard.
        output: gets evidence.json, report.html and the attempts.
        model: base model.
        adapter: the candidate's folder; for a server NAME or NAME=FOLDER; None: the base alone.
        rmax: R_max.
        samples: chains per specification.
        db: repository that notes the reading; None: none does.
        sampling: as in `SamplingConfig`.
        story: how the adapter was made; None: what stands beside the adapter.
        generator: a name that `open_generator` knows.
        engine: where the loop's work runs, "local" or "ray".
        address: of the Ray cluster; None: RAY_ADDRESS, else one on this machine.
    """
    from guardlearn import report
    from guardlearn.cli.options import answering, open_loop
    from guardlearn.dag import ArtifactDAG
    from guardlearn.evaluation import evaluate

    specifications = console.read_specifications(specs)
    candidate = answering(generator, model, adapter)
    loop = open_loop(generator, model, None, guard, sampling, candidate.manifest, engine=engine, address=address)
    with contextlib.closing(loop.engine), console.progress("evaluate") as on_progress:
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
            manifest=candidate.manifest,
            on_progress=on_progress,
            engine=loop.engine,
        )
    if db:
        with ArtifactDAG.load(db) as dag:
            dag.record_reading(candidate.digest, dag.sides_digest(), len(specifications), "evaluate")
    if story is None and candidate.folder is not None:
        story = report.story_of_adapter(candidate.folder)
    report.write(output, evidence, story=story)
    return evidence
