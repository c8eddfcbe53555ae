"""What the report's pages share: one HTML document without script and network, its sections, figures with numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from guardlearn.errors import BackendUnavailable
from guardlearn.printing import printable
from guardlearn.report.style import STYLE
from guardlearn.report.texts import folded, visible

__all__ = ["Figure", "Section", "contents", "document", "figures_of", "unbroken"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, sections: Sequence[str]) -> str:
    """Return a page; `title` is escaped here, the sections are HTML already, the first of them with the `<h1>`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>guardlearn: {escape(printable(title))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


class Section(NamedTuple):
    """A part of a page under a heading of its own."""

    name: str
    """Where links to it lead; letters and "-"."""
    title: str
    content: str
    """HTML; "": there is nothing to show, and the section is left out."""

    def html(self) -> str:
        """Return the section, "" where it has no content."""
        if not self.content:
            return ""
        return f'<section id="{self.name}">\n<h2>{escape(self.title)}</h2>\n{self.content}\n</section>'


def contents(sections: Sequence[Section]) -> str:
    """Return links to the sections that are there; "" where there are not two."""
    there = [section for section in sections if section.content]
    if len(there) < 2:
        return ""
    links = "".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in there)
    return f'<nav class="contents" aria-label="Sections of this page"><ul>{links}</ul></nav>'


def figures_of(figures: Sequence[Figure], missing: set[str], beside: str = "") -> str:
    """Return figures side by side where there is room.

    Args:
        figures: what is drawn.
        missing: gets what would add drawings that could not be made, so that a page says it once.
        beside: more of the same kind, HTML.
    """
    drawn = [figure.html() for figure in figures]
    missing.update(note for _, note in drawn if note)
    shown = "".join(each for each, _ in drawn) + beside
    return f'<div class="figures">{shown}</div>' if shown else ""


def unbroken(sentence: str) -> str:
    """Return a sentence as HTML whose lines do not break before a percent sign."""
    return visible(sentence).replace(" %", "&nbsp;%")


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
        note = f'<p class="soft">{visible(self.note)}</p>' if self.note and drawn else ""
        numbers = folded(self.summary, self.numbers, unfolded=not drawn)
        return f"<figure>{caption}{drawn}{note}{numbers}</figure>", missing
