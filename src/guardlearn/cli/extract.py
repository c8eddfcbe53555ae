"""`guardlearn extract`: τ = E(ℛ, Φ) as rows of a format, in JSON Lines or Parquet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.cli.options import PromptsOption, read_prompts
from guardlearn.cli.selection import PolicyOption, WhereOption, chosen
from guardlearn.errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from guardlearn.credentials import CredentialFinding
    from guardlearn.dag import ArtifactDAG
    from guardlearn.predicates import Predicate
    from guardlearn.prompts import PromptConfig, Renderer
    from guardlearn.types import TrainingTrace

_VIEWS = {"both": ("first_attempt", "repair"), "first_attempt": ("first_attempt",), "repair": ("repair",)}
_SECRETS = ("count", "exclude", "off")
_FORMATS = "prompt_completion | messages | chatml | alpaca | sharegpt | preference | kto"


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where the rows go: Parquet if it ends in .parquet, else JSON Lines."),
    ] = None,
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
    prompts: PromptsOption = None,
    secrets: Annotated[
        str, typer.Option(help="Keys and tokens in the texts: count them, exclude their traces, or off.")
    ] = "count",
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the database's query and plan instead of extracting; needs no -o.")
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Extract training rows; the training and validation sides only.

    kto takes what Φ selects and the rejected attempts before it: --where 'everything()' adds chains never solved.
    """
    from guardlearn.credentials import count_kinds
    from guardlearn.formats import FORMATS, format_traces, parquet_library, write_rows
    from guardlearn.traces import extract_traces

    for name, given, allowed in (
        ("view", view, _VIEWS),
        ("format", output_format, FORMATS),
        ("secrets", secrets, _SECRETS),
    ):
        if given not in allowed:
            raise UsageError(f"unknown {name} {given!r}; use {', '.join(allowed)}")
    wanted = FORMATS[output_format]
    if wanted.tokenizer and model is None:
        raise UsageError(f"--format {output_format} is written by a model's chat template; add --model MODEL")
    predicate = chosen(policy, where)
    if explain:
        _explain(db, predicate, as_json)
        return
    if output is None:
        raise UsageError("nowhere to write the rows: add -o FILE, or --explain to see the query only")
    if output.suffix.lower() == ".parquet":
        parquet_library()  # missing: say so before the work
    tokenizer, asked = None if model is None else _tokenizer(model), read_prompts(prompts)
    verdicts = ("accepted", "rejected") if wanted.rejected else ("accepted",)
    with opened(db) as dag, console.progress("extract") as update:
        extraction = extract_traces(dag, predicate, verdicts=verdicts, attempts=wanted.attempts, on_progress=update)
        renderer = None if asked is None else _renderer(dag, extraction.traces, asked, tokenizer)
    findings = _credentials(extraction.traces, secrets, renderer)
    holders = {finding.item_id for finding in findings or ()} if secrets == "exclude" else set()
    kept = [trace for trace in extraction.traces if trace.item.id not in holders]
    with console.progress("rows") as update:
        shaped: dict[str, Any] = {"views": _VIEWS[view], "renderer": renderer, "tokenizer": tokenizer}
        rows = format_traces(kept, output_format, **shaped, on_progress=update)
        count = write_rows(rows, output)
    held = {"holds a key or token": len(holders)} if holders else {}
    dropped = dict(Counter(extraction.dropped) + Counter(rows.dropped) + Counter(held))
    lacking = sum(bool(renderer.unknown_dependencies(trace.item)) for trace in kept) if renderer else 0
    summary = {
        "predicate": extraction.predicate,
        "selected": extraction.selected,
        "traces": len(kept),
        "rows": count,
        "dropped": dropped,
        "checkpoint": extraction.checkpoint,
        "format": output_format,
        "secrets": None if findings is None else {"by_kind": count_kinds(findings), "traces": findings},
        "output": str(output),
        **({"unknown": {"dependency": lacking}} if renderer else {}),
    }
    if as_json:
        console.emit(summary)
        return
    console.table(extraction.predicate, ["selected", "traces", "rows"], [[extraction.selected, len(kept), count]])
    console.say(f"dropped: {console.flat(dropped)}")
    if findings:
        kept_too = "excluded" if holders else "still in the rows: --secrets exclude leaves them out"
        kinds = console.flat(count_kinds(findings))
        console.say(f"keys and tokens: {kinds}, in {len(findings)} traces, {kept_too}; --json names them")
    if lacking:
        console.say(f"traces whose prompt held an artifact that is not here, and lacks it: {lacking}")
    console.say(f"rows: {output}")


def _renderer(dag: ArtifactDAG, traces: list[TrainingTrace], prompts: PromptConfig, tokenizer: Any) -> Renderer:
    from guardlearn.dag.importers.atomicguard_prompts import with_dependencies
    from guardlearn.prompts import Renderer, special_tokens

    renderer = Renderer(config=prompts, special_tokens=special_tokens(tokenizer) if tokenizer is not None else ())
    return with_dependencies(renderer, dag, (item for trace in traces for item in (trace.item, *trace.attempts)))


def _explain(db: str, predicate: Predicate, as_json: bool) -> None:
    from guardlearn.selections import query_plan

    with opened(db) as dag:
        plan = query_plan(dag, predicate)
    if as_json:
        console.emit({"predicate": repr(predicate), **msgspec.to_builtins(plan)})
        return
    print(plan.sql, *(f"  {step}" for step in plan.steps), sep="\n")
    looked = (
        "then a function looks at every item, in Python" if plan.in_python else "the whole predicate is in the query"
    )
    console.say(f"{plan.database}; indexes: {', '.join(plan.indexes) or 'none'}; {looked}")


def _credentials(
    traces: list[TrainingTrace], secrets: str, renderer: Renderer | None
) -> list[CredentialFinding] | None:
    """Return what was found; None where nobody looked, which is said."""
    from guardlearn.credentials import find_credentials

    if secrets == "off":
        return None
    try:
        with console.progress("secrets") as update:
            return find_credentials(traces, update, renderer=renderer)
    except BackendUnavailable as error:
        if secrets == "exclude":
            raise
        console.say(f"not looked for keys and tokens: {error}")
        return None


def _tokenizer(model: str) -> Any:
    from guardlearn.models import resolve_model
    from guardlearn.training.model import load_tokenizer

    return load_tokenizer(str(resolve_model(model)), max_seq_length=1 << 30)  # rows are written whole, whatever fits
