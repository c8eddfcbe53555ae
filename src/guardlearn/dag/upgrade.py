"""Brings ℛ of an older schema version up to this one: whole, checked, or not at all.

An upgrade adds the tables that are missing and installs this version's triggers; a version that changed more has a step
here. What was appended stays as it is; only a step may digest it anew, by the new rules, once the old ones hold.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import schema, triggers
from guardlearn.dag.backup import copy_to
from guardlearn.dag.engine import Database
from guardlearn.dag.rows import NAMES, digest_of
from guardlearn.dag.tables import SCHEMA_VERSION, events, head, items, metadata
from guardlearn.dag.verification import CURRENT, Digests, digest_of_row, event_rows, item_rows, log_problems, verify
from guardlearn.digests import digest_json
from guardlearn.errors import RepositoryError
from guardlearn.types import OnProgress

__all__ = ["UpgradeReport", "upgrade"]

_PAGE = 500


class UpgradeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an upgrade did."""

    before: int
    """Schema version that ℛ had."""
    after: int
    """Schema version it has now; the same where there was nothing to do."""
    copy: str = ""
    """Where ℛ lies as it was before; "" where none was made."""
    items: int = 0
    """Items whose digests were recomputed before the upgrade was committed."""
    events: int = 0


def upgrade(
    target: str | os.PathLike[str], *, keep: str | os.PathLike[str] | None = None, on_progress: OnProgress | None = None
) -> UpgradeReport:
    """Bring a repository to this version's schema, in one transaction that commits only when `verify` is clean.

    Args:
        target: path or URL of a repository.
        keep: copy an SQLite file there first, as it is; must not exist. PostgreSQL: make your own with pg_dump.
        on_progress: called with (rows verified, rows, note).

    Raises:
        RepositoryError: no repository there, a newer one, one that is damaged (nothing is changed then), or one that
            cannot be written.
    """
    database = Database(target, read_only=False)
    database.must_exist()
    try:
        with database.reading() as connection:
            before = _older(schema.version_of(connection, database.target), database.target)
        if before == SCHEMA_VERSION:
            return UpgradeReport(before=before, after=before)
        if keep is not None:
            copy_to(database, Path(keep))
        with database.writing() as connection:
            now = schema.version_of(connection, database.target)
            if now != str(before):
                raise RepositoryError(f"{database.target} has become of schema version {now} meanwhile; look again")
            triggers.remove(connection)
            for version in range(before, SCHEMA_VERSION):
                if version in _STEPS:
                    _STEPS[version](connection, database.target)
            metadata.create_all(connection)
            schema.add_heads(connection)
            schema.move_on(connection, datetime.now(UTC))
            triggers.install(connection)
            report = verify(connection, on_progress)
            _must_be_sound(report.problems, database.target)
    finally:
        database.close()
    kept = "" if keep is None else os.fspath(keep)
    return UpgradeReport(before=before, after=SCHEMA_VERSION, copy=kept, items=report.items, events=report.events)


def _must_be_sound(problems: list[str], target: str) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise RepositoryError(
            f"{target} is damaged, so nothing was changed: {problems[0]}{more}; restore a backup, then upgrade that"
        )


def _older(version: str, target: str) -> int:
    """Return a version that this program can upgrade or reads already."""
    if not version.isdecimal() or not 1 <= int(version) <= SCHEMA_VERSION:
        raise RepositoryError(
            f"{target} has schema version {version}, this guardlearn upgrades to {SCHEMA_VERSION}; "
            "run: pip install --upgrade guardlearn"
        )
    return int(version)


def _item_digest_1(row: Mapping[str, Any], specification: bytes, constraints: bytes, parent: bytes) -> bytes:
    content = [*(row[name] for name in NAMES), row["created_at"], bool(row["fatal"])]
    content += [each.hex() for each in (specification, constraints, row["body_digest"], row["seen_digest"], parent)]
    return _digest_1(["item", *content])


def _event_digest_1(row: Mapping[str, Any], item: bytes) -> bytes:
    names = ("item_id", "kind", "value", "actor", "reason", "created_at")
    return _digest_1(["event", *(row[name] for name in names), item.hex()])


def _digest_1(content: list[Any]) -> bytes:
    return bytes.fromhex(digest_json(content))


def _digest_anew(connection: Connection, target: str) -> None:
    """From version 1 to 2: a row is digested as its names joined by NUL, no longer as JSON."""
    _must_be_sound(
        list(itertools.islice(log_problems(connection, Digests(_item_digest_1, _event_digest_1)), 20)), target
    )
    running = schema.founding_digest(connection)
    last = connection.execute(sa.select(head.c.seq).where(head.c.name == "log")).scalar_one()
    for start in range(0, last, _PAGE):
        rows = _page(connection, item_rows(), items.c.seq, start) + _page(connection, event_rows(), events.c.seq, start)
        made: dict[str, bytes] = {}
        changed: dict[sa.Table, list[dict[str, Any]]] = {items: [], events: []}
        for row in sorted(rows, key=itemgetter("seq")):
            if "body_digest" in row:
                row["parent_digest"] = made.get(row["parent_id"], row["parent_digest"])
            else:
                row["item_digest"] = made.get(row["item_id"], row["item_digest"])
            digest = digest_of_row(row, CURRENT)
            if "body_digest" in row:
                made[row["id"]] = digest
            changed[items if "body_digest" in row else events].append({"of": row["seq"], "digest": digest})
            running = digest_of(running + digest)
        for table, new in changed.items():
            if new:
                connection.execute(sa.update(table).where(table.c.seq == sa.bindparam("of")), new)
    connection.execute(sa.update(head).where(head.c.name == "log").values(digest=running))


def _page(connection: Connection, query: sa.Select[Any], seq: sa.Column[int], start: int) -> list[dict[str, Any]]:
    rows = connection.execute(query.where(seq > start, seq <= start + _PAGE)).mappings()
    return [dict(row) for row in rows]


_STEPS: dict[int, Callable[[Connection, str], None]] = {1: _digest_anew}
"""What a version needs besides new tables, by the version it leads from."""
