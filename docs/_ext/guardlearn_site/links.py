"""Relative links: as they stand they work on a code host; here they are made to work in the site."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["DOCS", "OUTSIDE", "ROOT", "prose", "rebased"]

DOCS = Path(__file__).resolve().parents[2]
ROOT = DOCS.parent

OUTSIDE = {
    ROOT / "README.md": DOCS / "texts" / "readme.md",
    ROOT / "CONTRIBUTING.md": DOCS / "texts" / "contributing.md",
    ROOT / "CHANGELOG.md": DOCS / "texts" / "changelog.md",
    ROOT / "AGENTS.md": DOCS / "texts" / "map.md",
    ROOT / "tests" / "data" / "learning_loop_guide.md": DOCS / "texts" / "learning_loop_guide.md",
    ROOT / "tests" / "data" / "errata.md": DOCS / "texts" / "errata.md",
    DOCS / "evidence": DOCS / "real.md",
}
"""What lies outside the pages, a folder too → the page that shows it."""

_LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^ *(`{3,}|~{3,})")


def rebased(text: str, source: Path, page: Path) -> str:
    """Return Markdown of the file `source` with its relative links as the page `page` must write them.

    A link to a file that is not there stays as it is in a page of ours, where Sphinx then complains; in a text that
    came from elsewhere (the guide links to documents beside it) it becomes plain words.
    """
    return "".join(
        _LINK.sub(lambda link: _link(link, source, page), part) if words else part for words, part in prose(text)
    )


def prose(text: str) -> Iterator[tuple[bool, str]]:
    """Yield a text in parts, in order: (True, words) and (False, code), code being fenced blocks and `spans`."""
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence:
            yield False, line
            if mark and mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif mark:
            fence = mark[1]
            yield False, line
        else:
            for number, part in enumerate(re.split(r"(`+[^`]+`+)", line)):
                yield number % 2 == 0, part


def _link(link: re.Match[str], source: Path, page: Path) -> str:
    image, words, target = link.groups()
    path, _, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return link[0]
    found = (source.parent / path).resolve()
    found = OUTSIDE.get(found, found)
    if not found.is_file():
        return link[0] if source == page else words
    relative = Path(os.path.relpath(found, page.parent)).as_posix()
    return f"{image}[{words}]({relative}{'#' + anchor if anchor else ''})"
