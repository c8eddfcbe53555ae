"""One evidence object, several renderings: a terminal table, a one-file HTML page, JSON.

A rendering computes nothing that is not in the evidence and hides nothing that it says about its own limits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from guardlearn.errors import DataError
from guardlearn.evidence import Evidence
from guardlearn.report.page import html
from guardlearn.report.stories import Story, story, story_of_adapter
from guardlearn.report.terminal import terminal
from guardlearn.report.words import headline

__all__ = [
    "EVIDENCE",
    "PAGE",
    "Story",
    "headline",
    "html",
    "load",
    "story",
    "story_of_adapter",
    "terminal",
    "to_json",
    "write",
]

EVIDENCE = "evidence.json"
PAGE = "report.html"


def to_json(evidence: Evidence) -> str:
    """Return the evidence as JSON, indented; it holds no inf and no nan."""
    try:
        return msgspec.json.format(msgspec.json.encode(evidence), indent=2).decode() + "\n"
    except UnicodeEncodeError:  # a lone surrogate in a name; JSON can only give its number
        return json.dumps(msgspec.to_builtins(evidence), indent=2) + "\n"


def load(path: Path) -> Evidence:
    """Read an evidence file.

    Raises:
        DataError: no such file, or it is no evidence.
    """
    if not path.is_file():
        raise DataError(f"no evidence at {path}; run: guardlearn evaluate")
    try:
        return msgspec.convert(json.loads(path.read_bytes()), type=Evidence)  # json reads lone surrogates, msgspec not
    except (ValueError, msgspec.ValidationError) as error:
        raise DataError(f"{path} is no evidence of guardlearn ({error}); evaluate again") from error


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
