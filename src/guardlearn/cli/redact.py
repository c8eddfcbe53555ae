"""`guardlearn redact`: blank an item's texts for good; hashes and verdicts stay."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from guardlearn.cli import console


def command(
    db: Annotated[str, typer.Argument(help="The repository.")],
    item_id: Annotated[str, typer.Argument(metavar="ID", help="An item's id.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it is stored, so do not repeat the secret.")],
    actor: Annotated[str | None, typer.Option("--actor", help="Who says so; default: the user's name.")] = None,
    as_json: console.Json = False,
) -> None:
    """Blank an item's artifact and feedback wherever the repository holds a copy. This cannot be taken back."""
    from guardlearn.dag import ArtifactDAG

    with ArtifactDAG.load(db) as dag:
        seq = dag.redact(item_id, actor or getpass.getuser(), reason)
    if as_json:
        console.emit({"item_id": item_id, "event": seq})
    else:
        console.say(
            f"{item_id} is blank; event {seq} says so. Copies outside (exports, job folders) are yours to remove"
        )
