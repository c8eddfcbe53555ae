"""One evidence object, several renderings: a terminal table, a one-file HTML page, Markdown, JSON.

A rendering computes nothing that is not in the evidence and hides nothing that it says about its own limits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from guardlearn.evidence import Evidence
from guardlearn.report.files import Report, load, load_report, report_json, to_json
from guardlearn.report.markdown import markdown
from guardlearn.report.page import html
from guardlearn.report.round_stories import RoundStory, round_story
from guardlearn.report.stories import Story, story, story_of_adapter
from guardlearn.report.terminal import terminal
from guardlearn.report.words import headline

__all__ = [
    "EVIDENCE",
    "PAGE",
    "Report",
    "RoundStory",
    "Story",
    "headline",
    "html",
    "load",
    "load_report",
    "markdown",
    "report_json",
    "round_story",
    "story",
    "story_of_adapter",
    "terminal",
    "to_json",
    "write",
]

EVIDENCE = "evidence.json"
PAGE = "report.html"


def write(folder: Path, evidence: Evidence, *, story: Story | None = None, limits: Sequence[str] = ()) -> Path:
    """Write `evidence.json` and `report.html` into `folder`, each whole or not at all; return the page's path.

    Args:
        folder: made if missing.
        evidence: what was measured.
        story: how the adapter was made, where that is known.
        limits: what the figures do not show, in sentences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / EVIDENCE, to_json(evidence).encode())
    # an identifier may hold what UTF-8 cannot; it is then shown escaped rather than not at all
    _replace(folder / PAGE, html(evidence, story=story, limits=limits).encode("utf-8", "backslashreplace"))
    return folder / PAGE


def _replace(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    staged.replace(path)
