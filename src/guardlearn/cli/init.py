"""`guardlearn init`: write a project, ready for a first collection."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from guardlearn.cli import console
from guardlearn.errors import UsageError

if TYPE_CHECKING:
    from guardlearn.types import Specification

KINDS = ("pytest", "json", "command")
_TEMPLATE = ".template"  # so that no tool takes the files of a project for guardlearn's own


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where; made if it is not there.")] = Path(),
    guard: Annotated[
        str, typer.Option("--guard", help="What judges: pytest (a test suite) | json (a schema) | command (a program).")
    ] = "pytest",
    tests: Annotated[
        Path | None, typer.Option("--tests", help="Your pytest suite: each test file becomes a specification.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    as_json: console.Json = False,
) -> None:
    """Write guardlearn.toml, guards.py and specs.jsonl with an example that runs, and say what to run next."""
    if guard not in KINDS:
        raise UsageError(f"unknown guard {guard!r}; allowed are: {', '.join(KINDS)}")
    if tests is not None and guard != "pytest":
        raise UsageError(f"--tests needs --guard pytest, not {guard}")
    files = _project(guard, tests)
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        raise UsageError(
            f"{folder} has {', '.join(there)} already; nothing was written: name another folder, or give --force"
        )
    for name, text in files.items():
        _write(folder / name, text, force)
    commands = _next(folder)
    if as_json:
        console.emit({"folder": str(folder), "files": sorted(files), "next": commands})
        return
    for name in sorted(files):
        console.say(f"wrote {folder / name}")
    console.say("next:")
    print("\n".join(commands))


def _project(guard: str, tests: Path | None) -> dict[str, str]:
    """Return the files of a project by relative path."""
    from guardlearn.cli.from_tests import DEFAULT_MODULE, specifications_of, suite_files

    files = _texts(resources.files("guardlearn.cli") / "projects" / guard)
    if guard != "pytest":
        return files
    module, suite = DEFAULT_MODULE, {name: text for name, text in files.items() if name.startswith("tests/")}
    if tests is not None:
        files = {name: text for name, text in files.items() if name not in suite}
        suite = suite_files(tests)
        module = _module(suite)
    else:
        suite = {name.removeprefix("tests/"): text for name, text in suite.items()}
    files["guardlearn.toml"] = files["guardlearn.toml"].replace("{module}", module)
    return files | {"specs.jsonl": _lines(specifications_of(suite, module))}


def _texts(folder: Traversable, within: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        if entry.is_dir():
            found |= _texts(entry, f"{within}{entry.name}/")
        else:
            found[within + entry.name.removesuffix(_TEMPLATE)] = entry.read_text(encoding="utf-8")
    return found


def _module(suite: dict[str, str]) -> str:
    """Return the name that a suite imports the code under test by, and say how sure that is."""
    from guardlearn.cli.from_tests import DEFAULT_MODULE, imported_modules

    common = sorted(imported_modules(suite))
    if len(common) == 1 and common[0].isidentifier():
        console.say(f"the tests import {common[0]!r}: an answer takes its place")
        return common[0]
    imports = f"all import {', '.join(common)}" if common else "have no import in common"
    console.say(
        f"the tests {imports}: let each import the code it tests from {DEFAULT_MODULE!r}, or from one module that "
        "`module` in guardlearn.toml then names, and run this again with --force"
    )
    return DEFAULT_MODULE


def _lines(specifications: Sequence[Specification]) -> str:
    encoded = [msgspec.json.encode(msgspec.structs.asdict(each)) for each in specifications]
    return "".join(f"{line.decode()}\n" for line in encoded)


def _write(path: Path, text: str, force: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if force else "x", encoding="utf-8", newline="\n") as file:
        file.write(text)


def _next(folder: Path) -> list[str]:
    """Return the commands of a first collection, as they can be pasted."""
    go = [] if folder == Path() else [f"cd {shlex.quote(str(folder))}"]
    return [
        *go,
        "guardlearn doctor",
        "guardlearn collect specs.jsonl --db runs.db --guard checked --model demo",
        "guardlearn stats runs.db",
        "guardlearn audit runs.db --guard checked --specs specs.jsonl",
    ]
