"""`guardlearn demo`: the whole loop on a small real model, on two CPU cores, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardlearn.cli import console
from guardlearn.errors import UsageError


def command(
    folder: Annotated[Path, typer.Option("--dir", help="Where everything is left.")] = Path("guardlearn-demo"),
    swap_groups: Annotated[
        bool, typer.Option("--swap-groups", help="Exchange training and held-out families.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Close the loop: collect, learn, decide, so many times.")
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Collect retries of a small model, train on them, measure before and after. Run again, it continues."""
    from guardlearn.guards import sandbox

    if sandbox.wished() == "auto" and not (state := sandbox.state()).works:
        # the demo's artifacts come from its own small model; it must run where no sandbox can
        sandbox.prefer("none")
        console.say(f"no sandbox here: {state.reason}; the demo's answers run in limited processes")
    if rounds is not None:
        if swap_groups:
            raise UsageError("--swap-groups and --rounds do not go together; leave one of them out")
        _rounds(folder, rounds, as_json)
        return
    from guardlearn import report
    from guardlearn.demo.run import LIMITS, run_demo

    result = run_demo(folder, console.progress, swap_groups=swap_groups)
    if as_json:
        console.emit(result)
        return
    report.terminal(result.evidence)
    for limit in LIMITS:
        console.say(f"  note: {limit}")
    steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in result.seconds.items())
    console.say(f"seconds: {steps}; total {sum(result.seconds.values()):.0f}")
    console.say(f"report: {folder / report.PAGE}; its attempts: guardlearn ui {folder / 'runs.db'}")


def _rounds(folder: Path, rounds: int, as_json: bool) -> None:
    from guardlearn.cli import loop
    from guardlearn.demo.rounds import run_rounds

    result = run_rounds(folder, console.progress, rounds)
    if as_json:
        console.emit(result)
        return
    loop.tell_rounds(result.rounds)
    passed = ", ".join("-" if share is None else f"{share:.0%}" for share in result.first_attempts)
    console.say(f"first attempts that passed at once in each round's collection: {passed}")
    if result.waiting:
        console.say(f"no further round: {result.waiting}")
    console.say(f"report: {result.report}")
