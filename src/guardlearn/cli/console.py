"""What every command shares: one JSON object or a table on stdout; progress with ETA and errors on stderr."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from guardlearn.errors import DataError
from guardlearn.printing import json_text, printable
from guardlearn.types import OnProgress

__all__ = ["Json", "emit", "late_progress", "progress", "read_specifications", "say", "table"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
"""The option every command takes."""

_LINE_EVERY_SECONDS = 5.0
_QUIET_SECONDS = 2.0
_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")


def emit(value: Any) -> None:
    """Print one JSON object on stdout (records become objects, enums their values)."""
    sys.stdout.write(json_text(value))
    sys.stdout.flush()


def say(text: str) -> None:
    """Print a line for people on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table on stdout; columns of numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out, grid = Console(), Table(header_style="bold")
    for index, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        grid.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text("" if cell is None else printable(str(cell))) for cell in row))
    shown = printable(_PASSWORD.sub(r"\1***@", title))  # a title may name a database by its URL
    out.print(Text(shown, "table.title"), soft_wrap=True)  # as a table's title it would fold to its width
    out.print(grid)


@contextlib.contextmanager
def progress(label: str) -> Iterator[OnProgress]:
    """Show a step's progress on stderr: a live bar on a terminal, else a line every few seconds."""
    if sys.stderr.isatty():
        with _bar(label) as update:
            yield update
    else:
        yield _Lines(label)


@contextlib.contextmanager
def late_progress(label: str) -> Iterator[OnProgress]:
    """Show a step's progress once it has taken longer than a moment: most calls show nothing."""
    started, shown = time.monotonic(), list[OnProgress]()
    with contextlib.ExitStack() as stack:

        def update(done: int, total: int, note: str) -> None:
            if not shown and time.monotonic() - started > _QUIET_SECONDS:
                shown.append(stack.enter_context(progress(label)))
            for show in shown:
                show(done, total, note)

        yield update


@contextlib.contextmanager
def _bar(label: str) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


class _Lines:
    """Progress for a log file: the first state, then a line every few seconds, then the last one."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = self.last = time.monotonic()
        self.first_done: int | None = None

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if self.first_done is None:
            self.first_done = done
        elif now - self.last < _LINE_EVERY_SECONDS and done < total:
            return
        self.last = now
        elapsed, advanced = now - self.started, done - self.first_done
        eta = f", ETA {elapsed / advanced * (total - done):.0f} s" if advanced > 0 and done < total else ""
        say(f"{self.label}: {done}/{total}, {elapsed:.0f} s{eta}{f' ({note})' if note else ''}")


def read_specifications(path: Path) -> list[Any]:
    """Read a specification file: one JSON object a line (see `guardlearn.types.Specification`).

    Raises:
        DataError: no such file, a malformed line (its number is named), or no line at all.
    """
    from guardlearn.types import Specification

    if not path.is_file():
        raise DataError(f"no specification file at {path}; give a JSON Lines file with id and specification a line")
    decoder = msgspec.json.Decoder(Specification)
    specifications = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            specifications.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            raise DataError(f"{path}, line {number}: {error}; a line is {_EXAMPLE}") from error
    if not specifications:
        raise DataError(f"{path} holds no specification; a line is {_EXAMPLE}")
    return specifications


_EXAMPLE = '{"id": "t1", "specification": "…", "group": "…"}'


def flat(mapping: Mapping[str, int]) -> str:
    """Return counts as one line, largest first."""
    return ", ".join(f"{name} {count}" for name, count in sorted(mapping.items(), key=lambda pair: -pair[1])) or "none"
