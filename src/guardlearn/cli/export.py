"""`guardlearn export`: an adapter in the form that another program loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.options import ModelOption
from guardlearn.errors import UsageError

if TYPE_CHECKING:
    from guardlearn.merging import MergeReport

_TARGETS = ("merged",)


def command(
    adapter: Annotated[Path, typer.Argument(help="An adapter folder.")],
    to: Annotated[str, typer.Option("--to", help=" | ".join(_TARGETS))],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to appear; it must not hold anything.")],
    model: ModelOption = "demo",
    dtype: Annotated[str, typer.Option(help="bfloat16 | float16 | float32")] = "bfloat16",
    as_json: console.Json = False,
) -> None:
    """Export an adapter; what was written is loaded again and compared with base + adapter before it appears."""
    from guardlearn.merging import merge_adapter

    if to not in _TARGETS:
        raise UsageError(f"--to is {to!r}; allowed: {', '.join(_TARGETS)}")
    with console.progress("export") as on_progress:
        report = merge_adapter(model, adapter, output, dtype=dtype, on_progress=on_progress)
    if as_json:
        console.emit({"to": to, "output": str(output), "report": report})
    else:
        tell(report, output)


def tell(report: MergeReport, output: Path) -> None:
    """Say how near the merged model is to base + adapter, for people."""
    found = report.agreement
    rows = [
        ["merged to base + adapter, in float32", f"{report.merging_difference:.2g}", "at most 0.001"],
        [f"rounded to {report.dtype} to base + adapter", f"{report.rounding_difference:.2g}", ""],
        ["loaded again to the rounded weights", f"{found.expected_difference:.2g}", "at most 0.001"],
        ["loaded again to base + adapter", f"{found.adapter_difference:.2g}", "at most half of the next"],
        ["loaded again to the bare base", f"{found.base_difference:.2g}", ""],
    ]
    title = f"largest difference of a logit, {found.prompts} prompts, {found.positions} tokens"
    console.table(title, ["from", "is", "allowed"], rows)
    console.say(
        f"greedy: {100 * found.greedy_agreement:.1f} % of tokens as base + adapter ({found.flips} flips, "
        f"{found.disagreements} beyond what rounding moved), {found.identical_continuations} of {found.prompts} "
        "answers identical"
    )
    if report.dtype == "bfloat16" and found.flips:
        console.say("--dtype float16 takes the same space and rounds eight times finer")
    console.say(f"merged model: {output}")
