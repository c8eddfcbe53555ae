"""docs/guide.md holds: every line of the guide, every erratum, and what is named there exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import guardlearn

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "guide.md").read_text(encoding="utf-8")
GUIDE = (TESTS / "data" / "learning_loop_guide.md").read_text(encoding="utf-8")
ERRATA = (TESTS / "data" / "errata.md").read_text(encoding="utf-8")
LATER = {"3/7", "4/7", "5/7", "6/7", "7/7"}


def table(heading: str) -> list[list[str]]:
    """Rows of the table under a heading, cells stripped."""
    text = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


SECTIONS, FAULTS = table("Sections"), table("Errata")


def test_the_ranges_cover_the_guide_line_by_line():
    covered = []
    for first, last in (row[0].split("-") for row in SECTIONS):
        covered += range(int(first), int(last) + 1)
    assert covered == list(range(1, len(GUIDE.splitlines()) + 1))


def test_every_function_of_the_guide_stands_in_its_row():
    for number, line in enumerate(GUIDE.splitlines(), start=1):
        if found := re.match(r"def (\w+)\(", line):
            (row,) = [row for row in SECTIONS if int(row[0].split("-")[0]) <= number <= int(row[0].split("-")[1])]
            assert f"guardlearn.{found[1]}" in row[2], (number, line)


def test_every_erratum_has_its_row():
    assert [row[0] for row in FAULTS] == re.findall(r"^(\d+b?)\. ", ERRATA, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("row", SECTIONS + FAULTS, ids=lambda row: row[0])
def test_what_a_row_names_exists(row):
    for name in re.findall(r"`guardlearn\.(\w+(?:\.\w+)?)", row[2]):
        thing = guardlearn
        for part in name.split("."):
            thing = getattr(thing, part)
    held = row[-1]
    if held.startswith("open: "):
        assert held.removeprefix("open: ") in LATER, row
        return
    if held == "text":
        lines = GUIDE.splitlines()[
            slice(*[int(each) - add for each, add in zip(row[0].split("-"), (1, 0), strict=True)])
        ]
        assert not any(line.startswith(("def ", "```", "class ")) for line in lines), row
        return
    for reference in held.split(", "):
        file, test = reference.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, reference


@pytest.mark.slow
def test_every_command_exists():
    import typer.main

    app = importlib.import_module("guardlearn.cli").app
    known = {command.name: command for command in app.registered_commands}
    for command in re.findall(r"`guardlearn ([a-z]+)((?: [^`]*)?)`", PAGE):
        assert command[0] in known
        options = re.findall(r"--[a-z-]+", command[1])
        group = typer.main.get_command(app)
        given = {name for each in group.commands[command[0]].params for name in each.opts}
        assert set(options) <= given, command
