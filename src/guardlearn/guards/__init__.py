"""G: loading guards by name, ready guards, guards made of guards, plain functions as guards.

The protocol is `guardlearn.types.Guard` (Definition 6); docs/guards.md has recipes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from guardlearn.guards.functions import FunctionGuard, as_guard, as_verdict
from guardlearn.guards.loading import READY_GUARDS, load_attribute, load_guard
from guardlearn.guards.verdicts import failure, judge
from guardlearn.guards.versions import code_digest

if TYPE_CHECKING:
    from guardlearn.guards.command import COMMAND_LIMITS, CommandGuard
    from guardlearn.guards.composed import ComposedGuard, all_of, any_of, majority
    from guardlearn.guards.process import Limits
    from guardlearn.guards.ready import PythonGuard, RegexGuard
    from guardlearn.guards.schema import JsonSchemaGuard
    from guardlearn.guards.sql import SqlGuard
    from guardlearn.guards.suite import PytestGuard

__all__ = [
    "COMMAND_LIMITS",
    "READY_GUARDS",
    "CommandGuard",
    "ComposedGuard",
    "FunctionGuard",
    "JsonSchemaGuard",
    "Limits",
    "PytestGuard",
    "PythonGuard",
    "RegexGuard",
    "SqlGuard",
    "all_of",
    "any_of",
    "as_guard",
    "as_verdict",
    "code_digest",
    "failure",
    "judge",
    "load_attribute",
    "load_guard",
    "majority",
]

_HOMES = {
    "COMMAND_LIMITS": "command",
    "CommandGuard": "command",
    "ComposedGuard": "composed",
    "JsonSchemaGuard": "schema",
    "Limits": "process",
    "PytestGuard": "suite",
    "PythonGuard": "ready",
    "RegexGuard": "ready",
    "SqlGuard": "sql",
    "all_of": "composed",
    "any_of": "composed",
    "majority": "composed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'guardlearn.guards' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guardlearn.guards.{_HOMES[name]}"), name)
