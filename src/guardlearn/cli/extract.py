"""`guardlearn extract`: τ = E(ℛ, Φ) as JSON Lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from guardlearn.cli import console
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen
from guardlearn.errors import UsageError

_VIEWS = {"both": ("first_attempt", "repair"), "first_attempt": ("first_attempt",), "repair": ("repair",)}


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the rows go, JSON Lines.")],
    policy: PolicyOption = None,
    where: WhereOption = None,
    view: Annotated[str, typer.Option(help="both | first_attempt | repair")] = "both",
    output_format: Annotated[str, typer.Option("--format", help="messages")] = "messages",
    as_json: console.Json = False,
) -> None:
    """Extract training rows: chat messages, the completion last; the training and validation sides only."""
    from guardlearn.dag import ArtifactDAG
    from guardlearn.formatting import examples
    from guardlearn.prompts import Renderer
    from guardlearn.traces import extract_traces

    if view not in _VIEWS:
        raise UsageError(f"unknown view {view!r}; use {', '.join(_VIEWS)}")
    if output_format != "messages":
        raise UsageError(f"unknown format {output_format!r}; use messages")
    predicate = chosen(policy, where)
    with ArtifactDAG.load(db, read_only=True) as dag:
        extraction = extract_traces(dag, predicate)
    formatted = examples(extraction.traces, Renderer(), _VIEWS[view])
    staged = output.with_name(f".{output.name}.new")
    with staged.open("wb") as file:
        for row in formatted.examples:
            messages = [*row.prompt, {"role": "assistant", "content": row.completion}]
            line = {"id": row.id, "view": row.view, "weight": row.weight, "messages": messages}
            file.write(msgspec.json.encode(line) + b"\n")
    staged.replace(output)
    dropped = dict(extraction.dropped) | dict(formatted.dropped)
    summary = {
        "predicate": extraction.predicate,
        "selected": extraction.selected,
        "traces": len(extraction.traces),
        "rows": len(formatted.examples),
        "dropped": dropped,
        "checkpoint": extraction.checkpoint,
        "output": str(output),
    }
    if as_json:
        console.emit(summary)
        return
    counts = [[extraction.selected, len(extraction.traces), len(formatted.examples)]]
    console.table(extraction.predicate, ["selected", "traces", "rows"], counts)
    console.say(f"dropped: {console.flat(dropped)}")
    console.say(f"rows: {output}")
