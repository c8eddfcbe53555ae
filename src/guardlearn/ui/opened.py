"""ℛ as one server has it open: what pages read it through, and what was counted of it once.

Counts that read all of ℛ are made when somebody looks at them, one at a time each, and kept until ℛ has grown; where it
grows all the time, they are made again after a pause that is a multiple of what they cost.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from starlette.requests import Request

    from guardlearn.dag import ArtifactDAG

__all__ = ["Counted", "Kept", "Opened", "opened"]

_Value = TypeVar("_Value")

_PAUSE = 20.0
"""A count is made again after so many times what it cost, where ℛ has grown since; at once, where it cost nothing."""
_NOTHING_SECONDS = 0.05
_MOST_KEPT = 64
"""Counts that are kept; those of predicates nobody asks for any more go first."""


class Counted(NamedTuple, Generic[_Value]):
    """What was counted, and as of when."""

    value: _Value
    seq: int
    """`last_seq` of ℛ before it was counted."""


class _Entry:
    """One count: who makes it holds its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counted: Counted[Any] | None = None
        self.again_at = 0.0


class Kept:
    """What was counted, by name; safe in threads."""

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._entries = OrderedDict[Hashable, _Entry]()

    def get(self, key: Hashable, seq: int, count: Callable[[], _Value], *, wait: bool = True) -> Counted[_Value] | None:
        """Return what `count` returned for `key`, made anew where ℛ has grown.

        Args:
            key: names the count.
            seq: `last_seq` of ℛ now.
            count: makes it.
            wait: where somebody else makes it just now: for them; else return what was counted before, or None.
        """
        entry = self._entry(key)
        if not entry.lock.acquire(blocking=wait):
            return entry.counted
        try:
            now = time.monotonic()
            if entry.counted is None or (entry.counted.seq != seq and now >= entry.again_at):
                entry.counted = Counted(count(), seq)
                cost = time.monotonic() - now
                entry.again_at = now + (cost + _PAUSE * cost if cost > _NOTHING_SECONDS else 0)
            return entry.counted
        finally:
            entry.lock.release()

    def _entry(self, key: Hashable) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)
            return entry


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What every page may use; `opened(request)` returns it."""

    dag: ArtifactDAG
    read_only: str = ""
    """Why nothing can be marked, in one line; "" where marks can be stored."""
    model: str | None = None
    """Model folder or name whose tokenizer shows rows as tokens; None: rows are shown as messages."""
    evidence: tuple[Path, ...] = ()
    """Folders with evaluations that were named on the command line."""
    form_token: str
    """What every form that writes must send back."""
    actor: str
    """Who marks, unless they say otherwise."""
    kept: Kept = dataclasses.field(default_factory=Kept)
    writer: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    """Held while a mark is stored: threads of one process take turns before they take the database's lock."""


def opened(request: Request) -> Opened:
    """Return what the application of a request has open."""
    found = request.app.state.opened
    assert isinstance(found, Opened)
    return found
