"""The command line's reference, from its own help: nothing about a command is written twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from guardlearn_site.links import prose

__all__ = ["commands"]


def commands() -> str:
    """Return a section for each command and subcommand, in the order of `guardlearn --help`."""
    import typer.main

    from guardlearn.cli import app

    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="guardlearn")
    return "\n".join(line for name, command in group.commands.items() for line in _section(command, name, context, 2))


def _section(command: Any, name: str, parent: Any, level: int) -> Iterator[str]:
    context = command.context_class(command, info_name=name, parent=parent)
    yield from (f"{'#' * level} {_typed(context.command_path)}", "", "```")
    yield _typed(command.get_usage(context).removeprefix("Usage: "))
    yield from ("```", "", *(_plain(part) for part in (command.help or "").splitlines()), "")
    rows = [_row(each) for each in command.params if not getattr(each, "hidden", False)]
    if rows:
        yield from ("| | | default |", "|---|---|---|", *rows, "")
    for inner, subcommand in getattr(command, "commands", {}).items():
        yield from _section(subcommand, inner, context, level + 1)


def _row(parameter: Any) -> str:
    """Return one row: the option as it is typed, what it says, its default or that it is required."""
    option = parameter.opts[0].startswith("-")
    takes = "" if parameter.__dict__.get("is_flag") or not option else f" {_kind(parameter)}"
    names = ", ".join(f"`{each}`" for each in [*parameter.opts, *parameter.secondary_opts])
    shown = names if option else f"`{parameter.metavar or parameter.name.upper()}`"
    default = "" if parameter.default in (None, False, (), []) or callable(parameter.default) else parameter.default
    value = "required" if parameter.required else (f"`{_cell(str(default))}`" if default != "" else "")
    return f"| {shown}{takes} | {_cell(_plain(parameter.help or ''))} | {value} |"


def _kind(parameter: Any) -> str:
    """Return what an option takes: its type, and the range where there is one."""
    annotation = parameter.type_descriptor.annotation
    name = getattr(annotation, "__name__", str(annotation)).removeprefix("pathlib.").lower()
    low, high = parameter.min, parameter.max
    bounds = f" ≥ {low}" if low is not None and high is None else f" {low} to {high}" if high is not None else ""
    return f"{name}{bounds}"


def _typed(text: str) -> str:
    """Return a usage line with what stands for something in capitals, as people write it: `{db}` becomes DB."""
    return re.sub(r"\{(\w+)\}", lambda name: name[1].upper(), text)


def _plain(text: str) -> str:
    """Return help so that Markdown shows it as it is, and what stands in backticks as code."""
    text = text.replace("\\[", "[")  # a bracket that the terminal's own markup must leave alone
    return "".join(re.sub(r"([\\`*_\[\]<])", r"\\\1", part) if words else part for words, part in prose(text))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
