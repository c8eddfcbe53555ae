"""The general text set: short plain texts of many kinds, none of them about the user's tasks.

The shipped set, texts.jsonl, was written for guardlearn: 40 texts of 12 kinds, among them SQL, JSON, Python in another
style than the demo's, German and French. It shows a model that has lost its language or its breadth; what matters
beside that to a user is in texts of their own.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import msgspec

from guardlearn.digests import digest_text
from guardlearn.errors import DataError, LogError

__all__ = ["GeneralText", "default_texts", "read_texts"]


class GeneralText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One text of the set."""

    text: str
    group: str = ""
    """What it is counted with; "": it stands for itself."""

    @property
    def counted_in(self) -> str:
        """Its group, or a name of its own."""
        return self.group or f"text {digest_text(self.text)[:12]}"


def default_texts() -> list[GeneralText]:
    """Return the shipped set."""
    content = (resources.files(__package__) / "texts.jsonl").read_text(encoding="utf-8")
    return _parse(content, "texts.jsonl")


def read_texts(path: Path) -> list[GeneralText]:
    """Return the texts of a file of JSON lines: {"text", "group"?}.

    Raises:
        DataError: no such file, or one without texts.
        LogError: a line is no such object; says which.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"no general texts at {path} ({error}); name a JSON lines file, or leave it out") from error
    texts = _parse(content, path.name)
    if not texts:
        raise DataError(f'{path} holds no texts; give lines {{"text", "group"?}}, better 40 in 12 groups or more')
    return texts


def _parse(content: str, name: str) -> list[GeneralText]:
    texts = []
    for number, line in enumerate(content.split("\n"), 1):  # splitlines would part at separators inside a text
        if not line.strip():
            continue
        try:
            text = msgspec.convert(json.loads(line), GeneralText)
        except (ValueError, msgspec.ValidationError) as error:
            raise LogError(f'{name}, line {number}: {error}; a line is {{"text", "group"?}}', number) from error
        if not text.text.strip():
            raise LogError(f"{name}, line {number}: the text is empty; leave the line out", number)
        texts.append(text)
    return texts
