"""`guardlearn report`: an evaluation or a round as a page, as Markdown for a pull request, or as JSON."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.errors import BackendUnavailable, DataError, ModelError, UsageError

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.evidence import Evidence
    from guardlearn.report import Report
    from guardlearn.report.gathering import Finder

_FILES = {"html": "report.html", "markdown": "report.md", "json": "report.json"}
_DATABASE = "runs.db"
_EVIDENCE_ENDS = (".json",)


def command(
    source: Annotated[
        str, typer.Argument(help="A folder of evaluate, run or demo; an evidence.json; or a repository with rounds.")
    ],
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="Of a repository: which round; default: the last measured.")
    ] = None,
    learner: Annotated[str | None, typer.Option("--learner", help="Whose round, where there are several.")] = None,
    db: Annotated[
        str | None,
        typer.Option("--db", help="Repository that the traces came from, for chains and rounds; FOLDER/runs.db."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Base model, to show rows as tokens; the job's, if here."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Gets report.html, report.md or report.json; made if missing.")
    ] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option("--format", help="html (default with -o) | markdown | json; repeatable with -o."),
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Show an evaluation: without -o and --format as a table, with one --format on stdout, with -o as files."""
    formats = _formats(format_, output)
    with contextlib.ExitStack() as during:
        dag = during.enter_context(opened(database)) if (database := _database(source, db)) else None
        found, notes = _gather(source, dag, round_, learner, model)
    for note in notes:
        console.say(f"note: {note}")
    if output is None:
        _print(found, "json" if as_json else formats[0] if formats else "")
        return
    paths = {name: str(_write(output, name, found)) for name in formats or ["html"]}
    if as_json:
        from guardlearn import report

        console.emit({"headline": report.headline(found.evidence), "files": paths, "notes": notes})
        return
    for path in paths.values():
        console.say(f"report: {path}")


def _formats(given: list[str] | None, output: Path | None) -> list[str]:
    formats = list(dict.fromkeys(given or ()))
    for name in formats:
        if name not in _FILES:
            raise UsageError(f"--format is {name!r}; allowed: {', '.join(_FILES)}")
    if len(formats) > 1 and output is None:
        raise UsageError(f"--format was given {len(formats)} times; without -o one goes to stdout: give one, or -o")
    return formats


def _is_repository(source: str) -> bool:
    """Return whether `source` names a repository rather than an evaluation.

    Raises:
        DataError: there is nothing.
    """
    if "://" in source:
        return True
    place = Path(source)
    if not place.exists():
        raise DataError(f"nothing at {source}; name an evaluation's folder, an evidence.json or a repository")
    if place.is_dir() or place.suffix in _EVIDENCE_ENDS:
        return False
    with place.open("rb") as file:
        return file.read(6) == b"SQLite"


def _database(source: str, db: str | None) -> str | None:
    """Return the repository to look into; None: none is at hand."""
    if _is_repository(source):
        if db is not None:
            raise UsageError("the first argument is a repository, so --db names a second one; leave one of them out")
        return source
    beside = Path(source) / _DATABASE
    return db or (str(beside) if beside.is_file() else None)


def _gather(
    source: str, dag: ArtifactDAG | None, round_: int | None, learner: str | None, model: str | None
) -> tuple[Report, list[str]]:
    from guardlearn.report.gathering import Finder

    with console.late_progress("report") as on_progress:
        finder = Finder(dag, lambda name: _model(model, name), on_progress)
        if dag is not None and _is_repository(source):
            found = _of_round(finder, dag, learner, round_)
        else:
            found = _beside(finder, dag, Path(source), round_, learner)
    return found, finder.notes


def _beside(finder: Finder, dag: ArtifactDAG | None, place: Path, round_: int | None, learner: str | None) -> Report:
    import msgspec

    from guardlearn.report.gathering import round_of_file

    if round_ is not None or learner is not None:
        raise UsageError(f"--round and --learner choose within a repository, and {place} is none; leave them out")
    file = place / "evidence.json" if place.is_dir() else place
    kept = round_of_file(dag, file) if dag is not None else None
    if dag is not None and kept is not None:
        return _of_round(finder, dag, *kept)
    found = finder.beside(place)
    return found if found.limits else msgspec.structs.replace(found, limits=_demo_limits(found.evidence))


def _of_round(finder: Finder, dag: ArtifactDAG, learner: str | None, round_: int | None) -> Report:
    import msgspec

    from guardlearn.lineage import one_learner
    from guardlearn.loop.history import history

    chosen = one_learner(dag, learner)
    if chosen is None:
        raise UsageError(f"{dag.target} has no rounds; name an evaluation's folder, or run: guardlearn loop")
    found = finder.of_round(chosen, round_, history(dag, chosen))
    return msgspec.structs.replace(found, limits=_demo_limits(found.evidence))


def _demo_limits(evidence: Evidence) -> tuple[str, ...]:
    """Return what no measurement on the demo's own held-out specifications shows, whoever made it."""
    import msgspec

    from guardlearn.demo.run import LIMITS
    from guardlearn.demo.tasks import specifications
    from guardlearn.digests import digest_json

    for swap in (False, True):
        specs = [msgspec.to_builtins(spec) for spec in specifications("held_out", swap)]
        if evidence.digests.get("specifications") == digest_json(specs):
            return LIMITS
    return ()


def _model(given: str | None, name: str) -> Path | None:
    """Return the folder of the model that was given, else the job's if it needs no download; None: it is not here."""
    from guardlearn.models import resolve_model

    if given is not None:
        return resolve_model(given)
    if name != "demo" and not Path(name).is_dir():
        return None
    try:
        return resolve_model(name)
    except (ModelError, BackendUnavailable):
        return None


def _print(found: Report, format_: str) -> None:
    from guardlearn import report

    if not format_:
        report.terminal(found.evidence)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(_rendered(found, format_))
    sys.stdout.buffer.flush()


def _write(folder: Path, format_: str, found: Report) -> Path:
    """Write one rendering, whole or not at all."""
    path = folder / _FILES[format_]
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(_rendered(found, format_))
    staged.replace(path)
    return path


def _rendered(found: Report, format_: str) -> bytes:
    from guardlearn import report

    if format_ == "json":
        return report.report_json(found).encode()
    render = report.html if format_ == "html" else report.markdown
    text = render(found.evidence, story=found.story, limits=found.limits, round_story=found.round_story)
    # an identifier may hold what UTF-8 cannot; it is then shown escaped rather than not at all
    return text.encode("utf-8", "backslashreplace")
