"""Training checkpoints: rows of ℛ that say what has been trained, and into which adapter (Definitions 14 and 15).

A checkpoint points at items, never at a time: every item it trained is a row of `trained`, and a learner trains an item
at most once (the primary key sees to it). So items that arrive late, get their verdict late or share a moment are
neither lost nor trained twice. The row is written when the adapter is finished. Errata 41-45.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.batching import batches, insert
from guardlearn.dag.rows import from_micros, storable, to_micros
from guardlearn.dag.tables import checkpoints, head, items, trained
from guardlearn.digests import digest_json
from guardlearn.errors import RepositoryError, UsageError

__all__ = [
    "TrainingCheckpoint",
    "append",
    "checkpoint_digest",
    "read",
    "trained_contents",
    "trained_digest",
    "trained_seqs",
    "untrained",
]


class TrainingCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far a learner has come (Definition 14: a pointer into ℛ, not a snapshot)."""

    number: int
    """1-based, over all learners of ℛ."""
    learner: str
    """Who learns: each learner trains an item at most once."""
    item_id: str
    """The last item trained."""
    item_digest: str
    """Digest of that item's row; another one on resuming is ⊥_integrity (Definition 15)."""
    seq: int
    """Items and events up to here had been looked at."""
    traces: int
    """Traces trained since the checkpoint before."""
    traces_processed: int
    """The same, over all checkpoints of this learner."""
    adapter: str
    """Folder of the adapter that holds what was learned."""
    adapter_digest: str
    """SHA-256 of its weights."""
    parent_adapter: str
    """Digest of the adapter that training went on from; "" for the bare base."""
    created_at: datetime
    """For people; nothing is decided by it."""


_PLAIN = tuple(name for name in TrainingCheckpoint.__struct_fields__ if name not in ("item_digest", "created_at"))


def append(
    connection: Connection, learner: str, contents: Mapping[str, bytes], about: Mapping[str, Any]
) -> TrainingCheckpoint:
    """Store a checkpoint and what it trained, in one transaction.

    Args:
        connection: the writing transaction.
        learner: who learned.
        contents: digest of each trained trace's content, by item id, in the order trained; at least one.
        about: seq, traces_processed, adapter, adapter_digest, parent_adapter.

    Raises:
        RepositoryError: an item is unknown or was trained by this learner before, or the count does not add up.
    """
    for name, text in (("learner", learner), ("adapter", about["adapter"])):
        if not text or not storable(text):
            raise UsageError(f"{name} {text!r} cannot be stored: give a name without NUL and lone surrogates")
    known = _known(connection, list(contents))
    by_seq = {known[name][0]: content for name, content in contents.items()}
    _refuse_trained(connection, learner, list(by_seq))
    before = next(iter(read(connection, learner, last=True)), None)
    expected = (before.traces_processed if before else 0) + len(contents)
    if not contents or about["traces_processed"] != expected:
        raise RepositoryError(
            f"traces_processed is {about['traces_processed']}, but {len(contents)} new traces after "
            f"{expected - len(contents)} make {expected}; a checkpoint counts what it trained, at least one"
        )
    last = list(contents)[-1]
    number, running = connection.execute(sa.select(head.c.seq, head.c.digest).where(head.c.name == "checkpoints")).one()
    row = {
        "number": int(number) + 1,
        "learner": learner,
        "item_id": last,
        "item_digest": known[last][1],
        "traces": len(contents),
        "created_at": to_micros(datetime.now(UTC)),
        **about,
    }
    row["trained_digest"] = trained_digest(by_seq)
    row["digest"] = checkpoint_digest(row, running)
    marks = [
        {"learner": learner, "seq": seq, "checkpoint": row["number"], "content": content}
        for seq, content in by_seq.items()
    ]
    insert(connection, trained, marks)
    connection.execute(sa.insert(checkpoints).values(**row))
    connection.execute(
        sa.update(head).where(head.c.name == "checkpoints").values(seq=row["number"], digest=row["digest"])
    )
    return _record(row)


def read(connection: Connection, learner: str | None = None, *, last: bool = False) -> list[TrainingCheckpoint]:
    """Return the checkpoints of a learner, or of all, the first one first; with `last`, the newest alone."""
    query = sa.select(checkpoints)
    if learner is not None:
        query = query.where(checkpoints.c.learner == learner)
    query = query.order_by(checkpoints.c.number.desc() if last else checkpoints.c.number)
    rows = connection.execute(query.limit(1) if last else query).mappings().all()
    return [_record(row) for row in rows]


def checkpoint_digest(row: Any, before: bytes) -> bytes:
    """Return the digest of a checkpoint's row, which covers the checkpoint `before` it."""
    plain = [row[name] for name in (*_PLAIN, "created_at")]
    return bytes.fromhex(
        digest_json(["checkpoint", *plain, row["item_digest"].hex(), row["trained_digest"].hex(), before.hex()])
    )


def trained_digest(contents: Mapping[int, bytes]) -> bytes:
    """Return the digest of what one checkpoint trained: content by seq."""
    return bytes.fromhex(digest_json([[seq, bytes(content).hex()] for seq, content in sorted(contents.items())]))


def untrained(learner: str) -> sa.ColumnElement[bool]:
    """Return the condition that an item has not been trained by `learner`."""
    return ~sa.exists().where(trained.c.learner == learner, trained.c.seq == items.c.seq)


def trained_contents(connection: Connection, learner: str, contents: Sequence[bytes]) -> set[bytes]:
    """Return those of `contents` that `learner` has trained, whichever item they came from."""
    return {bytes(content) for content in _trained(connection, learner, trained.c.content, contents)}


def trained_seqs(connection: Connection, learner: str, seqs: Sequence[int]) -> set[int]:
    """Return those of `seqs` whose items `learner` has trained."""
    return {int(seq) for seq in _trained(connection, learner, trained.c.seq, seqs)}


def _trained(connection: Connection, learner: str, column: sa.Column[Any], values: Sequence[Any]) -> Iterator[Any]:
    for batch in batches(values):
        yield from connection.execute(
            sa.select(column).where(trained.c.learner == learner, column.in_(batch))
        ).scalars()


def _known(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[int, bytes]]:
    known: dict[str, tuple[int, bytes]] = {}
    for batch in batches([name for name in ids if storable(name)]):
        query = sa.select(items.c.id, items.c.seq, items.c.digest).where(items.c.id.in_(batch))
        known |= {name: (int(seq), bytes(digest)) for name, seq, digest in connection.execute(query)}
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise RepositoryError(f"no item {unknown[0]!r} in ℛ; a training checkpoint points at stored items")
    return known


def _refuse_trained(connection: Connection, learner: str, seqs: Sequence[int]) -> None:
    for batch in batches(seqs):
        query = sa.select(items.c.id).join(trained, trained.c.seq == items.c.seq)
        taken = connection.execute(query.where(trained.c.learner == learner, trained.c.seq.in_(batch))).scalars().all()
        if taken:
            raise RepositoryError(
                f"item {taken[0]!r} was trained by {learner!r} already (another loop on this repository?); "
                "extract the new traces again"
            )


def _record(row: Any) -> TrainingCheckpoint:
    plain = {name: row[name] for name in _PLAIN}
    return TrainingCheckpoint(
        **plain, item_digest=bytes(row["item_digest"]).hex(), created_at=from_micros(row["created_at"])
    )
