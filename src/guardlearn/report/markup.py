r"""Markdown of texts that others wrote: shown as they are, in no way acting.

Foreign text stands in a code span or in a fenced block longer than any fence inside it, or, within a sentence, with all
escaped that Markdown, HTML or a code host would act on (`@name` and `#1` notify and link there). Control characters are
written out, as in \x1b. Rules: CommonMark 0.31.2 (spec.commonmark.org), tables as in GitHub Flavored Markdown 0.29.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from guardlearn.printing import printable
from guardlearn.report.texts import label

__all__ = ["code", "fenced", "folded", "grid", "plain"]

_CODE_LETTERS = 120
_LEAST_FENCE = 3
_TICKS = re.compile("`+")
_ACTING = re.compile(r"[\\`*_\[\]~|!^$]")
_OPENING = re.compile(r"[-+](?= |$)|-(?=[- ]*$)|#(?=#*(?: |$))|\d+(?=[.)](?: |$))")
"""What at the start of a line begins a list, a rule or a heading."""
_JOINED = re.compile(r"[@#](?=\w)|:(?=//|\w+:)|\bwww(?=\.)", re.IGNORECASE)
"""What a code host makes a link, a notification or a picture of; an empty comment after it parts it."""


def code(text: str, letters: int = _CODE_LETTERS) -> str:
    """Return `text` as inline code on one line, its middle left out where it is longer than `letters`.

    A code span holds everything but what ends a table's cell: then it is HTML's `<code>` with every sign as a number.
    """
    shown = label(text, letters)
    if not shown.strip():
        return "(empty)"
    if "|" in shown:
        return f"<code>{''.join(map(_numbered, shown))}</code>"
    ticks = "`" * (_longest_ticks(shown) + 1)
    pad = " " if {shown[0], shown[-1]} & {"`", " "} else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def plain(sentence: str) -> str:
    """Return a sentence of ours that may hold foreign names, as Markdown that reads as it stands, on one line."""
    shown = " ".join(printable(sentence).split())
    opening = _OPENING.match(shown)
    if opening is None:
        return _quiet(shown)
    number = opening[0] if opening[0].isdigit() else ""
    return f"{number}\\{_quiet(shown[len(number) :])}"


def fenced(text: str) -> str:
    """Return a block of code whose fence is longer than any inside it."""
    shown = printable(text)
    fence = "`" * max(_LEAST_FENCE, _longest_ticks(shown) + 1)
    return f"{fence}\n{shown.removesuffix(chr(10))}\n{fence}"


def folded(title: str, content: str) -> str:
    """Return Markdown under a title (text of ours) that opens and closes it."""
    return f"<details>\n<summary>{escape(title)}</summary>\n\n{content}\n\n</details>"


def grid(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Return a table.

    Args:
        columns: names, ours.
        rows: cells, Markdown on one line each.
        numbers: right-align all columns but the first.
    """
    rule = [":--", *(["--:" if numbers else ":--"] * (len(columns) - 1))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))


def _longest_ticks(text: str) -> int:
    return max(map(len, _TICKS.findall(text)), default=0)


def _numbered(letter: str) -> str:
    return letter if letter.isalnum() or letter == " " or not letter.isascii() else f"&#{ord(letter)};"


def _quiet(text: str) -> str:
    marked, done = [], 0
    for joined in _JOINED.finditer(text):
        marked += [_literal(text[done : joined.end()]), "<!-- -->"]
        done = joined.end()
    return "".join([*marked, _literal(text[done:])])


def _literal(text: str) -> str:
    return _ACTING.sub(r"\\\g<0>", escape(text, quote=False))
