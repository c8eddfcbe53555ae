"""`guardlearn import`: retries from a log, an exported repository, or AtomicGuard's stores, into ℛ."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn.cli import console
from guardlearn.errors import UsageError

if TYPE_CHECKING:
    from guardlearn.dag.imports import ImportReport

_MOST_NAMED = 20


def command(
    source: Annotated[
        Path,
        typer.Argument(
            help="A JSON Lines log; a file of `guardlearn export`; or a folder: an AtomicGuard store, or any folder "
            "above several."
        ),
    ],
    into: Annotated[str, typer.Option("--into", help="The repository; created if it does not exist.")],
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map",
            help="For a log: where things stand in a line: spec=…,artifact=…,accepted=…,feedback=…,chain=… "
            "(also time, constraints, group, action_pair, source, guard, model, workflow, id, cause).",
        ),
    ] = None,
    provenance: Annotated[
        str | None,
        typer.Option(
            "--provenance",
            help="For a store: links (default), or links+history: a restarted cycle goes on from the last attempt "
            "of its history.",
        ),
    ] = None,
    reviews: Annotated[
        Path | None,
        typer.Option(
            "--reviews", help="For a store: AtomicGuard's SQLite file of pending_reviews; adds review events."
        ),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Import a log, an exported repository or AtomicGuard stores; again: only what is new or has a new verdict."""
    report = _store(source, into, provenance, reviews, mapping) if source.is_dir() else None
    if report is None:
        report = _log(source, into, mapping, {"--provenance": provenance, "--reviews": reviews})
    if as_json:
        console.emit(report)
        return
    columns = ["read", "new", "unchanged", "changed", "skipped"]
    cells = [report.read, report.new, report.unchanged, report.changed, report.skipped]
    console.table(f"{source} into {into}", [*columns, "faults"], [[*cells, len(report.faults)]])
    for fault in report.faults[:_MOST_NAMED]:
        console.say(f"fault: {fault}")
    if len(report.faults) > _MOST_NAMED:
        console.say(f"{len(report.faults) - _MOST_NAMED} more faults; --json names them all")
    if report.unknown:
        console.say(f"attempts whose … is not known: {console.flat(report.unknown)}")
    for workflow, count in report.pending.items():
        console.say(f"no verdict in workflow {workflow or '(none)'}: {count}")


def _store(source: Path, into: str, provenance: str | None, reviews: Path | None, mapping: str | None) -> ImportReport:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.dag.importers.atomicguard import import_atomicguard
    from guardlearn.dag.importers.atomicguard_survey import find_stores

    if mapping is not None:
        raise UsageError(f"--map is for a log, but {source} is a folder; leave it out, or name a log file")
    find_stores(source)  # before a repository is made for nothing
    with ArtifactDAG.open_or_create(into) as dag, console.progress("import") as on_progress:
        return import_atomicguard(
            dag, source, provenance=provenance or "links", reviews_path=reviews, on_progress=on_progress
        )


def _log(source: Path, into: str, mapping: str | None, foreign: dict[str, object]) -> ImportReport:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.dag.importers.log import import_log
    from guardlearn.dag.importers.mapping import parse_mapping
    from guardlearn.dag.importers.repository import import_repository
    from guardlearn.dag.importers.repository_lines import salt_of

    for option, value in foreign.items():
        if value is not None:
            raise UsageError(f"{option} is for AtomicGuard stores, but {os.fspath(source)} is no folder; leave it out")
    salt = salt_of(source)
    if salt is not None:
        if mapping is not None:
            raise UsageError(f"--map is for a log, but {os.fspath(source)} is an exported repository; leave it out")
        with ArtifactDAG.open_or_create(into, side_salt=salt) as dag, console.progress("import") as on_progress:
            return import_repository(dag, source, on_progress)
    if mapping is None:
        raise UsageError(
            f"{os.fspath(source)} is taken for a log, which needs --map "
            "spec=…,artifact=…,accepted=…,feedback=…,chain=…; for an AtomicGuard store name its folder"
        )
    pairs = parse_mapping(mapping)
    with ArtifactDAG.open_or_create(into) as dag, console.progress("import") as on_progress:
        return import_log(dag, source, pairs, on_progress=on_progress)
