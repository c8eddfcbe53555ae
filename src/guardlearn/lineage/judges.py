"""Whose verdict an item carries: the guard's that judged it first, or one's that judged it again.

`guardlearn audit --rejudge` stores a later judgement as an event, whose reason begins with the guard and its version;
the newest one counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from guardlearn.audit.versions import said_reason
from guardlearn.types import ArtifactStatus, Verdict

__all__ = ["Judge", "judged_again", "said_by"]


class Judge(NamedTuple):
    """A guard, by name and version."""

    name: str
    version: str

    def __str__(self) -> str:
        """Return how people are told it: name@version, 12 digits of the version."""
        return f"{self.name or 'none named'}{f'@{self.version[:12]}' if self.version else ''}"


def judged_again(reason: str) -> Judge | None:
    """Return who judged an item again, from the reason of an event; None where it says something else."""
    before = said_by(Judge("", "")).rstrip() + " "
    if not reason.startswith(before):
        return None
    name, _, version = reason.removeprefix(before).partition(": ")[0].rpartition(" ")
    return Judge(name, version)


def said_by(judge: Judge) -> str:
    """Return how the reason of an event begins in which this guard judged again; the version may be cut short."""
    guard: Any = judge  # it has all that the wording asks for
    return said_reason(guard, Verdict(status=ArtifactStatus.ACCEPTED)).removesuffix(": ")
