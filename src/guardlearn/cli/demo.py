"""`guardlearn demo`: the whole loop on a small real model, on two CPU cores, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardlearn.cli import console


def command(
    folder: Annotated[Path, typer.Option("--dir", help="Where everything is left.")] = Path("guardlearn-demo"),
    swap_groups: Annotated[
        bool, typer.Option("--swap-groups", help="Exchange training and held-out families.")
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Collect retries of a small model, train on them, measure before and after. Run again, it continues."""
    from guardlearn.guards import sandbox

    if sandbox.wished() == "auto" and not (state := sandbox.state()).works:
        # the demo's artifacts come from its own small model; it must run where no sandbox can
        sandbox.prefer("none")
        console.say(f"no sandbox here: {state.reason}; the demo's answers run in limited processes")
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
    console.say(f"report: {folder / report.PAGE}")
