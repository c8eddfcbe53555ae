"""G: loading guards by name, plain functions as guards, and the digest that says which code judged.

The protocol is `guardlearn.types.Guard` (Definition 6). A user's guard may be an object that follows it, or just a
function of the artifact (and the context) that returns a verdict, a bool or a (bool, feedback) pair.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import CodeType
from typing import Any

from guardlearn.digests import digest_json
from guardlearn.errors import GuardError, UsageError
from guardlearn.types import ArtifactStatus, Guard, GuardContext, Verdict

__all__ = [
    "READY_GUARDS",
    "FunctionGuard",
    "as_guard",
    "as_verdict",
    "code_digest",
    "failure",
    "load_attribute",
    "load_guard",
]

READY_GUARDS = {"house_style": "guardlearn.demo:house_style"}
"""Short names that `load_guard` knows beside "package.module:attribute"."""


def load_guard(name: str) -> Guard:
    """Return the guard called `name`: "package.module:attribute", or a ready one.

    The working folder is searched too, so that a guard can lie beside the database it fills.

    Raises:
        UsageError: there is no such guard.
        GuardError: its module fails on import, or it is no guard.
    """
    return as_guard(load_attribute(READY_GUARDS.get(name, name), "guard", READY_GUARDS), name)


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
        others = f" or one of {', '.join(sorted(ready))}" if ready else ""
        raise UsageError(f"unknown {kind} {name!r}: write package.module:attribute{others}")
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


def as_guard(target: Any, name: str = "") -> Guard:
    """Return `target` as a guard: itself if it follows the protocol, else a function wrapped in `FunctionGuard`.

    Raises:
        GuardError: it cannot be called.
    """
    if isinstance(target, type):
        raise GuardError(f"guard {name!r} is a class; name an instance of it, or a function")
    if not callable(target):
        raise GuardError(f"guard {name!r} is a {type(target).__name__}, which cannot be called; name a function")
    if all(hasattr(target, field) for field in ("name", "version", "constraints")):
        guard: Guard = target
        return guard
    return FunctionGuard(target, name)


class FunctionGuard:
    """A plain function as a guard; an exception it raises is "no verdict", never a rejection."""

    def __init__(self, function: Callable[..., Any], name: str = "", constraints: str = "") -> None:
        """Wrap `function(artifact)` or `function(artifact, context)`.

        Args:
            function: returns a `Verdict`, a bool, a (bool, feedback) pair, or an object with `passed`.
            name: stored with each verdict; "" takes the function's own.
            constraints: default Ω.
        """
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.version = code_digest(function)
        self.constraints = constraints
        self._function = function
        self._takes_context = _takes_two(function)

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact` with the function.

        Raises:
            GuardError: the function returned something that is no verdict.
        """
        began = time.monotonic()
        try:
            answer = self._function(artifact, context) if self._takes_context else self._function(artifact)
        except Exception as error:  # the checker's own failure: whatever a user's code raises
            answer = failure(error)
        verdict = as_verdict(answer, self.name)
        return Verdict(
            status=verdict.status,
            feedback=verdict.feedback,
            cause=verdict.cause,
            fatal=verdict.fatal,
            guard=self.name,
            guard_version=self.version,
            seconds=time.monotonic() - began,
        )


def failure(error: Exception) -> Verdict:
    """Return "no verdict" for a guard that raised: its failure says nothing about the artifact."""
    return Verdict(status=ArtifactStatus.PENDING, feedback=f"{type(error).__name__}: {error}", cause="guard failed")


def as_verdict(answer: Any, guard: str = "") -> Verdict:
    """Return what a guard answered as a `Verdict`: one, a bool, a (bool, feedback) pair, or an object with `passed`.

    Raises:
        GuardError: it is none of these.
    """
    if isinstance(answer, Verdict):
        return answer
    feedback: Any = ""
    passed: Any = answer
    if isinstance(answer, tuple) and len(answer) == 2:
        passed, feedback = answer
    elif hasattr(answer, "passed"):
        passed, feedback = answer.passed, getattr(answer, "feedback", "")
    if not isinstance(passed, bool):
        raise GuardError(
            f"guard {guard!r} returned {str(answer)[:60]!r}, which is no verdict; "
            "return a Verdict, a bool or (bool, feedback)"
        )
    status = ArtifactStatus.ACCEPTED if passed else ArtifactStatus.REJECTED
    return Verdict(status=status, feedback=str(feedback or ""), cause="" if passed else "rejected", guard=guard)


def code_digest(*objects: Any) -> str:
    """Return the digest of code and settings: equal digests judge alike, as far as their own code goes.

    Args:
        objects: functions, classes and modules (by source, else by bytecode), instances (by class and attributes)
            and JSON values (by value).
    """
    return digest_json([_fingerprint(each) for each in objects])


def _fingerprint(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_fingerprint(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _fingerprint(each) for key, each in value.items()}
    if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):  # typed at a prompt, or built in
            code = getattr(value, "__code__", None)
            return _bytecode(code) if code else f"{value.__module__}.{value.__qualname__}"
    return [_fingerprint(type(value)), _fingerprint(vars(value) if hasattr(value, "__dict__") else repr(value))]


def _bytecode(code: CodeType) -> list[Any]:
    constants = [_bytecode(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a built-in that tells nothing
        return False
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    return len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
