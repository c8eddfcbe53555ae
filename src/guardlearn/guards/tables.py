"""Guards from guardlearn.toml: [guards.NAME] with a kind, and that kind's settings as keys.

    [guards.tests]                                  [guards.all]
    kind = "command"                                kind = "all_of"
    command = ["ruff", "check", "answer.py"]        guards = ["python", "tests"]

A kind's keys are the keyword arguments of the class behind it, so they are declared once. Paths start from the folder
of the file.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.errors import DataError, GuardError, UsageError
from guardlearn.guards.functions import FunctionGuard, as_guard
from guardlearn.guards.loading import load_attribute, load_guard
from guardlearn.settings import Settings, closest, convert
from guardlearn.types import Guard

__all__ = ["KINDS", "guard_from_table"]

KINDS = {
    "command": "command:CommandGuard",
    "pytest": "suite:PytestGuard",
    "python": "ready:PythonGuard",
    "regex": "ready:RegexGuard",
    "json_schema": "schema:JsonSchemaGuard",
    "sql": "sql:SqlGuard",
    "all_of": "composed:all_of",
    "any_of": "composed:any_of",
    "majority": "composed:majority",
    "function": "functions:FunctionGuard",
}
"""What `kind` may be, and where in this package it is made."""

_COMPOSED = ("all_of", "any_of", "majority")
_PATHS = ("folder", "schema_file", "readable")


class _Composed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    guards: tuple[str, ...]
    """Names, as `--guard` takes them."""
    parallel: bool = False
    constraints: str | None = None


class _Function(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    function: str
    """package.module:attribute."""
    constraints: str = ""


def guard_from_table(name: str, settings: Settings, within: tuple[str, ...] = ()) -> Guard:
    """Return the guard that the table [guards.NAME] describes.

    Args:
        name: a key of `settings.guards`.
        settings: the file.
        within: tables that led here, to find a guard that is made of itself.

    Raises:
        DataError: the table is malformed; file, table and key are named.
        UsageError: it names a guard or a function that does not exist.
    """
    where = settings.where(f"guards.{name}")
    if name in within:
        raise DataError(f"{where}: the guard is made of itself ({' → '.join([*within, name])})")
    table = dict(settings.guards[name])
    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        fault = "kind is missing" if kind is None else f"unknown kind {kind!r}{closest(str(kind), KINDS)}"
        raise DataError(f"{where}: {fault}; it may be {', '.join(KINDS)}")
    try:
        if kind in _COMPOSED:
            return _composed(kind, name, convert(table, _Composed, where), settings, (*within, name))
        if kind == "function":
            given = convert(table, _Function, where)
            return _function(given, name)
        make = _maker(kind)
        keys = convert(_with_defaults(table, make), _keys(kind), where)
        return as_guard(make(**_placed(keys, settings.folder), name=name), name)
    except (GuardError, UsageError) as error:
        raise type(error)(f"{where}: {error}") from None


def _composed(kind: str, name: str, given: _Composed, settings: Settings, within: tuple[str, ...]) -> Guard:
    parts = [
        guard_from_table(part, settings, within) if part in settings.guards else load_guard(part, settings)
        for part in given.guards
    ]
    guard: Guard = _maker(kind)(*parts, name=name, constraints=given.constraints, parallel=given.parallel)
    return guard


def _function(given: _Function, name: str) -> Guard:
    target = load_attribute(given.function, "function")
    guard = as_guard(target, name)
    if isinstance(guard, FunctionGuard):
        return FunctionGuard(target, name, given.constraints)
    if given.constraints:
        raise UsageError(f"{given.function} is a guard with constraints of its own; leave the key constraints out")
    return guard


def _maker(kind: str) -> Callable[..., Any]:
    module, _, attribute = KINDS[kind].partition(":")
    maker: Callable[..., Any] = getattr(importlib.import_module(f"guardlearn.guards.{module}"), attribute)
    return maker


@functools.cache
def _keys(kind: str) -> type[msgspec.Struct]:
    """Return a struct of the keyword arguments that a kind takes, its name left out."""
    make: Any = _maker(kind)
    hints = typing.get_type_hints(make.__init__)
    fields: list[Any] = []
    for each in list(inspect.signature(make).parameters.values()):
        if each.name != "name":
            required = each.default is each.empty
            fields.append((each.name, hints[each.name]) if required else (each.name, hints[each.name], each.default))
    return msgspec.defstruct(kind, fields, frozen=True, kw_only=True, forbid_unknown_fields=True)


def _with_defaults(table: Mapping[str, Any], make: Callable[..., Any]) -> dict[str, Any]:
    """Return a table in which a table of limits has the kind's own defaults where it says nothing."""
    limits = inspect.signature(make).parameters.get("limits")
    given = table.get("limits")
    if limits is None or not isinstance(given, Mapping):
        return dict(table)
    return {**table, "limits": {**dataclasses.asdict(limits.default), **given}}


def _placed(keys: msgspec.Struct, folder: Path) -> dict[str, Any]:
    """Return the arguments, with paths that start from the folder of the settings file."""
    given = {name: getattr(keys, name) for name in keys.__struct_fields__}
    for name in _PATHS:
        value = given.get(name)
        if isinstance(value, str) and value:
            given[name] = str(folder / Path(value).expanduser())
        elif value and not isinstance(value, str):
            given[name] = [str(folder / Path(each).expanduser()) for each in value]
    return given
