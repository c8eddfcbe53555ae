"""Texts that others wrote, as HTML: escaped, whole, with what cannot be seen made visible.

A mark for an invisible character is drawn by the page's style sheet, so the text itself stays what it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

__all__ = ["block", "changes", "folded", "label", "visible"]

_OPEN_LETTERS = 1_500
_OPEN_LINES = 24
_MOST_LETTERS = 12_000
_SUMMARY_LETTERS = 60
# what an HTML file cannot hold as a character; there the mark stands for it
_UNHOLDABLE = frozenset(chr(code) for code in range(32)) - set("\t\n\f\r") | {"\x7f"}


def visible(text: str) -> str:
    """Return `text` as HTML; line ends, tabs and unprintable characters get a mark each."""
    runs = [(printable, "".join(run)) for printable, run in itertools.groupby(text, key=str.isprintable)]
    return "".join(escape(run) if printable else "".join(map(_marked, run)) for printable, run in runs)


def changes(lines: Sequence[str]) -> str:
    """Return the lines of a unified difference as HTML; each keeps its "+" or "-", so that colour is not needed."""
    return f'<div class="code diff">{"".join(map(_change, lines))}</div>'


def block(text: str) -> str:
    """Return a long text in its own box: folded if it is long, cut with a note of how much is left out."""
    kept = text[:_MOST_LETTERS]
    left = len(text) - len(kept)
    note = f'<p class="soft">{left:,} more characters left out.</p>' if left else ""
    if not text:
        return '<p class="soft">(empty)</p>'
    shown = f'<div class="code">{visible(kept)}</div>{note}'
    lines = text.count("\n") + 1
    if len(text) <= _OPEN_LETTERS and lines <= _OPEN_LINES:
        return shown
    start = label(text.strip().split("\n", 1)[0], _SUMMARY_LETTERS)
    return folded(f"{start} ({len(text):,} characters, {lines:,} lines)", shown)


def folded(title: str, content: str, *, unfolded: bool = False) -> str:
    """Return `content` (HTML) under a title (text) that opens and closes it."""
    return f"<details{' open' if unfolded else ''}><summary>{visible(title)}</summary>{content}</details>"


def label(name: str, letters: int) -> str:
    """Return `name` as a short line of text: unprintable characters by their number, the middle left out."""
    plain = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in name)
    if len(plain) <= letters:
        return plain
    tail = letters // 3
    return f"{plain[: letters - tail - 1]}…{plain[-tail:]}"


def _change(line: str) -> str:
    tag = {"+": "ins", "-": "del"}.get(line[:1], "span")
    return f"<{tag}>{visible(line)}\n</{tag}>"


def _marked(letter: str) -> str:
    if letter == "\n":
        return '<span class="nl">\n</span>'
    if letter == "\t":
        return '<span class="tab">\t</span>'
    # a bare CR would be read as LF
    held = "" if letter in _UNHOLDABLE or "\ud800" <= letter <= "\udfff" else letter.replace("\r", "&#13;")
    return f'<span class="ch" data-c="U+{ord(letter):04X}">{held}</span>'
