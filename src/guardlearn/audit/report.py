"""What an audit found: a record that prints as a table and as JSON."""

from __future__ import annotations

import msgspec

__all__ = ["CHECKS", "AuditReport", "Check", "Finding", "StaleReport"]

CHECKS = {
    "deterministic": "the same artifact, judged several times, gets one verdict",
    "reproduced": "the verdict stored by this version of the guard is the one it gives today",
    "degenerate": "artifacts that do nothing are rejected",
    "cross": "an artifact accepted for one specification is rejected for another",
    "impossible": "specifications that cannot be met accept nothing",
}
"""Every check, and what holds of an honest guard."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a guard, and where to see it."""

    check: str
    """A key of CHECKS."""
    kind: str = ""
    """Of a degenerate artifact; else ""."""
    item_id: str
    """The item judged again, or whose artifact was taken; "" where none was."""
    specification_id: str
    verdicts: tuple[str, ...]
    """As given, in order; for `reproduced` the stored one first."""
    artifact: str = ""
    """The beginning of what was judged, where it is not the item's own."""
    allowed: bool = False
    """The configuration allows it: told, but not wrong."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check in figures."""

    name: str
    tried: int
    """Items, or artifacts made for it."""
    wrong: int
    allowed: int
    no_verdict: int
    """Of `tried`: those the checker itself failed on; nothing is known about them."""


class StaleReport(msgspec.Struct, frozen=True, kw_only=True):
    """Items that an earlier version of the guard judged."""

    items: int
    unmarked: int
    """Not yet marked stale, so that `fresh()` still selects them; after a run that marks: 0."""
    marked: int
    """Marked by this run."""
    judged: int
    """Judged again by this run, of `items`."""
    changes: dict[str, int]
    """"rejected to accepted" and the like, with how many; verdicts that stayed are counted as "rejected" and so on."""
    changed: tuple[str, ...]
    """Ids of those whose verdict is another now."""
    stored: int
    """New verdicts stored as events by this run: these items are fresh."""


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found."""

    guard: str
    guard_version: str
    items: int
    """Items of ℛ that this guard judged and the predicate selects; redacted ones are left out."""
    repeat: int
    seed: int
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    stale: StaleReport
    unknown_specifications: int
    """Items judged again that the specification file does not know; what a guard reads in metadata was missing."""
    first_failure: str
    """What the checker said where it gave no verdict, the first time; "" where it always gave one."""
    seconds: float

    @property
    def wrong(self) -> list[str]:
        """What is wrong, one line each; empty where nothing is."""
        lines = [f"{check.name}: {check.wrong} of {check.tried} wrong" for check in self.checks if check.wrong]
        lines += [
            f"{c.name}: no verdict on any of {c.tried}" for c in self.checks if c.tried and c.no_verdict == c.tried
        ]
        if self.stale.unmarked:
            lines.append(f"stale: {self.stale.unmarked} items were judged by another version and are not marked")
        return lines
