"""`guardlearn backup`: a copy of the repository as of now, while writers go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardlearn.cli import console


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    to: Annotated[Path, typer.Argument(help="Where the copy goes; must not exist.")],
    as_json: console.Json = False,
) -> None:
    """Copy a repository in an SQLite file; for PostgreSQL it says what to run."""
    from guardlearn.dag.backup import backup

    size = backup(db, to)
    if as_json:
        console.emit({"from": db, "to": str(to), "bytes": size})
    else:
        console.say(f"{to}: {size} bytes; `guardlearn verify {to}` checks every digest")
