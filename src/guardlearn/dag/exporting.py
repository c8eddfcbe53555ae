"""ℛ as JSON Lines, without loss: `export_items` writes what `importers.repository` reads.

The first line names the format, its version and the side salt; then one line for each pinned group, each
specification with its side, and, in commit order, each item and event; the last line counts them. Every line ends with
a check of its own bytes, so an edited line is known by its number. A text that is no valid Unicode stands as
{"base64": its bytes}; a redacted text is gone, and its item's line carries the hash that ℛ kept.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import heapq
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.paging import rows, rows_by_size
from guardlearn.dag.rows import NAMES, body_digest, seen_digest
from guardlearn.dag.tables import bodies, events, head, items, meta, pinned_groups, specifications, texts
from guardlearn.errors import DataError, write_failure
from guardlearn.types import OnProgress

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["EVENT_FIELDS", "FORMAT", "KINDS", "VERSION", "ExportReport", "checked", "export_items"]

FORMAT = "guardlearn repository"
VERSION = 1
KINDS = ("pin", "specification", "item", "event")
EVENT_FIELDS = ("item_id", "kind", "value", "actor", "reason", "created_at")
_BATCH = 500
_CHECK = 16


class ExportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an export wrote."""

    items: int
    events: int
    specifications: int
    pins: int
    """Groups whose side was chosen by hand."""
    digest: str
    """SHA-256 of every byte before the last line, in hex; equal contents give equal digests."""


def export_items(dag: ArtifactDAG, path: str | os.PathLike[str], on_progress: OnProgress | None = None) -> ExportReport:
    """Write all of ℛ's items, events, sides and pins as of one moment into a new JSON Lines file.

    Import reports, readings of held-out specifications and checkpoints are the history of one database; they stay in
    it.

    Args:
        dag: ℛ.
        path: the file to appear, whole or not at all; must not exist.
        on_progress: called with (rows so far, rows in all, "exporting").

    Raises:
        DataError: something is there already, or the disk does not take it.
    """
    place = Path(path)
    if place.exists():
        raise DataError(f"{place} exists already; name another file for the export")
    staged = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        with staged.open("xb") as file, dag.reading() as connection:
            report = _write(connection, file, on_progress)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(place)
    except OSError as error:
        reason = write_failure(error) or str(error)
        raise DataError(f"the export cannot be written to {place} ({reason}); nothing is there") from error
    finally:
        staged.unlink(missing_ok=True)
    return report


def checked(line: Mapping[str, Any]) -> bytes:
    """Return a line's bytes: JSON whose last field is the first 16 hex digits of the SHA-256 of the JSON without it."""
    plain = json.dumps(line, separators=(",", ":")).encode()
    return b'%s,"check":"%s"}\n' % (plain[:-1], hashlib.sha256(plain).hexdigest()[:_CHECK].encode())


def _write(connection: Connection, file: BinaryIO, on_progress: OnProgress | None) -> ExportReport:
    counts = dict.fromkeys(KINDS, 0)
    running = hashlib.sha256()
    total = int(connection.execute(sa.select(head.c.seq).where(head.c.name == "log")).scalar_one())
    salt = connection.execute(sa.select(meta.c.value).where(meta.c.name == "side_salt")).scalar_one()
    first = checked({"format": FORMAT, "version": VERSION, "side_salt": salt})
    file.write(first)
    running.update(first)
    for kind, value in _lines(connection):
        line = checked({kind: value})
        file.write(line)
        running.update(line)
        counts[kind] += 1
        done = counts["item"] + counts["event"]
        if on_progress and done % _BATCH == 0 and done:
            on_progress(done, total, "exporting")
    digest = running.hexdigest()
    file.write(checked({"end": {**counts, "digest": digest}}))
    return ExportReport(
        items=counts["item"],
        events=counts["event"],
        specifications=counts["specification"],
        pins=counts["pin"],
        digest=digest,
    )


def _lines(connection: Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    pins = sa.select(pinned_groups.c.spec_group, pinned_groups.c.side).order_by(pinned_groups.c.spec_group)
    for row in rows(connection, pins):
        yield "pin", dict(row)
    named = [specifications.c[name] for name in ("spec_group", "cluster", "side")]
    sides = sa.select(texts.c.key, texts.c.body, *named).join(specifications, specifications.c.key == texts.c.key)
    for row in rows_by_size(connection, sides, texts.c.key, texts.c.body):
        yield "specification", {"text": _text(row["body"]), **{column.name: row[column.name] for column in named}}
    psi, omega = texts.alias("psi"), texts.alias("omega")
    long = [bodies.c[name] for name in ("artifact", "feedback", "details", "seen")]
    of_items = (
        sa.select(
            *items.c,
            *long,
            psi.c.body.label("psi"),
            omega.c.body.label("omega"),
        )
        .join(bodies, bodies.c.seq == items.c.seq)
        .join(psi, psi.c.key == items.c.specification)
        .join(omega, omega.c.key == items.c.constraints)
    )
    sized = rows_by_size(connection, of_items, items.c.seq, *long, psi.c.body, omega.c.body)
    with (
        contextlib.closing(sized) as attempted,
        contextlib.closing(rows(connection, sa.select(events).order_by(events.c.seq))) as known,
    ):
        for row in heapq.merge(attempted, known, key=lambda row: row["seq"]):
            if "body_digest" in row:
                yield "item", _item(row)
            else:
                yield "event", {name: row[name] for name in EVENT_FIELDS}


def _item(row: Mapping[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {name: row[name] for name in NAMES}
    line |= {"fatal": bool(row["fatal"]), "created_at": row["created_at"]}
    line |= {"specification": _text(row["psi"]), "constraints": _text(row["omega"])}
    line |= {"artifact": _text(row["artifact"]), "feedback": _text(row["feedback"])}
    line |= {name: json.loads(row[name]) for name in ("details", "seen") if row[name]}
    if body_digest(row) != row["body_digest"]:
        line["body_digest"] = row["body_digest"].hex()
    if seen_digest(row["seen"]) != row["seen_digest"]:
        line["seen_digest"] = row["seen_digest"].hex()
    return line


def _text(body: bytes) -> Any:
    try:
        return body.decode()
    except UnicodeDecodeError:  # JSON would join two lone surrogates that stand side by side
        return {"base64": base64.b64encode(body).decode()}
