"""The `[audit]` table of guardlearn.toml: how much an audit judges, and what it knows to be degenerate."""

from __future__ import annotations

import msgspec

from guardlearn.audit.degenerate import KINDS
from guardlearn.audit.report import CHECKS
from guardlearn.errors import UsageError
from guardlearn.types import Specification

__all__ = ["AuditConfig"]


class AuditConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an audit does; every sample is drawn by `seed`, so that equal repositories are audited alike.

    Raises:
        UsageError: a number is out of its range.
    """

    repeat: int = 3
    """Times each stored artifact is judged; ≥ 1, and verdicts that vary are found from 2 on."""
    limit: int = 100
    """Items judged again, and as many stale ones; 0: all."""
    specifications: int = 10
    """Specifications that degenerate artifacts and canaries are tried on; 0: none."""
    seed: int = 0
    workers: int = 0
    """Guards run at once; 0: one a core, at least 2."""
    degenerate: tuple[str, ...] = ()
    """Further artifacts that no specification accepts."""
    canaries: tuple[Specification, ...] = ()
    """Specifications that no artifact meets."""
    allow: tuple[str, ...] = ()
    """Kinds of degenerate artifacts, or checks, that this guard is known to let pass: reported, but not wrong."""

    def __post_init__(self) -> None:
        for name, least in (("repeat", 1), ("limit", 0), ("specifications", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"audit: {name}={getattr(self, name)} must be at least {least}")
        for name in self.allow:
            if name not in (*CHECKS, *KINDS):
                raise UsageError(f"audit: allow={name!r} is unknown; allowed are: {', '.join([*CHECKS, *KINDS])}")
