"""`guardlearn collect`: run the loop of Definition 7 over a specification file, into ℛ."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
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
    from guardlearn.collect import CollectConfig, CollectSummary

_LARGER = {
    "tokens": " with a larger --budget-tokens",
    "attempts": " with a larger --budget-attempts",
}


def command(
    specs: Annotated[Path, typer.Argument(help="Specifications, JSON Lines.")],
    db: Annotated[str, typer.Option("--db", help="The repository; created if it does not exist.")],
    guard: GuardOption,
    model: ModelOption = None,
    generator: GeneratorOption = "transformers",
    adapter: AdapterOption = None,
    rmax: RmaxOption = 4,
    samples: Annotated[int, typer.Option(min=1, help="Independent chains per specification.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may take.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer right after this text (repeatable).")] = None,
    seed: SeedOption = 0,
    retry: Annotated[str | None, typer.Option(help="What a retry shows: feedback (default) | artifact, too.")] = None,
    retry_no_verdict: Annotated[
        bool | None,
        typer.Option("--retry-no-verdict", help="Judge answers again that got no verdict.", show_default=False),
    ] = None,
    in_flight: Annotated[int | None, typer.Option(min=1, help="Chains under way at once.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of answers that may be spent.")] = None,
    budget_attempts: Annotated[int | None, typer.Option(min=1, help="Attempts that may be made.")] = None,
    budget_seconds: Annotated[float | None, typer.Option(min=0.001, help="Time this run may take.")] = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    sandbox: SandboxOption = "auto",
    as_json: console.Json = False,
) -> None:
    """Generate, guard and store attempts; rejected ones are retried with their feedback. Run again, it continues."""
    from guardlearn.cli.options import answering, chosen_weights, open_loop
    from guardlearn.collect import collect
    from guardlearn.dag import ArtifactDAG

    given = {
        "retry": retry,
        "retry_no_verdict": retry_no_verdict,
        "in_flight": in_flight,
        "budget_tokens": budget_tokens,
        "budget_attempts": budget_attempts,
        "budget_seconds": budget_seconds,
    }
    config = _config({name: value for name, value in given.items() if value is not None})
    specifications = console.read_specifications(specs)
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens, "stop": tuple(stop or ()), "seed": seed}
    chosen = chosen_weights(generator, model, adapter, db, create=True)
    weights = answering(generator, chosen.model, chosen.adapter) if chosen.adapter else None
    learned_from = weights.manifest if weights else None
    where: dict[str, Any] = {"engine": engine, "address": address, "guard_workers": config.guard_workers}
    loop = open_loop(generator, *chosen, guard, sampling, learned_from, retry=config.retry, **where)
    with (
        stopping.stoppable() as asked_to_stop,
        contextlib.closing(loop.engine),
        ArtifactDAG.open_or_create(db) as dag,
        console.progress("collect") as on_progress,
    ):
        summary = collect(
            dag,
            specifications,
            loop.generator,
            loop.guard,
            renderer=loop.renderer,
            adapter=weights.digest if weights else "",
            r_max=rmax,
            samples=samples,
            seed=seed,
            budget=config.budget(),
            in_flight=config.in_flight,
            retry_no_verdict=config.retry_no_verdict,
            stop=asked_to_stop,
            on_progress=on_progress,
            engine=loop.engine,
        )
    if as_json:
        console.emit(summary)
    else:
        _tell(summary, db)
    _say_what_is_left(summary)
    if summary.stopped == "interrupted":
        stopping.leave(stopping.INTERRUPTED)
    if (summary.unfinished and not summary.stopped) or summary.stopped == "unavailable":
        stopping.leave(1)


def _config(given: dict[str, object]) -> CollectConfig:
    """Return the settings file's table with what the command line says instead."""
    from guardlearn import settings
    from guardlearn.collect import CollectConfig

    found = settings.read()
    config = found.table("collect", CollectConfig)
    return settings.convert(msgspec.structs.asdict(config) | given, CollectConfig, "the options of collect")


def _tell(summary: CollectSummary, db: str) -> None:
    rows = [
        [attempt, made, accepted, f"{accepted / made:.0%}" if made else "-"]
        for attempt, (made, accepted) in enumerate(
            zip(summary.attempts_by_position, summary.accepted_by_position, strict=True), 1
        )
    ]
    console.table(f"{summary.chains} chains in {db}", ["attempt", "made", "accepted", "rate"], rows)
    again = f", {summary.judged_again} judged again" if summary.judged_again else ""
    console.say(
        f"{summary.new_attempts} new attempts{again}, {summary.refinements} refinements, {summary.seconds:.0f} s"
    )
    if summary.no_verdict:
        console.say(
            f"{summary.no_verdict} answers have no verdict (the guard failed on its own account; `guardlearn show` "
            "says how); once it is repaired, the same command with --retry-no-verdict judges them again"
        )


def _say_what_is_left(summary: CollectSummary) -> None:
    if not summary.unfinished:
        return
    left = len(summary.unfinished_chains)
    reason, *others = summary.unfinished
    more = f" (and {len(others)} other reasons, see --json)" if others else ""
    if summary.stopped == "interrupted":
        reason, more = f"stopped, {summary.new_attempts} new attempts are stored", ""
    larger = _LARGER.get(summary.stopped, "")
    console.say(f"guardlearn: {reason}{more}; {left} chains are unfinished, the same command{larger} continues")
