"""Verdicts, and the one rule of judging: a guard that fails on its own account gives none."""

from __future__ import annotations

import time

import msgspec

from guardlearn.errors import BackendUnavailable, GuardError, UsageError
from guardlearn.guards import printing
from guardlearn.types import ArtifactStatus, Guard, GuardContext, Verdict

__all__ = ["CHECKER_FAILED", "accepted", "failure", "judge", "no_verdict", "rejected", "signed"]

CHECKER_FAILED = "guard failed"
"""Cause of a verdict that is none."""


def accepted(feedback: str = "") -> Verdict:
    """Return ⊤."""
    return Verdict(status=ArtifactStatus.ACCEPTED, feedback=feedback)


def rejected(cause: str, feedback: str, *, fatal: bool = False) -> Verdict:
    """Return ⊥retry or ⊥fatal."""
    return Verdict(status=ArtifactStatus.REJECTED, cause=cause, feedback=feedback, fatal=fatal)


def no_verdict(reason: str) -> Verdict:
    """Return "no verdict": the checker failed, which says nothing about the artifact."""
    return Verdict(status=ArtifactStatus.PENDING, cause=CHECKER_FAILED, feedback=reason)


def failure(error: Exception) -> Verdict:
    """Return "no verdict" for a guard that raised: its failure says nothing about the artifact."""
    return no_verdict(f"{type(error).__name__}: {error}")


def signed(verdict: Verdict, guard: Guard, began: float) -> Verdict:
    """Return `verdict` as that of `guard`, which began at `began` on the monotonic clock."""
    return msgspec.structs.replace(
        verdict, guard=guard.name, guard_version=guard.version, seconds=time.monotonic() - began
    )


def judge(guard: Guard, artifact: str, context: GuardContext) -> Verdict:
    """Return the guard's verdict; a guard that raises gives none (PENDING), it never rejects.

    What it prints goes to stderr, up to a bound (guards/printing.py).

    Raises:
        GuardError: the guard returned something that is no `Verdict`.
        BackendUnavailable: what the guard needs is not here: a sandbox, a library.
    """
    began = time.monotonic()
    try:
        with printing.heard(guard.name):
            verdict = guard(artifact, context)
    except (WrongAnswer, BackendUnavailable, UsageError):  # of the run, not of one artifact
        raise
    except Exception as error:  # a user's guard may raise anything
        verdict = failure(error)
    if not isinstance(verdict, Verdict):
        raise WrongAnswer(f"guard {guard.name!r} returned {type(verdict).__name__}; it must return guardlearn.Verdict")
    if verdict.guard and verdict.guard_version and verdict.seconds:
        return verdict
    return msgspec.structs.replace(
        verdict,
        guard=verdict.guard or guard.name,
        guard_version=verdict.guard_version or guard.version,
        seconds=verdict.seconds or time.monotonic() - began,
    )


class WrongAnswer(GuardError):
    """A guard returned something that is no verdict: a fault of the program, not of one artifact."""
