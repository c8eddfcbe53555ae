"""`guardlearn amend`: a human answers for the generator."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.options import GuardOption, SandboxOption
from guardlearn.errors import DataError, UsageError
from guardlearn.types import ArtifactStatus, Guard, RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG


def command(
    db: Annotated[str, typer.Argument(help="The repository.")],
    guard: GuardOption,
    item_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Any attempt of the chain; default: the oldest unsolved chain.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="Without an ID: the oldest unsolved chain among these.")
    ] = None,
    specs: Annotated[
        Path | None, typer.Option("--specs", help="The specification file, for what the guard reads in its metadata.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Read the artifact from a file, - for standard input; no editor.")
    ] = None,
    spec_amendment: Annotated[
        str | None, typer.Option("--spec-amendment", help="What to add to the specification.")
    ] = None,
    constraints_amendment: Annotated[
        str | None, typer.Option("--constraints-amendment", help="What to add to the constraints.")
    ] = None,
    amend_spec: Annotated[
        bool, typer.Option("--amend-spec", help="Write what to add to the specification in the editor.")
    ] = False,
    sandbox: SandboxOption = "auto",
    as_json: console.Json = False,
) -> None:
    """Correct the last rejected artifact of a chain in $VISUAL or $EDITOR; the guard judges, the answer is stored.

    Exit code 1: the answer was not accepted. Every answer that was judged is stored, as the next attempt of the chain.
    """
    from guardlearn import amending
    from guardlearn.cli.actor import actor
    from guardlearn.contexts import KnownSpecifications
    from guardlearn.dag import ArtifactDAG
    from guardlearn.guards import load_guard

    if amend_spec and (spec_amendment is not None or source):
        raise UsageError("--amend-spec opens the editor: leave it out, or leave --spec-amendment and --from out")
    loaded = load_guard(guard)
    known = KnownSpecifications(console.read_specifications(specs) if specs else [])
    with ArtifactDAG.load(db) as dag:
        rejected = _chosen(dag, item_id, loaded, where)
        _say_others(dag, rejected)
        given = {"specification": spec_amendment or "", "constraints": constraints_amendment or ""}
        while True:
            with contextlib.ExitStack() as editing:
                if amend_spec:
                    given["specification"] = _added(editing, rejected)
                artifact = _read(source) if source else _corrected(editing, rejected)
                amendment = amending.Amendment(artifact=artifact, **given)
                stored = amending.amend(dag, rejected, amendment, loaded, known=known, actor=actor())
            if stored.status is not ArtifactStatus.REJECTED or source or not _go_on(stored):
                break
            rejected, given, amend_spec = stored, {}, False  # what was amended stays amended
    _say(stored, as_json)
    if stored.status is not ArtifactStatus.ACCEPTED:
        raise typer.Exit(1)


def _chosen(dag: ArtifactDAG, item_id: str | None, guard: Guard, where: str | None) -> RepositoryItem:
    """Return the rejected attempt that is answered.

    Raises:
        UsageError: an ID and a predicate were given, or nothing is left to answer.
    """
    from guardlearn import predicates
    from guardlearn.amending import last_rejected, unanswered

    if item_id is not None and where is not None:
        raise UsageError("an ID and --where exclude each other; leave one of them out")
    chosen = predicates.parse(where) if where else None
    found = last_rejected(dag, item_id) if item_id is not None else unanswered(dag, guard, chosen)
    if found is None:
        raise UsageError(f"{dag.target} has no chain left that {guard.name!r} rejected and nobody solved; name an ID")
    return found


def _say_others(dag: ArtifactDAG, rejected: RepositoryItem) -> None:
    from guardlearn.amending import answered_by

    console.say(f"answering {rejected.id} (attempt {rejected.facts.attempt if rejected.facts else 1})")
    for other in answered_by(dag, rejected):
        who = other.metadata.get("actor") or "somebody"
        console.say(f"{who} has answered it: {other.id}, {other.status.value}; yours becomes another child of it")


def _corrected(editing: contextlib.ExitStack, rejected: RepositoryItem) -> str:
    """Return what a human makes of the rejected artifact.

    Raises:
        UsageError: there is no editor, or it failed.
    """
    from guardlearn.cli.editor import edited

    said = f"The guard {rejected.guard} rejected what stands above".replace("  ", " ")
    cause = f" ({rejected.cause})" if rejected.cause else ""
    parts = [f"{said}{cause}:", rejected.feedback or "(no feedback)", "Specification:", rejected.specification]
    parts += ["Constraints:", rejected.constraints] if rejected.constraints else []
    return editing.enter_context(edited(rejected.artifact, "\n\n".join(parts), "artifact"))


def _added(editing: contextlib.ExitStack, rejected: RepositoryItem) -> str:
    """Return what a human adds to the specification.

    Raises:
        UsageError: nothing was written, or there is no editor, or it failed.
    """
    from guardlearn.cli.editor import edited

    about = "Write above what is added to this specification; what it says already stays:"
    addition = editing.enter_context(edited("", f"{about}\n\n{rejected.specification}", "specification")).strip()
    if not addition:
        raise UsageError("nothing was added to the specification; nothing was stored")
    return addition


def _read(source: Path) -> str:
    try:
        body = sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
        return body.decode("utf-8")
    except OSError as error:
        raise UsageError(f"--from {source}: {error.strerror}; give a file, or - for standard input") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--from {source} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _go_on(stored: RepositoryItem) -> bool:
    """Tell a human that the answer was rejected; on a terminal, ask whether to edit it again."""
    console.say(f"rejected, stored as {stored.id}: {stored.feedback}")
    return sys.stdin.isatty() and typer.confirm("edit again?", default=True, err=True)


def _say(stored: RepositoryItem, as_json: bool) -> None:
    if as_json:
        console.emit(stored)
        return
    feedback = f": {stored.feedback}" if stored.feedback else ""
    verdict = "no verdict" if stored.status is ArtifactStatus.PENDING else stored.status.value
    console.say(f"{verdict}{feedback}")
    print(stored.id)
