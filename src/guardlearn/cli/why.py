"""`guardlearn why`: an adapter on one page: what it learned from, how it was trained and measured, and the decision."""

from __future__ import annotations

from typing import Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.printing import printable

_WIDTH = 14


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="promoted, 3 or LEARNER/3 (of round 3), a digest's first digits (6 or more), or a folder.",
        ),
    ],
    db: Annotated[str, typer.Option("--db", help="The repository it was made from; it is only read.")],
    as_json: console.Json = False,
) -> None:
    """Tell what an adapter is, what it learned from, how it did, why it is live or not, and what came of its items."""
    from guardlearn import lineage
    from guardlearn.report.why import why_lines

    with opened(db) as dag:
        found = lineage.explain(dag, lineage.find(dag, name))
    if as_json:
        console.emit(found)
        return
    for label, text in why_lines(found):
        print(printable(f"{label:{_WIDTH}}{text}" if label or text else ""))
