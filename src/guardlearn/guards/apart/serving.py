"""Beside the artifact: imports it and does what the tests ask of it, one request at a time.

Nothing here is trusted by the other side: the artifact may change or replace all of it, and can only send other data.
"""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import sys
import traceback
import types
from typing import Any

from guardlearn.guards.apart.wire import Broken, Decoder, Encoder, Wire, replace

__all__ = ["serve"]

SPECIAL = frozenset(
    f"__{name}__"
    for name in (
        "call len getitem setitem delitem contains iter next reversed enter exit bool int float complex index round "
        "trunc floor ceil neg pos abs invert lt le gt ge instancecheck subclasscheck "
        + " ".join(
            f"{prefix}{name}"
            for name in "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor".split()
            for prefix in ("", "r", "i")
        )
    ).split()
)
"""Methods that Python looks up on a class; a stand-in has those of its object's class."""
_BASES: tuple[tuple[type, Any], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, lambda v: str.__getitem__(v, slice(None))),
    (bytes, lambda v: bytes.__getitem__(v, slice(None))),
    (tuple, lambda v: tuple.__getitem__(v, slice(None))),
    (frozenset, lambda v: frozenset(frozenset.__iter__(v))),
)
"""Immutable built-in types, and what an instance of a subclass holds, whatever its class defines."""
_MUTABLE: tuple[tuple[type, Any], ...] = (
    (list, lambda v: list(list.__iter__(v))),
    (dict, lambda v: dict(dict.items(v))),
    (set, lambda v: set(set.__iter__(v))),
)


def serve(number: int, name: str, path: str) -> None:
    """Answer requests on a connected socket until it closes.

    Args:
        number: the socket.
        name: module name of the artifact.
        path: its file.
    """
    _Server(Wire(number), name, path).loop()


class _Server:
    def __init__(self, wire: Wire, name: str, path: str) -> None:
        self.wire, self.name, self.path = wire, name, path
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.said = (io.StringIO(), io.StringIO())

    def loop(self) -> None:
        sys.stdout, sys.stderr = self.said
        while True:
            try:
                request = self.wire.receive()
            except Broken:
                os._exit(0)
            self.answer(request)

    def answer(self, request: list[Any]) -> None:
        """Do what a request asks: [operation, target, arguments, keywords]."""
        decoder = Decoder(self.resolve)
        try:
            operation, target, arguments, keywords = request
            given = [decoder.decode(each) for each in arguments]
            named = {key: decoder.decode(each) for key, each in keywords.items()}
            value = getattr(self, f"do_{operation}")(target, *given, **named)
            encoder = Encoder(self.refer, decoder.containers)
            reply: list[Any] = ["value", encoder.encode(value)]
        except BaseException as error:
            encoder = Encoder(self.refer, decoder.containers)
            reply = ["error", self.refer_exception(error)]
        changed = [encoder.content(each) for each in decoder.containers]
        self.wire.send([*reply, changed, *(self.taken(each) for each in self.said)])

    def do_import(self, _: None) -> Any:
        spec = importlib.util.spec_from_file_location(self.name, self.path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        spec.loader.exec_module(module)
        return module

    def do_special(self, target: int, name: str, *arguments: Any, **keywords: Any) -> Any:
        value = self.objects[target]
        if name == "__bool__":
            return bool(value)
        if name in {"__instancecheck__", "__subclasscheck__"}:
            return (isinstance if name == "__instancecheck__" else issubclass)(arguments[0], value)
        return getattr(type(value), name)(value, *arguments, **keywords)

    def do_get(self, target: int, name: str) -> Any:
        return getattr(self.objects[target], name)

    def do_set(self, target: int, name: str, value: Any) -> None:
        setattr(self.objects[target], name, value)

    def do_delete(self, target: int, name: str) -> None:
        delattr(self.objects[target], name)

    def do_equal(self, target: int, other: Any) -> bool:
        return bool(self.objects[target] == other)

    def do_unequal(self, target: int, other: Any) -> bool:
        return bool(self.objects[target] != other)

    def do_content(self, target: int) -> Any:
        """Return what an instance of a subclass of list, dict or set holds; NotImplemented for other objects."""
        value = self.objects[target]
        for base, plain in _MUTABLE:
            if isinstance(value, base):
                return plain(value)
        return NotImplemented

    def do_hash(self, target: int) -> int:
        return hash(self.objects[target])

    def do_text(self, target: int, form: str) -> str:
        value = self.objects[target]
        return str(value) if form == "str" else repr(value)

    def do_format(self, target: int, form: str) -> str:
        return format(self.objects[target], form)

    def do_dir(self, target: int) -> list[str]:
        return list(dir(self.objects[target]))

    def refer(self, value: Any) -> list[Any]:
        """Return the reference of an object that stays here."""
        if isinstance(value, _Callback):
            return ["m", value.number]
        if isinstance(value, type):
            name: str = value.__name__
            if getattr(builtins, name, None) is value:
                return ["n", name]
            if issubclass(value, BaseException):
                return self.refer_exception_class(value)
        number = self.number(value)
        kind: type = type(value)
        for base, plain in _BASES:
            if isinstance(value, base):
                return ["p", number, kind.__name__, Encoder(self.refer).encode(plain(value))]
        special = sorted(name for name in SPECIAL if hasattr(kind, name))
        return ["o", number, kind.__name__, special, isinstance(value, type)]

    def number(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)  # and so its id stays its own
        return self.numbers[id(value)]

    def refer_exception_class(self, kind: type[BaseException]) -> list[Any]:
        if getattr(builtins, kind.__name__, None) is kind:
            return ["n", kind.__name__]
        bases = [self.refer_exception_class(each) for each in kind.__bases__ if issubclass(each, BaseException)]
        return ["x", self.number(kind), kind.__name__, bases]

    def refer_exception(self, error: BaseException) -> list[Any]:
        """Return [class, arguments, text, traceback, number of the exception]."""
        encoder = Encoder(self.refer)
        try:
            arguments = encoder.encode(tuple(error.args))
        except BaseException:
            arguments = ["t"]
        try:
            text = str(error)
        except BaseException:
            text = type(error).__name__
        lines = traceback.extract_tb(error.__traceback__)
        shown = [f"{line.name}, line {line.lineno}: {line.line}" for line in lines if line.filename == self.path][-5:]
        return [self.refer_exception_class(type(error)), arguments, text, shown, self.number(error)]

    def resolve(self, form: list[Any]) -> Any:
        """Return what a reference of the tests' side means here."""
        tag, value = form[0], form[1]
        if tag == "m":
            return self.objects[value]
        if tag == "n":
            return getattr(builtins, value)
        return _Callback(self, value)

    def taken(self, stream: io.StringIO) -> str:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return text

    def call_back(self, number: int, operation: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Ask the tests' side for a call, and answer what it asks meanwhile."""
        encoder = Encoder(self.refer)
        form = [encoder.encode(each) for each in arguments]
        named = {key: encoder.encode(each) for key, each in keywords.items()}
        self.wire.send(["callback", number, operation, form, named])
        while True:
            message = self.wire.receive()
            if message[0] not in {"returned", "raised"}:
                self.answer(message)
                continue
            decoder = Decoder(self.resolve, encoder.containers)
            value = decoder.decode(message[1])
            for container, content in zip(encoder.containers, map(decoder.decode, message[2]), strict=False):
                replace(container, content)
            if message[0] == "raised":
                raise getattr(builtins, value[0], Exception)(*value[1])
            return value


class _Callback:
    """A function of the tests that the artifact was given."""

    def __init__(self, server: _Server, number: int) -> None:
        self.server, self.number = server, number

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.server.call_back(self.number, "call", arguments, keywords)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __iter__(self) -> _Callback:
        return self

    def __next__(self) -> Any:
        return self.server.call_back(self.number, "next", (), {})
