"""Values between an artifact's process and its tests': JSON frames, exact built-in types, references for the rest.

Neither side ever runs what the other sent: a value is data, or the number of an object that stays where it is. Lists,
dicts, sets and bytearrays are copied, with what they share kept, and numbered in the order they are met: so the caller
can be told how a call changed them.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["VALUE_TYPES", "Broken", "Decoder", "Encoder", "Wire", "replace"]

_LONGEST_FRAME = 64 << 20
_SMALL = 1 << 53


class Broken(Exception):
    """The other side has gone, or sends what cannot be read."""


class Wire:
    """Frames of JSON over a connected socket."""

    def __init__(self, number: int) -> None:
        self.number = number

    def send(self, message: Any) -> None:
        """Send one message.

        Raises:
            Broken: the other side has gone.
        """
        data = json.dumps(message, separators=(",", ":")).encode("ascii")
        rest = memoryview(len(data).to_bytes(4, "big") + data)
        try:
            while rest:
                rest = rest[os.write(self.number, rest) :]
        except OSError as error:
            raise Broken(str(error)) from None

    def receive(self) -> Any:
        """Return the next message.

        Raises:
            Broken: the other side has gone, or sent no JSON.
        """
        size = int.from_bytes(self._read(4), "big")
        if size > _LONGEST_FRAME:
            raise Broken(f"a message of {size} bytes")
        try:
            return json.loads(self._read(size))
        except (ValueError, RecursionError, MemoryError) as error:
            raise Broken(f"an unreadable message: {type(error).__name__}") from None

    def _read(self, size: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < size:
            try:
                piece = os.read(self.number, min(size - len(pieces), 1 << 20))
            except OSError as error:
                raise Broken(str(error)) from None
            if not piece:
                raise Broken("the process has ended")
            pieces += piece
        return bytes(pieces)


# Values of the standard library that travel whole: module and class, and how to take them apart for their constructor.
VALUE_TYPES: dict[tuple[str, str], Callable[[Any], tuple[Any, ...]]] = {
    ("decimal", "Decimal"): lambda v: (str(v),),
    ("fractions", "Fraction"): lambda v: (v.numerator, v.denominator),
    ("datetime", "date"): lambda v: (v.year, v.month, v.day),
    ("datetime", "datetime"): lambda v: (v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
    ("datetime", "time"): lambda v: (v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
    ("datetime", "timedelta"): lambda v: (v.days, v.seconds, v.microseconds),
    ("datetime", "timezone"): lambda v: (v.utcoffset(None),),
    ("uuid", "UUID"): lambda v: (v.hex,),
    ("collections", "deque"): lambda v: (list(v), v.maxlen),
    ("collections", "OrderedDict"): lambda v: (list(v.items()),),
    ("collections", "Counter"): lambda v: (dict(v),),
    ("pathlib", "PosixPath"): lambda v: (str(v),),
    ("pathlib", "PurePosixPath"): lambda v: (str(v),),
}


class Encoder:
    """Turns values of one message into JSON; what is no data is left to `refer`."""

    def __init__(self, refer: Callable[[Any], list[Any]], known: Sequence[Any] = ()) -> None:
        """Begin a message.

        Args:
            refer: returns the reference of an object that is no data.
            known: containers the other side has, of the message this one answers.
        """
        self.containers: list[Any] = []
        """Mutable containers in the order they were met."""
        self._refer = refer
        self._numbers: dict[int, int] = {}
        self._known = {id(container): number for number, container in enumerate(known)}

    def encode(self, value: Any) -> Any:
        """Return `value` as JSON."""
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind in _SIMPLE:
            return _SIMPLE[kind](value)
        if kind in (tuple, frozenset):
            return ["t" if kind is tuple else "z", *map(self.encode, value)]
        if kind in (list, dict, set, bytearray):
            return self._container(value, kind)
        if (kind.__module__, kind.__name__) in VALUE_TYPES and _is_own(kind):
            parts = VALUE_TYPES[kind.__module__, kind.__name__](value)
            return ["v", kind.__module__, kind.__name__, *map(self.encode, parts)]
        return self._refer(value)

    def content(self, container: Any) -> list[Any]:
        """Return a known container with what it holds now."""
        return self._content(container, type(container))

    def _container(self, value: Any, kind: type) -> list[Any]:
        if id(value) in self._known:
            return ["k", self._known[id(value)]]
        number = self._numbers.get(id(value))
        if number is not None:
            return ["r", number]
        self._numbers[id(value)] = len(self.containers)
        self.containers.append(value)
        return self._content(value, kind)

    def _content(self, value: Any, kind: type) -> list[Any]:
        if kind is bytearray:
            return ["B", value.hex()]
        if kind is dict:
            return ["d", *([self.encode(key), self.encode(each)] for key, each in value.items())]
        return ["l" if kind is list else "s", *map(self.encode, value)]


class Decoder:
    """Turns JSON of one message back into values; references are left to `resolve`."""

    def __init__(self, resolve: Callable[[list[Any]], Any], known: Sequence[Any] = ()) -> None:
        """Begin a message.

        Args:
            resolve: returns the object of a reference.
            known: containers of the message this one answers.
        """
        self.containers: list[Any] = []
        """Mutable containers in the order they were met: the same as the encoder's."""
        self._resolve = resolve
        self._known = known

    def decode(self, form: Any) -> Any:
        """Return the value of `form`.

        Raises:
            Broken: it is no form of ours.
        """
        if not isinstance(form, list):
            return form
        try:
            return self._decode(form[0], form[1:])
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Broken(f"an unreadable value: {type(error).__name__}") from None

    def _decode(self, tag: str, rest: list[Any]) -> Any:
        if tag in _READ:
            return _READ[tag](*rest)
        if tag in {"r", "k"}:
            return (self.containers if tag == "r" else self._known)[rest[0]]
        if tag in _IMMUTABLE:
            return _IMMUTABLE[tag](map(self.decode, rest))
        if tag == "v":
            if (rest[0], rest[1]) not in VALUE_TYPES:
                raise KeyError(rest[1])
            return getattr(importlib.import_module(rest[0]), rest[1])(*map(self.decode, rest[2:]))
        if tag in _CONTAINERS:
            return self._container(tag, rest)
        return self._resolve([tag, *rest])

    def _container(self, tag: str, rest: list[Any]) -> Any:
        made: Any = _CONTAINERS[tag]()
        self.containers.append(made)
        if tag == "B":
            made += bytes.fromhex(rest[0])
        elif tag == "l":
            made.extend(map(self.decode, rest))
        elif tag == "s":
            made.update(map(self.decode, rest))
        else:
            made.update((self.decode(key), self.decode(each)) for key, each in rest)
        return made


def replace(container: Any, content: Any) -> None:
    """Give a list, dict, set or bytearray the content of another of its kind."""
    if type(container) is not type(content):
        raise Broken("a container that became another")
    if isinstance(container, list | bytearray):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def _is_own(kind: type) -> bool:
    return getattr(importlib.import_module(kind.__module__), kind.__name__, None) is kind


def _whole(value: int) -> Any:
    return value if -_SMALL < value < _SMALL else ["i", hex(value)]


_SIMPLE: dict[type, Callable[[Any], Any]] = {
    int: _whole,
    float: lambda v: ["f", v.hex()],
    complex: lambda v: ["c", v.real.hex(), v.imag.hex()],
    bytes: lambda v: ["b", v.hex()],
    range: lambda v: ["g", hex(v.start), hex(v.stop), hex(v.step)],
    type(Ellipsis): lambda v: ["e", "Ellipsis"],
    type(NotImplemented): lambda v: ["e", "NotImplemented"],
}
_READ: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "f": float.fromhex,
    "c": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "b": bytes.fromhex,
    "g": lambda *bounds: range(*(int(each, 16) for each in bounds)),
    "e": lambda name: {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[name],
}
_IMMUTABLE: dict[str, Callable[[Any], Any]] = {"t": tuple, "z": frozenset}
_CONTAINERS: dict[str, Callable[[], Any]] = {"l": list, "d": dict, "s": set, "B": bytearray}
