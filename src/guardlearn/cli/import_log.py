"""`guardlearn import`: retries from a log into ℛ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardlearn.cli import console


def command(
    source: Annotated[Path, typer.Argument(help="A JSON Lines log.")],
    into: Annotated[str, typer.Option("--into", help="The repository; created if it does not exist.")],
    mapping: Annotated[
        str,
        typer.Option(
            "--map",
            help="Where things stand in a line: spec=…,artifact=…,accepted=…,feedback=…,chain=… "
            "(also time, constraints, group, action_pair, source, guard, model, workflow, id, cause).",
        ),
    ],
    as_json: console.Json = False,
) -> None:
    """Import a log of guarded attempts; importing again takes only what is new."""
    from guardlearn.dag import ArtifactDAG
    from guardlearn.dag.importers.log import import_log
    from guardlearn.dag.importers.mapping import parse_mapping

    pairs = parse_mapping(mapping)
    with ArtifactDAG.open_or_create(into) as dag, console.progress("import") as on_progress:
        report = import_log(dag, source, pairs, on_progress=on_progress)
    if as_json:
        console.emit(report)
        return
    console.table(
        f"{source} into {into}",
        ["read", "new", "unchanged", "faults"],
        [[report.read, report.new, report.unchanged, len(report.faults)]],
    )
    for fault in report.faults:
        console.say(f"fault: {fault}")
    if report.unknown:
        console.say(f"not known from this log: {console.flat(report.unknown)}")
