"""`guardlearn upgrade`: an older repository becomes one of this version, checked before it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from guardlearn.cli import console


def command(
    db: Annotated[str, typer.Argument(help="The repository.")],
    keep: Annotated[
        Path | None,
        typer.Option("--backup", help="Where a file is copied to first, as it is [default: DB.before-upgrade]."),
    ] = None,
    no_backup: Annotated[bool, typer.Option("--no-backup", help="Do not copy it first.")] = False,
    as_json: console.Json = False,
) -> None:
    """Upgrade a repository of an older guardlearn: all digests are recomputed, then it is committed, or left as it was.

    PostgreSQL: run pg_dump yourself first, and say --no-backup.
    """
    from guardlearn.dag.upgrade import upgrade
    from guardlearn.errors import UsageError

    if keep is not None and no_backup:
        raise UsageError("--backup and --no-backup exclude each other")
    if keep is None and not no_backup:
        if "://" in db:
            raise UsageError("a URL has no place beside it for a copy: give --backup FILE (SQLite), or --no-backup")
        keep = Path(f"{db}.before-upgrade")
    with console.progress("verify") as update:
        report = upgrade(db, keep=keep, on_progress=update)
    if as_json:
        console.emit(msgspec.to_builtins(report))
    elif report.before == report.after:
        console.say(f"{db} is of schema version {report.after} already; nothing was done")
    else:
        kept = f"; as it was: {report.copy}" if report.copy else ""
        console.say(
            f"{db}: schema version {report.before} became {report.after}, "
            f"{report.items} items and {report.events} events verified{kept}"
        )
