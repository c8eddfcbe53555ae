"""Plain functions as guards, and what a guard may answer.

The protocol is `guardlearn.types.Guard` (Definition 6). A user's guard may be an object that follows it, or just a
function of the artifact (and the context) that returns a verdict, a bool or a (bool, feedback) pair.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

from guardlearn.errors import BackendUnavailable, GuardError, UsageError
from guardlearn.guards.verdicts import WrongAnswer, accepted, failure, rejected, signed
from guardlearn.guards.versions import code_digest
from guardlearn.types import Guard, GuardContext, Verdict

__all__ = ["FunctionGuard", "as_guard", "as_verdict"]


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
            BackendUnavailable: what it needs is not here: a sandbox, a library.
        """
        began = time.monotonic()
        try:
            answer = self._function(artifact, context) if self._takes_context else self._function(artifact)
        except (BackendUnavailable, UsageError):  # of the run, not of one artifact
            raise
        except Exception as error:  # the checker's own failure: whatever a user's code raises
            answer = failure(error)
        return signed(as_verdict(answer, self.name), self, began)


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
        raise WrongAnswer(
            f"guard {guard!r} returned {str(answer)[:60]!r}, which is no verdict; "
            "return a Verdict, a bool or (bool, feedback)"
        )
    return accepted(str(feedback or "")) if passed else rejected("rejected", str(feedback or ""))


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a built-in that tells nothing
        return False
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    return len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
