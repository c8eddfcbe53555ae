"""`guardlearn extract`: τ = E(ℛ, Φ) as rows of a format, in JSON Lines or Parquet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from guardlearn.cli import console
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen
from guardlearn.errors import UsageError

_VIEWS = {"both": ("first_attempt", "repair"), "first_attempt": ("first_attempt",), "repair": ("repair",)}
_FORMATS = "prompt_completion | messages | chatml | alpaca | sharegpt | preference | kto"


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the rows go: Parquet if it ends in .parquet, else JSON Lines.")
    ],
    policy: PolicyOption = None,
    where: WhereOption = None,
    view: Annotated[str, typer.Option(help="both | first_attempt | repair: what a prompt conditions on.")] = "both",
    output_format: Annotated[str, typer.Option("--format", help=_FORMATS)] = "messages",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Whose chat template chatml is written by, and whose special tokens texts must not hold."
        ),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Extract training rows; the training and validation sides only.

    kto takes what Φ selects and the rejected attempts before it: --where 'everything()' adds chains never solved.
    """
    from guardlearn.dag import ArtifactDAG
    from guardlearn.formats import FORMATS, format_traces, parquet_library, write_rows
    from guardlearn.traces import extract_traces

    if view not in _VIEWS:
        raise UsageError(f"unknown view {view!r}; use {', '.join(_VIEWS)}")
    if output_format not in FORMATS:
        raise UsageError(f"unknown format {output_format!r}; use {', '.join(FORMATS)}")
    wanted = FORMATS[output_format]
    if wanted.tokenizer and model is None:
        raise UsageError(f"--format {output_format} is written by a model's chat template; add --model MODEL")
    predicate = chosen(policy, where)
    if output.suffix.lower() == ".parquet":
        parquet_library()  # missing: say so before the work
    tokenizer = None if model is None else _tokenizer(model)
    verdicts = ("accepted", "rejected") if wanted.rejected else ("accepted",)
    with ArtifactDAG.load(db, read_only=True) as dag, console.progress("extract") as update:
        extraction = extract_traces(dag, predicate, verdicts=verdicts, attempts=wanted.attempts, on_progress=update)
    with console.progress("rows") as update:
        rows = format_traces(
            extraction.traces, output_format, views=_VIEWS[view], tokenizer=tokenizer, on_progress=update
        )
        count = write_rows(rows, output)
    dropped = dict(Counter(extraction.dropped) + Counter(rows.dropped))
    summary = {
        "predicate": extraction.predicate,
        "selected": extraction.selected,
        "traces": len(extraction.traces),
        "rows": count,
        "dropped": dropped,
        "checkpoint": extraction.checkpoint,
        "format": output_format,
        "output": str(output),
    }
    if as_json:
        console.emit(summary)
        return
    console.table(
        extraction.predicate, ["selected", "traces", "rows"], [[extraction.selected, len(extraction.traces), count]]
    )
    console.say(f"dropped: {console.flat(dropped)}")
    console.say(f"rows: {output}")


def _tokenizer(model: str) -> Any:
    from guardlearn.models import resolve_model
    from guardlearn.training.model import load_tokenizer

    return load_tokenizer(str(resolve_model(model)), max_seq_length=1 << 30)  # rows are written whole, whatever fits
