"""`guardlearn import`: retries from logs, exported repositories, AtomicGuard's stores or your own importer, into ℛ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from guardlearn.cli import console
from guardlearn.errors import UsageError
from guardlearn.types import OnProgress

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.dag.imports import ImportReport

_MOST_NAMED = 20


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="A chat log or any other log in JSON Lines; a file of `guardlearn export`; or a folder: an "
            "AtomicGuard store, or any folder above several. With --importer: whatever that reads."
        ),
    ],
    into: Annotated[str, typer.Option("--into", help="The repository; created if it does not exist.")],
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map",
            help="For a log: where things stand in a line: spec=…,artifact=…,accepted=…,feedback=…,chain=… "
            "(also time, constraints, group, action_pair, source, guard, model, workflow, workflow_ref, id, cause). "
            "A chat log needs none; it takes accepted, feedback, chain …, and messages, answer.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="chat | log: what a JSON Lines file is; default: what its first line looks like."
        ),
    ] = None,
    importer: Annotated[
        str | None, typer.Option("--importer", help="Your own importer, as package.module:attribute.")
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
    workflow: Annotated[
        Path | None,
        typer.Option(
            "--workflow",
            help="A workflow's JSON, a folder of them, or AtomicGuard's web.db: names attempts whose workflow_ref is "
            "the hash of none.",
        ),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Import a log, an exported repository or AtomicGuard stores; again: only what is new or has a new verdict."""
    given: dict[str, object] = {
        "--map": mapping,
        "--format": form,
        "--provenance": provenance,
        "--reviews": reviews,
        "--workflow": workflow,
    }
    read = _reader(source, importer, given)
    with console.progress("import") as on_progress:
        report = read(into, on_progress)
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
    for name, count in report.pending.items():
        console.say(f"no verdict in workflow {name or '(none)'}: {count}")


_Read = Callable[[str, OnProgress], "ImportReport"]
"""Imports a source into the repository that is named."""


def _reader(source: str, importer: str | None, given: dict[str, object]) -> _Read:
    """Return what reads `source`, chosen by what it is; refuse options of the other ones."""
    from guardlearn.dag.importers.repository_lines import salt_of

    if importer is not None:
        _allow(given, "--importer reads it", ("--workflow",))
        return _foreign(source, importer, given)
    if Path(source).is_dir():
        _allow(given, f"{source} is a folder", ("--provenance", "--reviews", "--workflow"))
        return _store(source, given)
    salt = salt_of(source)
    if salt is not None:
        _allow(given, f"{source} is an exported repository", ())
        return _export(source, salt)
    _allow(given, f"{source} is no folder", ("--map", "--format", "--workflow"))
    return _log(source, given)


_PURPOSE = {
    "--map": "a log",
    "--format": "a log",
    "--provenance": "AtomicGuard stores",
    "--reviews": "AtomicGuard stores",
    "--workflow": "attempts from elsewhere",
}


def _workflows(given: dict[str, object]) -> dict[str, str] | None:
    from guardlearn.dag.importers.workflows import read_workflows

    path = given["--workflow"]
    return None if path is None else read_workflows(str(path))


def _allow(given: dict[str, object], because: str, allowed: tuple[str, ...]) -> None:
    for option, value in given.items():
        if value is not None and option not in allowed:
            raise UsageError(f"{option} is for {_PURPOSE[option]}, but {because}; leave it out")


def _foreign(source: str, importer: str, given: dict[str, object]) -> _Read:
    from guardlearn.dag.importers.intake import import_with
    from guardlearn.guards import load_attribute

    loaded, workflows = load_attribute(importer, "importer"), _workflows(given)

    def read(into: str, on_progress: OnProgress) -> ImportReport:
        with _opened(into) as dag:
            return import_with(dag, loaded, source, name=importer, workflows=workflows, on_progress=on_progress)

    return read


def _store(source: str, given: dict[str, object]) -> _Read:
    from guardlearn.dag.importers.atomicguard import import_atomicguard
    from guardlearn.dag.importers.atomicguard_files import find_stores

    find_stores(source)  # before a repository is made for nothing
    workflows = _workflows(given)

    def read(into: str, on_progress: OnProgress) -> ImportReport:
        with _opened(into) as dag:
            return import_atomicguard(
                dag,
                source,
                provenance=str(given["--provenance"] or "links"),
                reviews_path=cast("Path | None", given["--reviews"]),
                workflows=workflows,
                on_progress=on_progress,
            )

    return read


def _export(source: str, salt: str) -> _Read:
    from guardlearn.dag.importers.repository import import_repository

    def read(into: str, on_progress: OnProgress) -> ImportReport:
        with _opened(into, side_salt=salt) as dag:
            return import_repository(dag, source, on_progress)

    return read


def _log(source: str, given: dict[str, object]) -> _Read:
    from guardlearn.dag.importers.chat import import_chat, is_chat
    from guardlearn.dag.importers.chat_line import CHAT_KEYS
    from guardlearn.dag.importers.log import import_log
    from guardlearn.dag.importers.mapping import check_mapping, parse_pairs

    form, pairs = given["--format"], parse_pairs(str(given["--map"] or ""))
    if form not in (None, "chat", "log"):
        raise UsageError(f"unknown format {form!r}; use chat or log")
    chat = form == "chat" or (form is None and not {"spec", "artifact"} & pairs.keys() and is_chat(source))
    if not chat and not pairs:
        raise UsageError(
            f"{source} is taken for a log, which needs --map spec=…,artifact=…,accepted=…,feedback=…,chain=…; "
            "a chat log has messages on each line; for an AtomicGuard store name its folder"
        )
    if chat:
        check_mapping(pairs, (), CHAT_KEYS)
    else:
        check_mapping(pairs)
    take, workflows = import_chat if chat else import_log, _workflows(given)

    def read(into: str, on_progress: OnProgress) -> ImportReport:
        with _opened(into) as dag:
            return take(dag, source, pairs, on_progress, workflows=workflows)

    return read


def _opened(into: str, **how: str) -> ArtifactDAG:
    from guardlearn.dag import ArtifactDAG

    return ArtifactDAG.open_or_create(into, **how)
