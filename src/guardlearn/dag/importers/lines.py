"""The lines of a JSON Lines log, which may be written while it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from guardlearn.errors import LogError
from guardlearn.types import OnProgress

__all__ = ["IncompleteLine", "RawLine", "open_log", "raw_lines", "read_again", "read_record"]

_BOM = b"\xef\xbb\xbf"
_PROGRESS_EVERY = 1000


class IncompleteLine(LogError):
    """The last line has no end yet: it is being written, or the file was cut off."""


class RawLine(NamedTuple):
    """A line that is not blank, as bytes, and where it stands."""

    number: int
    """1-based."""
    offset: int
    body: bytes
    last: bool
    """Whether the file ends with it."""


def open_log(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a log for reading.

    Raises:
        LogError: it cannot be read.
    """
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise LogError(f"no log at {os.fspath(path)}; give a JSON Lines file") from None
    except OSError as error:
        raise LogError(f"the log {os.fspath(path)} cannot be read ({error.strerror}); give a JSON Lines file") from None


def raw_lines(file: BinaryIO, on_progress: OnProgress | None = None) -> Iterator[RawLine]:
    """Yield the lines up to the size that the file has now, blank ones left out.

    Args:
        file: at its start; who reads it elsewhere meanwhile disturbs nothing.
        on_progress: called with (bytes read, bytes, "reading").
    """
    size = os.fstat(file.fileno()).st_size
    offset = number = 0
    while offset < size:
        file.seek(offset)
        body = file.readline(size - offset)
        number += 1
        if body.strip(_BOM + b" \t\r\n"):
            yield RawLine(number, offset, body, offset + len(body) >= size)
        offset += len(body)
        if on_progress and number % _PROGRESS_EVERY == 0:
            on_progress(offset, size, "reading")


def read_again(file: BinaryIO, name: str, number: int, offset: int, length: int) -> dict[str, Any]:
    """Return the JSON object of a line that was read before.

    Raises:
        LogError: it changed meanwhile.
    """
    file.seek(offset)
    return read_record(RawLine(number, offset, file.read(length), False), name)


def read_record(line: RawLine, name: str) -> dict[str, Any]:
    """Return a line's JSON object.

    Raises:
        IncompleteLine: it is the last one and not whole.
        LogError: it is no JSON object.
    """
    place, number = f"{name} line {line.number}", line.number
    body = line.body.removeprefix(_BOM) if number == 1 else line.body
    cut = line.last and not body.endswith(b"\n")
    try:
        record = _decode(body)
    except UnicodeDecodeError as error:
        if cut:
            raise IncompleteLine(f"{place}: {_INCOMPLETE}", number) from None
        raise LogError(f"{place}: byte {error.start + 1} is not UTF-8; convert the file to UTF-8", number) from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deep")
        message = f"{place}: no JSON ({reason} at column {getattr(error, 'colno', 1)}); "
        if number == 1 and body.lstrip(b" \t").startswith(b"["):
            raise LogError(f"{message}a JSON array must become one object a line: jq -c '.[]'", number) from None
        if cut:
            raise IncompleteLine(f"{message}{_INCOMPLETE}", number) from None
        raise LogError(f"{message}put one JSON object on each line", number) from None
    if not isinstance(record, dict):
        hint = "a JSON array must become one object a line: jq -c '.[]'" if isinstance(record, list) else ""
        raise LogError(f"{place}: {type(record).__name__} instead of an object; {hint or 'one object a line'}", number)
    return record


_INCOMPLETE = "the last line is incomplete: import again when it is written to its end, or remove it"


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # it refuses lone surrogates and NaN
        return json.loads(body.decode("utf-8"))
