"""Docstrings are plain text with `code` and indented programs; this makes of them what Sphinx's autodoc reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["lines_marked_up", "marked_up", "process"]

_CODE = re.compile(r"(`+)([^`]+)\1")
_BEFORE, _AFTER = " \n([{<\"'-/:", " \n)]}>\"'-/:.,;!?"
"""What may stand beside ``code`` in reStructuredText without more; "" is in both."""
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note):$")
_ARGUMENT = re.compile(r"^ +\*{0,2}[\w, *]+(?: \([^)]*\))?: ")


def marked_up(text: str) -> str:
    """Return words of a docstring in which nothing is markup but `code`, in reStructuredText.

    What would be markup there and is none here (`*`, `|`, a word's trailing `_`) is escaped.
    """
    parts, last = [], 0
    for code in _CODE.finditer(text):
        parts.append(_escaped(text[last : code.start()]))
        before, after = text[: code.start()][-1:], text[code.end() :][:1]
        inner = code[2].strip()
        parts.append("\\ " * (before not in _BEFORE) + f"``{inner}``" + "\\ " * (after not in _AFTER))
        last = code.end()
    return "".join([*parts, _escaped(text[last:])])


def _escaped(text: str) -> str:
    text = re.sub(r"([\\*|`])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def lines_marked_up(lines: Iterable[str]) -> Iterator[str]:
    """Yield a whole docstring's lines: what is indented after an empty line, outside a section, is a program."""
    section = program = False
    last = ""
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            section, program = bool(_SECTION.match(line)), False
        elif indented and not section and not program and not last:
            program = True
            yield from ("::", "")
        if program or _SECTION.match(line):
            yield line
        else:
            name = _ARGUMENT.match(line) if section else None
            kept = name.end() if name else 0
            yield line[:kept] + marked_up(line[kept:])
        last = line.strip()


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Autodoc's event: change the lines in place."""
    # napoleon takes the words before a colon in an attribute's first line for its type; so that line is a comment
    first = ["..", ""] if what in ("attribute", "data", "property") else []
    lines[:] = [*first, *lines_marked_up(lines)]
