"""`guardlearn export`: an adapter in the form that another program loads, or a repository as JSON Lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.errors import UsageError

if TYPE_CHECKING:
    from guardlearn.dag.exporting import ExportReport as RepositoryReport
    from guardlearn.exporting import ExportReport
    from guardlearn.merging import MergeReport

_FORMS = ("peft", "merged", "ollama")
_ALLOWED = ", ".join(_FORMS)


def command(
    target: Annotated[
        str,
        typer.Argument(
            help="An adapter, which needs --to: a folder, or with --db promoted, 3 or LEARNER/3 (of round 3), or a "
            "digest's first digits; or a repository, path or URL."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="The folder (adapter) or JSON Lines file (repository) to appear."),
    ],
    to: Annotated[str | None, typer.Option("--to", help=f"For an adapter: {' | '.join(_FORMS)}")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="For an adapter: model folder or hub name; default: its round's in --db, else demo."
        ),
    ] = None,
    db: Annotated[str | None, typer.Option("--db", help="The repository that knows the adapter by name.")] = None,
    base_name: Annotated[
        str | None,
        typer.Option("--base-name", help="For peft and ollama: what whoever loads the export calls the base."),
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="For peft: copy the base in, as `transformers serve` needs it.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="For merged: bfloat16 (default) | float16 | float32")] = None,
    as_json: console.Json = False,
) -> None:
    """Export an adapter, loaded again and compared before it appears; or a repository, without loss."""
    given = {"--model": model, "--db": db, "--base-name": base_name, "--with-base": with_base or None, "--dtype": dtype}
    if to is None and db is None and not Path(target, "adapter_config.json").is_file():
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} is for an adapter, but {target} is taken for a repository; leave it out")
        _repository(target, output, as_json)
        return
    if to is None:
        raise UsageError(f"{target} is an adapter, which needs --to; allowed: {_ALLOWED}")
    if to not in _FORMS:
        raise UsageError(f"--to is {to!r}; allowed: {_ALLOWED}")
    adapter, base = _found(target, db)
    options: dict[str, Any] = {"base_name": base_name, "with_base": with_base, "dtype": dtype}
    _adapter(adapter, to, output, as_json, model=model or base, **options)


def _found(target: str, db: str | None) -> tuple[Path, str]:
    """Return an adapter's folder and its base's name; what ℛ knows is there, unaltered.

    Raises:
        UsageError: a name that ℛ does not know, or no folder and no ℛ to ask.
        ModelError: the folder is gone, or was edited by hand.
    """
    if db is None:
        if not Path(target).is_dir():
            raise UsageError(
                f"{target} is no adapter folder here; name one, or the repository that knows {target!r} with --db"
            )
        return Path(target), "demo"
    from guardlearn import lineage

    with opened(db) as dag:
        record = lineage.find(dag, target)
        folder = lineage.check(record)
    console.say(f"{target}: {folder}, weights {record.digest[:12]}, on {record.base_model or 'demo'}")
    return folder, record.base_model or "demo"


def _repository(source: str, output: Path, as_json: bool) -> None:
    from guardlearn.dag.exporting import export_items

    with opened(source) as dag, console.progress("export") as on_progress:
        report: RepositoryReport = export_items(dag, output, on_progress)
    if as_json:
        console.emit({"output": str(output), "report": report})
    else:
        console.say(
            f"{report.items} items, {report.events} events, {report.specifications} specifications and {report.pins} "
            f"pinned groups: {output}"
        )


def _adapter(adapter: Path, to: str, output: Path, as_json: bool, **options: Any) -> None:
    from guardlearn.exporting import export_adapter

    with console.progress("export") as on_progress:
        report = export_adapter(adapter, to, output, on_progress=on_progress, **options)
    if as_json:
        console.emit({"to": to, "output": str(output), "report": report})
    elif report.merging is not None:
        tell(report.merging, output)
    else:
        tell_export(report, output)


def tell_export(report: ExportReport, output: Path) -> None:
    """Say how near an export that merges nothing is to base + adapter, for people."""
    found = report.agreement
    rows = [
        ["base + adapter", f"{found.adapter_difference:.2g}", "at most 0.001"],
        ["the bare base", f"{found.base_difference:.2g}", "more than 0.001"],
    ]
    title = f"largest difference of a logit, {found.prompts} prompts, {found.positions} tokens"
    console.table(title, ["export, loaded again, to", "is", "allowed"], rows)
    console.say(
        f"greedy: {100 * found.greedy_agreement:.1f} % of tokens as base + adapter, {found.identical_continuations} of "
        f"{found.prompts} answers identical"
    )
    for note in report.notes:
        console.say(note)
    console.say(f"{report.to}: {output}, on {report.base_model}")


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
