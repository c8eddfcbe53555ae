"""What the report's pages share: one HTML document without script and network, and a figure with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from guardlearn.errors import BackendUnavailable
from guardlearn.report.style import STYLE
from guardlearn.report.texts import folded

__all__ = ["Figure", "document", "unbroken"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, sections: Sequence[str]) -> str:
    """Return a page; `title` is escaped here, the sections are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>guardlearn: {escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def unbroken(sentence: str) -> str:
    """Return a sentence as HTML whose lines do not break before a percent sign."""
    return escape(sentence).replace(" %", "&nbsp;%")


class Figure(NamedTuple):
    """A figure of a page and its numbers."""

    title: str
    keys: list[tuple[str, str]]
    """(style, words) of what is drawn in which colour."""
    draw: Callable[[], str]
    summary: str
    numbers: str
    note: str = ""
    """What is not drawn."""

    def html(self) -> tuple[str, str]:
        """Return (the figure, what would add its drawing, or "")."""
        try:
            drawn, missing = self.draw(), ""
        except BackendUnavailable as error:
            drawn, missing = "", str(error)
        keys = "".join(f'<span class="{style}">{escape(said)}</span>' for style, said in self.keys)
        caption = f"<figcaption>{escape(self.title)}<div>{keys}</div></figcaption>"
        note = f'<p class="soft">{escape(self.note)}</p>' if self.note and drawn else ""
        numbers = folded(self.summary, self.numbers, unfolded=not drawn)
        return f"<figure>{caption}{drawn}{note}{numbers}</figure>", missing
