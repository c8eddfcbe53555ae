"""`guardlearn verify`: whether ℛ holds what was once stored."""

from __future__ import annotations

from typing import Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened


def command(
    db: Annotated[str, typer.Argument(help="The repository.")],
    as_json: console.Json = False,
) -> None:
    """Recompute every digest; name what was altered, missing or redacted. Exit 1 if anything was."""
    with opened(db) as dag:
        report = dag.verify()
    if as_json:
        console.emit(report)
    else:
        console.table(db, ["items", "events", "problems"], [[report.items, report.events, len(report.problems)]])
        for problem in report.problems:
            print(problem)
    if report.problems:
        raise typer.Exit(1)
