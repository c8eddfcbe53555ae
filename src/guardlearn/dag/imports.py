"""Import reports: rows of ℛ that say what each import read, what it could not know, and what was wrong (Theorem 9).

Theorem 9 holds for a store that lacks nothing; a real one does, and the report says what. Erratum 23.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.rows import from_micros, storable_name, to_micros
from guardlearn.dag.tables import head, imports
from guardlearn.digests import digest_json

__all__ = ["ImportRecord", "ImportReport", "import_digest", "read", "record", "report_of"]


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did: `read` is new + unchanged + changed."""

    read: int
    """Attempts that were understood."""
    new: int
    unchanged: int
    """Attempts that ℛ held already."""
    changed: int = 0
    """Attempts that ℛ held with another verdict: each became a status event."""
    skipped: int = 0
    """What was not taken: unreadable, a second copy, or in ℛ with another content."""
    faults: list[str]
    """What is odd, one sentence each with the attempt's id or line."""
    unknown: dict[str, int]
    """How many attempts lack what: source, time, verdict, feedback …"""
    pending: dict[str, int] = msgspec.field(default_factory=dict)
    """Attempts without a verdict, by workflow (erratum 6b)."""


class ImportRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stored report."""

    number: int
    """1-based, over all sources."""
    source: str
    """What was imported, as it was named."""
    created_at: datetime
    report: ImportReport


def report_of(
    counts: Mapping[str, int],
    *,
    skipped: int,
    faults: list[str],
    unknown: Mapping[str, int],
    pending: Mapping[str, int],
) -> ImportReport:
    """Return the report of an import that counted its attempts as new, unchanged and changed."""
    new, unchanged, changed = (counts.get(name, 0) for name in ("new", "unchanged", "changed"))
    return ImportReport(
        read=new + unchanged + changed,
        new=new,
        unchanged=unchanged,
        changed=changed,
        skipped=skipped,
        faults=faults,
        unknown=dict(sorted(unknown.items())),
        pending=dict(sorted(pending.items())),
    )


def record(connection: Connection, source: str, report: ImportReport) -> None:
    """Store a report, unless nothing was taken and the source's last report says the same.

    Args:
        connection: the writing transaction.
        source: what was imported.
        report: what it did.
    """
    source = storable_name(source)
    query = sa.select(imports.c.report).where(imports.c.source == source).order_by(imports.c.number.desc()).limit(1)
    last = connection.execute(query).scalar_one_or_none()
    if last is not None and not (report.new or report.changed) and _lacks(_decoded(last)) == _lacks(report):
        return
    chosen = head.c.name == "imports"
    number, running = connection.execute(sa.select(head.c.seq, head.c.digest).where(chosen)).one()
    row: dict[str, Any] = {
        "number": int(number) + 1,
        "source": source,
        "report": json.dumps(msgspec.to_builtins(report)).encode(),  # ASCII: a fault may quote a lone surrogate
        "created_at": to_micros(datetime.now(UTC)),
    }
    row["digest"] = import_digest(row, running)
    connection.execute(sa.insert(imports).values(**row))
    connection.execute(sa.update(head).where(chosen).values(seq=row["number"], digest=row["digest"]))


def read(connection: Connection) -> list[ImportRecord]:
    """Return every stored report, the first one first."""
    rows = connection.execute(sa.select(imports).order_by(imports.c.number)).mappings().all()
    return [
        ImportRecord(
            number=row["number"],
            source=row["source"],
            created_at=from_micros(row["created_at"]),
            report=_decoded(row["report"]),
        )
        for row in rows
    ]


def import_digest(row: Any, before: bytes) -> bytes:
    """Return the digest of an import's row, which covers the import `before` it."""
    plain = [row[name] for name in ("number", "source", "created_at")]
    return bytes.fromhex(digest_json(["import", *plain, bytes(row["report"]).hex(), before.hex()]))


def _decoded(body: bytes) -> ImportReport:
    return msgspec.convert(json.loads(bytes(body)), ImportReport)


def _lacks(report: ImportReport) -> tuple[Any, ...]:
    return report.read, report.skipped, report.faults, report.unknown, report.pending
