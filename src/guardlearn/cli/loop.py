"""`guardlearn loop`: rounds of learning, one or as traces accumulate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from guardlearn.cli import console, stopping
from guardlearn.cli.options import SandboxOption, opened_as_set
from guardlearn.errors import UsageError

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.loop.config import LoopSettings
    from guardlearn.loop.planning import Outlook, Waiting
    from guardlearn.loop.results import RoundResult
    from guardlearn.loop.rounds import Bench

_NAP_SECONDS = 0.5


def command(
    db: Annotated[str, typer.Argument(help="The repository.")],
    specs: Annotated[
        list[Path] | None, typer.Option("--specs", help="Specification files (repeatable); [loop] specs.")
    ] = None,
    guard: Annotated[str | None, typer.Option("--guard", help="Name of the guard; [loop] guard.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Base model; [loop] model.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Gets a folder a round; [loop] folder.")] = None,
    min_new_traces: Annotated[
        int | None, typer.Option(min=1, help="New traces a round waits for; [loop] min_new_traces.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on as traces arrive, until rounds no longer help.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the repository.")] = 60.0,
    rounds: Annotated[int | None, typer.Option(min=1, help="With --watch: end after so many rounds.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what a round could show; train nothing.")] = False,
    gain: Annotated[float, typer.Option(min=0.0, max=1.0, help="With --dry-run: the gain that is hoped for.")] = 0.1,
    give_up: Annotated[
        str | None, typer.Option("--abandon", metavar="REASON", help="End the round that was begun.")
    ] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter of the training process.")] = None,
    sandbox: SandboxOption = "auto",
    as_json: console.Json = False,
) -> None:
    """Train on new traces, measure the candidate, promote it only on evidence. Run again, it continues."""
    from guardlearn import settings
    from guardlearn.cli.actor import actor
    from guardlearn.dag import ArtifactDAG
    from guardlearn.loop.config import read_settings
    from guardlearn.loop.rounds import abandon

    given = {
        "specs": tuple(map(str, specs)) if specs else None,
        "guard": guard,
        "model": model,
        "folder": str(output) if output else None,
        "min_new_traces": min_new_traces,
    }
    found = read_settings(settings.read())
    said = {name: value for name, value in given.items() if value is not None}
    wanted = msgspec.structs.replace(found, loop=msgspec.structs.replace(found.loop, **said))
    with ArtifactDAG.load(db, read_only=dry_run) as dag:
        if give_up is not None:
            _tell([abandon(dag, wanted.loop.learner, actor(), give_up)], None, as_json)
        elif dry_run:
            _tell_outlook(dag, wanted, gain, as_json)
        else:
            _run(dag, wanted, actor(), watch, every, rounds, python, as_json)


def _run(
    dag: ArtifactDAG,
    wanted: LoopSettings,
    actor: str,
    watch: bool,
    every: float,
    most: int | None,
    python: str | None,
    as_json: bool,
) -> None:
    from guardlearn.loop import rounds
    from guardlearn.loop.history import write_history
    from guardlearn.loop.results import RoundResult

    bench = _bench(wanted, python)
    done: list[RoundResult] = []
    waiting, stopped = None, ""
    with stopping.stoppable() as asked_to_stop:
        while not asked_to_stop() and len(done) < (most or (1 if not watch else len(done) + 1)):
            seen = dag.last_seq  # before the round looks: what arrives meanwhile is not waited for
            outcome = rounds.run_round(dag, wanted, bench, console.progress, actor)
            if isinstance(outcome, RoundResult):
                done.append(outcome)
                write_history(dag, wanted.loop, wanted.promotion.min_gain)
                stopped = _advice(dag, wanted) if watch else ""
                if stopped:
                    break
                continue
            waiting = outcome
            if not watch:
                break
            _wait(dag, every, seen, waiting, asked_to_stop)
        interrupted = asked_to_stop()
    _tell(done, waiting, as_json, stopped=stopped, folder=wanted.loop.folder)
    if interrupted:
        stopping.leave(stopping.INTERRUPTED)


def _advice(dag: ArtifactDAG, wanted: LoopSettings) -> str:
    from guardlearn.loop.advice import advice
    from guardlearn.loop.planning import rounds_of

    past = rounds_of(dag, wanted.loop.learner)
    return advice(past, wanted.loop.patience, wanted.promotion.min_gain).reason


def _wait(dag: ArtifactDAG, every: float, seen: int, waiting: Waiting, asked_to_stop: Any) -> None:
    """Sleep until something was appended after `seen` and `every` seconds have passed, or Ctrl-C."""
    console.say(f"waiting: {waiting.reason}")
    until = time.monotonic() + every
    while not asked_to_stop() and (time.monotonic() < until or dag.last_seq == seen):
        time.sleep(min(_NAP_SECONDS, every))


def _bench(wanted: LoopSettings, python: str | None) -> Bench:
    """Open everything a round needs but the generator; what is missing is said before anything is trained."""
    from guardlearn import forgetting
    from guardlearn.guards import load_guard
    from guardlearn.loop.rounds import Bench
    from guardlearn.models import resolve_model

    config = wanted.loop
    if not config.specs or not config.guard:
        what = "specs" if not config.specs else "guard"
        raise UsageError(f"no {what} to measure with; give --{what}, or {what} in [loop] of guardlearn.toml")
    texts = forgetting.read_texts(Path(config.general)) if config.general else forgetting.default_texts()
    return Bench(
        model_folder=resolve_model(config.base_model),
        guard=load_guard(config.guard),
        specs=_specifications(config.specs),
        open_generator=opened_as_set,
        regressions=_specifications(config.regressions),
        texts=texts,
        hidden=[load_guard(name) for name in config.hidden_guards],
        python=python,
    )


def _specifications(files: tuple[str, ...]) -> list[Any]:
    found = [spec for file in files for spec in console.read_specifications(Path(file))]
    seen: set[str] = set()
    for spec in found:
        if spec.id in seen:
            raise UsageError(f"specification id {spec.id!r} stands twice in {', '.join(files)}; ids name pairs")
        seen.add(spec.id)
    return found


def _tell_outlook(dag: ArtifactDAG, wanted: LoopSettings, gain: float, as_json: bool) -> None:
    from guardlearn.loop.planning import on_side, outlook
    from guardlearn.traces import extract_new_traces
    from guardlearn.types import Side

    config = wanted.loop
    held_out = on_side(dag, _specifications(config.specs), Side.HELD_OUT)
    seen = outlook(dag, config.learner, held_out, config.samples, wanted.promotion, gain)
    new = len(extract_new_traces(dag, config.learner, config.select).traces)
    if as_json:
        console.emit({"new_traces": new, "min_new_traces": config.min_new_traces, **msgspec.to_builtins(seen)})
        return
    console.table(
        f"the next round of {config.learner}",
        ["new traces", "wanted", "held-out groups", "look", "level"],
        [[new, config.min_new_traces, seen.groups, seen.look, f"{seen.level:.2g}"]],
    )
    console.say(_outlook_words(seen))


def _outlook_words(seen: Outlook) -> str:
    spread = "the spread is assumed (a base at 50 %)" if seen.assumed else "the spread is that of the last measurement"
    shows = "no gain at all" if seen.detectable is None else f"gains from {100 * seen.detectable:.1f} points on"
    needs = "no number of groups shows" if seen.groups_needed is None else f"{seen.groups_needed} groups show"
    return (
        f"with {seen.power:.0%} probability, {seen.groups} held-out groups show {shows}; {needs} a gain of "
        f"{100 * seen.gain:.1f} points ({spread})"
    )


def _tell(
    done: list[RoundResult], waiting: Waiting | None, as_json: bool, *, stopped: str = "", folder: str = ""
) -> None:
    if as_json:
        console.emit({"rounds": done, "waiting": waiting, "advice": stopped})
        return
    if done:
        tell_rounds(done)
        if folder:
            console.say(f"report: {Path(folder) / 'report.html'}")
    if waiting is not None:
        console.say(f"no round: {waiting.reason}")
    if stopped:
        console.say(stopped)


def tell_rounds(done: list[RoundResult]) -> None:
    """Show what rounds came to, for people."""
    from guardlearn.report import words

    rows = [
        [
            each.round,
            each.state.value,
            each.new_traces,
            each.rows,
            _points(each.gain),
            _interval(each),
            _points(each.detectable),
        ]
        for each in done
    ]
    columns = ["round", "decision", "new traces", "rows", "gain, points", "95 % interval", "detectable"]
    console.table("rounds", columns, rows)
    for each in done:
        console.say(f"round {each.round}: {each.reason}")
        if each.payback is not None and each.state.value == "promoted":
            console.say(f"round {each.round}: {words.payback(each.payback)}")


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f}"


def _interval(result: RoundResult) -> str:
    if result.gain_low is None or result.gain_high is None:
        return "-"
    return f"{_points(result.gain_low)} to {_points(result.gain_high)}"
