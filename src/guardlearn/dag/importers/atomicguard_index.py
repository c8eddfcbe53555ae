"""Reads a store's index.json a piece at a time: it names every object twice more, and a large one is not held whole.

The form that AtomicGuard writes is cut at its commas; another form is decoded as a whole, up to 8 MiB of it (25,000
objects).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from guardlearn.dag.importers.atomicguard_object import read_bytes

__all__ = ["Hint", "Hints", "Listed", "read_index"]

_CHUNK = 1 << 18
_LONGEST = 1 << 22
_WHOLE_BYTES = 1 << 23
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'\{[^{}\[\]"]*+(?:' + _STRING + rb'[^{}\[\]"]*+)*+\}'
_ENTRY = rb"\s*+" + _STRING + rb"\s*+:\s*+" + _FLAT
_ENTRIES = re.compile(rb"(?:" + _ENTRY + rb"\s*+,)*+")
_LAST_ENTRY = re.compile(rb"(" + _ENTRY + rb")?+\s*+\}")
_IDS = re.compile(rb"(?:\s*+" + _STRING + rb"\s*+,)*+")
_LAST_ID = re.compile(rb"(\s*+" + _STRING + rb")?+\s*+\]")
_OPENING = re.compile(rb"\s*+\{")
_NAME = re.compile(rb"\s*+(" + _STRING + rb")\s*+:\s*+(\{|\[|" + _STRING + rb"|[-+.\w]++(?=[\s,}]))")
_WHOLE_LISTS = re.compile(
    rb"(?:\s*+" + _STRING + rb"\s*+:\s*+\[[^\[\]{}\"]*+(?:" + _STRING + rb"[^\[\]{}\"]*+)*+\]\s*+,)*+"
)
_LIST = re.compile(rb"\s*+(?:(" + _STRING + rb")\s*+:\s*+\[|\})")
_NEXT = re.compile(rb"\s*+(,|\})")
_LISTS = ("action_pairs", "workflows")


class Hint(msgspec.Struct):
    """What an index says about one object."""

    status: Any = None
    created_at: Any = None


class Hints(NamedTuple):
    """Some of the objects that an index knows."""

    by_id: dict[str, Hint]


class Listed(NamedTuple):
    """Some of the ids of one list."""

    kind: str
    """action_pairs or workflows."""
    key: str
    ids: list[str]
    whole: bool
    """Whether these are all of them."""


class _Whole(msgspec.Struct):
    artifacts: dict[str, Hint]
    action_pairs: dict[str, list[str]] = {}
    workflows: dict[str, list[str]] = {}


def read_index(path: str | os.PathLike[str]) -> Iterator[Hints | Listed | None]:
    """Yield what an index says, in pieces; None: what was yielded before does not count.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with io.FileIO(path) as file:
            yield from _pieces(_Buffer(file))
        return
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    except (_OddForm, msgspec.MsgspecError, UnicodeDecodeError):
        yield None
    if Path(path).stat().st_size > _WHOLE_BYTES:
        raise ValueError("it is cut short, or too large to be read in another form than AtomicGuard's")
    try:
        whole = msgspec.json.decode(read_bytes(path), type=_Whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    yield Hints(whole.artifacts)
    for kind in _LISTS:
        for key, ids in getattr(whole, kind).items():
            yield Listed(kind, key, ids, whole=True)


_decode_hints = msgspec.json.Decoder(dict[str, Hint]).decode
_decode_lists = msgspec.json.Decoder(dict[str, list[str]]).decode
_decode_ids = msgspec.json.Decoder(list[str]).decode


class _OddForm(Exception):
    """It is not as AtomicGuard writes it, or cut short."""


class _Buffer:
    """A window on the file, which moves on with what was matched."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._bytes = b""
        self._at = 0

    def take(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        """Return the match of `pattern` here, and go behind it; what follows is read as far as the pattern needs."""
        while True:
            found = pattern.match(self._bytes, self._at)
            if found is not None and found.end() < len(self._bytes):
                self._at = found.end()
                return found
            taken = found.end() - self._at if found else 0
            if not self._more():
                if found is None:
                    raise _OddForm
                self._at += taken
                return found

    def elements(self, several: re.Pattern[bytes], last: re.Pattern[bytes]) -> Iterator[bytes]:
        """Yield the elements of an object or a list, some at a time with commas between, and go behind its end."""
        while True:
            if found := self.some(several):
                yield found
            ended = last.match(self._bytes, self._at)
            if ended is not None:
                self._at = ended.end()
                if ended.group(1):
                    yield ended.group(1)
                return
            if len(self._bytes) - self._at > _LONGEST or not self._more():
                raise _OddForm

    def some(self, pattern: re.Pattern[bytes]) -> bytes:
        """Return the elements that are whole in the window, b"" where none is, and go behind their last comma."""
        found = pattern.match(self._bytes, self._at)
        if found is None or found.end() == self._at:
            return b""
        self._at = found.end()
        return found.group().rstrip()[:-1]

    def ends(self) -> bool:
        """Whether nothing but blanks follows."""
        while self._bytes[self._at :].isspace() or self._at == len(self._bytes):
            self._at = len(self._bytes)
            if not self._more():
                return True
        return False

    def _more(self) -> bool:
        read = self._file.read(_CHUNK)
        self._bytes, self._at = self._bytes[self._at :] + (read or b""), 0
        return bool(read)


def _pieces(buffer: _Buffer) -> Iterator[Hints | Listed]:
    buffer.take(_OPENING)
    found: set[str] = set()
    while True:
        match = buffer.take(_NAME)
        name, value = msgspec.json.decode(match.group(1), type=str), match.group(2)
        if name in found:
            raise _OddForm
        found.add(name)
        if name == "artifacts" and value == b"{":
            yield from _hints(buffer)
        elif name in _LISTS and value == b"{":
            yield from _lists(buffer, name)
        elif value in (b"{", b"[") or name in ("artifacts", *_LISTS):
            raise _OddForm
        if buffer.take(_NEXT).group(1) == b"}":
            break
    if "artifacts" not in found or not buffer.ends():
        raise _OddForm


def _hints(buffer: _Buffer) -> Iterator[Hints]:
    for some in buffer.elements(_ENTRIES, _LAST_ENTRY):
        yield Hints(_decode_hints(b"{" + some + b"}"))


def _lists(buffer: _Buffer, kind: str) -> Iterator[Listed]:
    while True:
        if several := buffer.some(_WHOLE_LISTS):
            for key, ids in _decode_lists(b"{" + several + b"}").items():
                yield Listed(kind, key, ids, whole=True)
        name = buffer.take(_LIST).group(1)
        if name is None:
            break
        key = msgspec.json.decode(name, type=str)
        for some in buffer.elements(_IDS, _LAST_ID):
            yield Listed(kind, key, _decode_ids(b"[" + some + b"]"), whole=False)
        if buffer.take(_NEXT).group(1) == b"}":
            break
