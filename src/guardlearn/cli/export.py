"""`guardlearn export`: an adapter in the form that another program loads, or a repository as JSON Lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.errors import UsageError

if TYPE_CHECKING:
    from guardlearn.dag.exporting import ExportReport
    from guardlearn.merging import MergeReport

_TARGETS = ("merged",)


def command(
    source: Annotated[str, typer.Argument(help="An adapter folder, which needs --to; or a repository, path or URL.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The folder (adapter) or JSON Lines file (repository) to appear."),
    ],
    to: Annotated[str | None, typer.Option("--to", help=f"For an adapter: {' | '.join(_TARGETS)}")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="For an adapter: model folder or hub name, or demo (default).")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="For an adapter: bfloat16 (default) | float16 | float32")] = None,
    as_json: console.Json = False,
) -> None:
    """Export an adapter, loaded again and compared before it appears; or a repository, without loss."""
    if to is None and not Path(source, "adapter_config.json").is_file():
        for option, value in {"--model": model, "--dtype": dtype}.items():
            if value is not None:
                raise UsageError(f"{option} is for an adapter, but {source} is taken for a repository; leave it out")
        _repository(source, output, as_json)
        return
    _adapter(Path(source), to, output, model or "demo", dtype or "bfloat16", as_json)


def _repository(source: str, output: Path, as_json: bool) -> None:
    from guardlearn.dag.exporting import export_items

    with opened(source) as dag, console.progress("export") as on_progress:
        report: ExportReport = export_items(dag, output, on_progress)
    if as_json:
        console.emit({"output": str(output), "report": report})
    else:
        console.say(
            f"{report.items} items, {report.events} events, {report.specifications} specifications and {report.pins} "
            f"pinned groups: {output}"
        )


def _adapter(adapter: Path, to: str | None, output: Path, model: str, dtype: str, as_json: bool) -> None:
    from guardlearn.merging import merge_adapter

    if to is None:
        raise UsageError(f"{adapter} is an adapter, which needs --to; allowed: {', '.join(_TARGETS)}")
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
