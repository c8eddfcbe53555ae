"""Beside the tests: a module that looks like the artifact and asks its process for everything.

What comes back is data of exact built-in types, or a stand-in for an object that stays over there. A stand-in compares
with a plain value only by what its object holds as an instance of a built-in type: an artifact never learns what its
results are compared with, so an object that claims to be equal to everything is equal to nothing.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import Any

from guardlearn.guards.apart.serving import SPECIAL
from guardlearn.guards.apart.wire import Broken, Decoder, Encoder, Wire, replace

__all__ = ["ArtifactError", "Connection", "install"]


class ArtifactError(Exception):
    """What an artifact did that no test can expect: it ended its process, or raised what ends a test run."""


def install(number: int, name: str) -> Connection:
    """Make `import name` give the artifact at the other end of a connected socket."""
    connection = Connection(Wire(number))
    sys.meta_path.insert(0, _Finder(name, connection))
    return connection


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, name: str, connection: Connection) -> None:
        self.name, self.connection = name, connection

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self.name else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        try:
            found = self.connection.ask("import", None)
        except ImportError as error:  # importorskip would leave the tests out
            raise ArtifactError(f"the artifact cannot be imported: {type(error).__name__}: {error}") from None
        object.__setattr__(module, "_found", found)


class _Module(types.ModuleType):
    """The artifact as a module: what is not here is over there."""

    __slots__ = ("_found",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        object.__setattr__(self, "_found", None)

    def __getattr__(self, name: str) -> Any:
        __tracebackhide__ = True
        if self._found is None or name in {"__path__", "__file__", "__wrapped__"}:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._found, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self._found, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._found, name)

    def __dir__(self) -> list[str]:
        return dir(self._found)

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        """Its names, for what looks them up here (pytest's monkeypatch, unittest.mock)."""
        return _Names(self)


class _Names(dict[str, Any]):
    def __init__(self, module: _Module) -> None:
        super().__init__()
        self._module = module

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._module, name)
        except AttributeError:
            raise KeyError(name) from None

    def __contains__(self, name: object) -> bool:
        return hasattr(self._module, str(name))

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self._module, name, default)


class Connection:
    """The tests' end; one request at a time, whichever thread asks."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.lost = ""
        """Why nothing can be asked any more; "" while it can."""
        self.in_test = False
        """Whether a test runs now, which may expect SystemExit."""
        self._standing: dict[int, Any] = {}
        self._given: list[Any] = []

    def ask(self, operation: str, target: int | None, *arguments: Any, **keywords: Any) -> Any:
        """Return what an operation gives over there, or raise what it raises.

        Raises:
            ArtifactError: the artifact's process has gone, or sends nonsense.
        """
        __tracebackhide__ = True
        if self.lost:
            raise ArtifactError(self.lost)
        encoder = Encoder(self._refer)
        form = [encoder.encode(each) for each in arguments]
        named = {key: encoder.encode(each) for key, each in keywords.items()}
        try:
            self.wire.send([operation, target, form, named])
            while (message := self.wire.receive())[0] == "callback":
                self.wire.send(self._called_back(*message[1:5]))
            value, error = self._answered(message, encoder.containers)
        except (Broken, IndexError, TypeError, KeyError, ValueError, RecursionError) as broken:
            self.lost = f"the artifact ended its process, or broke off ({broken})"
            raise ArtifactError(self.lost) from None
        if error is not None:
            raise error
        return value

    def _answered(self, message: list[Any], containers: list[Any]) -> tuple[Any, BaseException | None]:
        kind, body, changed, *said = message
        decoder = Decoder(self._resolve, containers)
        value = decoder.decode(body) if kind == "value" else None
        contents = [decoder.decode(each) for each in changed]
        for container, content in zip(containers, contents, strict=True):
            replace(container, content)
        for stream, text in zip((sys.stdout, sys.stderr), said, strict=True):
            if text:
                stream.write(str(text))
        return value, self._exception(*body) if kind == "error" else None

    def _exception(self, kind: Any, arguments: Any, text: str, lines: list[str], number: int) -> BaseException:
        """Return what the artifact raised as an exception of the tests' process."""
        decoder = Decoder(self._resolve)
        found, given = decoder.decode(kind), decoder.decode(arguments)
        if not issubclass(found, Exception) and not (found is SystemExit and self.in_test):
            return ArtifactError(f"the artifact raised {found.__name__}: {text}")
        try:
            error: BaseException = found(*given)
        except Exception:  # its own constructor wants other arguments
            error = RuntimeError(f"{found.__name__}: {text}")
        if isinstance(error, _Raised):
            error.__dict__.update(__guardlearn__=number, _connection=self, _text=str(text))
        for line in lines:
            error.add_note(f"artifact: {line}")
        return error

    def _called_back(self, number: int, operation: str, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
        """Call a function that a test gave the artifact: the one thing the artifact may ask for here."""
        decoder = Decoder(self._resolve)
        given = [decoder.decode(each) for each in arguments]
        named = {key: decoder.decode(each) for key, each in keywords.items()}
        target = self._given[number]
        encoder = Encoder(self._refer, decoder.containers)
        try:
            value = next(target) if operation == "next" else target(*given, **named)
            kind, body = "returned", encoder.encode(value)
        except Exception as error:  # what the test's own function raises is the artifact's to handle
            kind, body = "raised", Encoder(_as_text).encode((type(error).__name__, error.args))
        return [kind, body, [encoder.content(each) for each in decoder.containers]]

    def _refer(self, value: Any) -> list[Any]:
        """Return the reference of what a test passes: an artifact's object going home, a built-in name, a function."""
        number = _number_of(value)
        if number is not None:
            return ["m", number]
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return ["n", name]
        if callable(value) or hasattr(value, "__next__"):
            self._given.append(value)
            return ["y", len(self._given) - 1]
        raise TypeError(
            f"a {type(value).__name__} cannot be passed to an artifact that runs apart: pass built-in types, functions "
            "or the artifact's own objects, or let tests and artifact run together"
        )

    def _resolve(self, form: list[Any]) -> Any:
        """Return what a reference of the artifact's side means here."""
        tag, value, *rest = form
        if tag == "m":
            return self._given[value]
        if tag == "n":
            found = getattr(builtins, value)
            if not isinstance(found, type):
                raise Broken("a built-in that is no type")
            return found
        if value not in self._standing:
            makers: dict[str, Callable[..., Any]] = {"o": self._object, "p": self._plain, "x": self._exception_class}
            make = makers[tag]
            self._standing[value] = make(int(value), *rest)
        return self._standing[value]

    def _object(self, number: int, name: str, special: list[str], is_class: bool) -> Any:
        stand_in: Any = object.__new__(_class_of(str(name), tuple(each for each in special if each in SPECIAL)))
        object.__setattr__(stand_in, "__guardlearn__", number)
        object.__setattr__(stand_in, "_connection", self)
        return stand_in

    def _plain(self, number: int, name: str, content: Any) -> Any:
        base = type(held := Decoder(self._resolve).decode(content))
        if base not in {int, float, str, bytes, tuple, frozenset}:
            raise Broken("a plain value that is none")
        kind = type(str(name), (base,), {"__getattr__": _get, "__guardlearn__": number, "_connection": self})
        return kind(held)

    def _exception_class(self, number: int, name: str, bases: list[Any]) -> Any:
        found = tuple(Decoder(self._resolve).decode(each) for each in bases) or (Exception,)
        return type(str(name), (_Raised, *found), {"__kind__": number})


class _Raised:
    """Base of exception classes that the artifact defines."""

    def __getattr__(self, name: str) -> Any:
        connection = self.__dict__.get("_connection")
        if connection is None or name.startswith("__"):
            raise AttributeError(name)
        return connection.ask("get", self.__dict__["__guardlearn__"], name)

    def __str__(self) -> str:
        return str(self.__dict__.get("_text", "")) or super().__str__()


class _StandIn:
    """An object of the artifact's process."""

    __slots__ = ("__guardlearn__", "_connection")

    def __getattr__(self, name: str) -> Any:
        __tracebackhide__ = True
        return _get(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)

    def __delattr__(self, name: str) -> None:
        _ask(self, "delete", name)

    def __eq__(self, other: object) -> Any:
        return self._compare("equal", other)

    def __ne__(self, other: object) -> Any:
        return self._compare("unequal", other)

    def _compare(self, operation: str, other: object) -> Any:
        if _number_of(other) is not None:
            return _ask(self, operation, other)
        held = _ask(self, "content")
        if type(held) not in {list, dict, set}:
            return NotImplemented  # no plain value is equal to it, whatever it claims
        return (held == other) is (operation == "equal")

    def __hash__(self) -> int:
        return hash(_ask(self, "hash"))

    def __repr__(self) -> str:
        return str(_ask(self, "text", "repr"))

    def __str__(self) -> str:
        return str(_ask(self, "text", "str"))

    def __format__(self, form: str) -> str:
        return str(_ask(self, "format", form))

    def __dir__(self) -> list[str]:
        return [str(name) for name in _ask(self, "dir")]


def _ask(stand_in: Any, operation: str, *arguments: Any) -> Any:
    __tracebackhide__ = True
    connection: Connection = object.__getattribute__(stand_in, "_connection")
    return connection.ask(operation, object.__getattribute__(stand_in, "__guardlearn__"), *arguments)


def _get(stand_in: Any, name: str) -> Any:
    __tracebackhide__ = True
    return _ask(stand_in, "get", name)


def _number_of(value: Any) -> int | None:
    """Return the number of an artifact's object that `value` stands for; None for anything else."""
    kind = type(value)
    if issubclass(kind, _StandIn | _Raised):
        number = object.__getattribute__(value, "__guardlearn__")
    elif isinstance(value, type) and issubclass(value, _Raised):
        number = value.__dict__.get("__kind__")
    else:
        number = kind.__dict__.get("__guardlearn__")
    return number if type(number) is int else None


def _as_text(value: Any) -> Any:
    return str(value)


_ORDER = frozenset({"__lt__", "__le__", "__gt__", "__ge__"})


def _forward(name: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
        __tracebackhide__ = True  # of a failing test's output
        if name in _ORDER and _number_of(arguments[0]) is None:
            return NotImplemented  # as with equality: no claim about a plain value is believed
        connection: Connection = object.__getattribute__(self, "_connection")
        number = object.__getattribute__(self, "__guardlearn__")
        return connection.ask("special", number, name, *arguments, **keywords)

    method.__name__ = name
    return method


_CLASSES: dict[tuple[str, tuple[str, ...]], type] = {}


def _class_of(name: str, special: tuple[str, ...]) -> type:
    """Return the class of a stand-in that has these special methods, and no others that could be found in it."""
    if (name, special) not in _CLASSES:
        methods: dict[str, Any] = {each: _forward(each) for each in special}
        _CLASSES[name, special] = type(name, (_StandIn,), {"__slots__": (), **methods, "__module__": "artifact"})
    return _CLASSES[name, special]
