"""What is written for people and programs, with nothing in it that a terminal would act on."""

from __future__ import annotations

import json
from typing import Any

import msgspec

__all__ = ["json_text", "printable"]


def printable(text: str) -> str:
    r"""Return a text of others with every unprintable character but line ends and tabs written out, as in \x1b.

    So that escape sequences in it are read, not run by the terminal, and what has no width is seen.
    """
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text
    )


def json_text(value: Any) -> str:
    r"""Return JSON, indented, with a line end; records become objects, enums their values.

    What a terminal or the reading direction would act on (C1 controls, overrides) stands as its number, as in \u202e;
    so does a lone surrogate, which ℛ keeps and UTF-8 cannot hold.
    """
    try:
        text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value, str_keys=True), indent=2)
    return "\n".join(line if line.isprintable() else "".join(map(_escaped, line)) for line in text.split("\n")) + "\n"


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]
