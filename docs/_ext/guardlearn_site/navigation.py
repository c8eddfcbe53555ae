"""The order of the pages: that of the links in docs/index.md, section by section."""

from __future__ import annotations

import re

__all__ = ["sections", "toctrees"]


def sections(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return heading → (title, page without `.md`) of its list, in order; sections without a list are left out."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        pages = re.findall(r"^- \[([^\]]*)\]\(([^)#:]+)\.md\)", body, re.MULTILINE)
        if pages:
            found[heading.strip()] = pages
    return found


def toctrees(text: str) -> str:
    """Return a hidden table of contents for each section, as Sphinx wants it."""
    return "".join(
        f"\n\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n" + _entries(pages) + "\n```\n"
        for heading, pages in sections(text).items()
    )


def _entries(pages: list[tuple[str, str]]) -> str:
    return "\n".join(f"{title.replace('`', '')} <{page}>" for title, page in pages)
