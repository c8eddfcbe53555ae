"""Guards by name: "package.module:attribute", a table of guardlearn.toml, or a ready one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards.functions import as_guard
from guardlearn.settings import Settings, closest, read
from guardlearn.types import Guard

__all__ = ["READY_GUARDS", "load_attribute", "load_guard"]

READY_GUARDS = {
    "house_style": "guardlearn.demo:house_style",
    "json_schema": "guardlearn.guards.schema:json_schema",
    "pytest": "guardlearn.guards.suite:pytest",
    "python": "guardlearn.guards.ready:python",
    "sql": "guardlearn.guards.sql:sql",
}
"""Short names that `load_guard` knows beside "package.module:attribute"."""


def load_guard(name: str, settings: Settings | None = None) -> Guard:
    """Return the guard called `name`: a table [guards.NAME], a ready one, or "package.module:attribute".

    The working folder is searched too, so that a guard can lie beside the database it fills.

    Args:
        name: as above.
        settings: where tables are looked up; None: guardlearn.toml of the working folder, where there is one.

    Raises:
        UsageError: there is no such guard.
        DataError: its table is malformed.
        GuardError: its module fails on import, or it is no guard.
    """
    from guardlearn.guards.tables import guard_from_table

    found = read() if settings is None else settings
    if name in found.guards:
        return guard_from_table(name, found)
    return as_guard(load_attribute(READY_GUARDS.get(name, name), "guard", [*found.guards, *READY_GUARDS]), name)


def load_attribute(name: str, kind: str, ready: Collection[str] = ()) -> Any:
    """Return what "package.module:attribute" names; the working folder is searched too.

    Args:
        name: the module and what to take of it; dots go into attributes.
        kind: what it should be, for messages.
        ready: short names that would do as well, for messages.

    Raises:
        UsageError: there is no such thing.
        GuardError: its module fails on import.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        others = f" or one of {', '.join(sorted(set(ready)))}" if ready else ""
        raise UsageError(f"unknown {kind} {name!r}{closest(name, ready)}: write package.module:attribute{others}")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(
                f"{kind} {name!r}: there is no module {error.name!r}; check the name and the folder"
            ) from None
        raise GuardError(f"{kind} {name!r} cannot be loaded: {error}") from error
    except Exception as error:  # whatever the user's module raises on import
        raise GuardError(f"{kind} {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UsageError(f"{kind} {name!r}: {module_name} has no {attribute!r}; it has {_callables(target)}")
        target = getattr(target, part)
    return target


def _callables(module: Any) -> str:
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return ", ".join(names[:8]) or "no callables"
