"""What an importer is: a callable that yields attempts, and what it could not know or read.

An importer of your own needs no base class: a function of the source's name that yields `RepositoryItem`s will do.
`intake.import_items` does the rest, for it and for guardlearn's own readers alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from guardlearn.types import RepositoryItem

__all__ = ["Given", "ImportFault", "ImportedItem", "Importer"]


class ImportedItem(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt with what its source could not say."""

    item: RepositoryItem
    faults: tuple[str, ...] = ()
    """What is odd about it, a clause each; the report sets its id before it."""
    unknown: tuple[str, ...] = ()
    """What the source does not say, in words that the report counts: "time", "model" … Source, verdict and feedback
    are counted without being named here."""
    exclude: str = ""
    """Why nothing should be learnt from it; "" where it is a generator's work."""
    implied: bool = False
    """Its verdict was not stated but follows from what came after it: it never changes one that is stored."""


class ImportFault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was not read, or is odd."""

    place: str
    """Where: a line, a file, an id."""
    reason: str
    """What is wrong, a clause."""
    skipped: bool = True
    """Whether an attempt was left out for it."""


Given = RepositoryItem | ImportedItem | ImportFault
"""What an importer yields."""


class Importer(Protocol):
    """Reads attempts from elsewhere.

    Every attempt has an id that is the same each time its source is read (the source's own, or a digest of the content
    without the verdict): then importing again takes what is new, and a verdict that came later becomes an event. An
    attempt that retries another names it as `parent_id`; yield the earlier one first. What the source does not say is
    left as it is (`Source.UNKNOWN`, `ArtifactStatus.PENDING`, ""), never guessed.
    """

    def __call__(self, source: str) -> Iterable[Given]:
        """Yield what `source` holds; an exception stops the import, and nothing is stored."""
        ...
