"""The JSON Lines of `guardlearn export` into ℛ: the same items, events and sides, in the same order (see `exporting`).

What ℛ holds already is left as it is: an item of the same content is unchanged, of another content a fault; an event
is taken once; a side never changes. All in one transaction, a line at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import imports, redaction, registration
from guardlearn.dag.appending import EVENT_KINDS, Appender, add_to_sides, checked_event, side_digest
from guardlearn.dag.exporting import EVENT_FIELDS, KINDS, checked
from guardlearn.dag.importers.repository_lines import (
    EventLine,
    ItemLine,
    PinLine,
    SpecificationLine,
    encoded,
    salt_of,
    text_bytes,
)
from guardlearn.dag.imports import ImportReport
from guardlearn.dag.neighbours import NeighbourIndex, Sketch
from guardlearn.dag.rows import (
    ItemRows,
    body_digest,
    decode_text,
    digest_of,
    seen_digest,
    storable,
)
from guardlearn.dag.sides import own_cluster
from guardlearn.dag.tables import bodies, events, items, meta, specifications
from guardlearn.errors import DataError, GuardlearnError
from guardlearn.types import OnProgress, Side

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["import_repository"]

_ACTOR = "guardlearn import"
_BATCH = 500
_BATCH_BYTES = 8 << 20
"""Fifty large artifacts need not wait for the rest of a batch."""
_PARENT_MISSING = "parent_missing"


def import_repository(
    dag: ArtifactDAG, path: str | os.PathLike[str], on_progress: OnProgress | None = None
) -> ImportReport:
    """Take from an exported file what ℛ does not hold, in one transaction.

    A line that cannot be taken is named by its number and left out, all others are read; a file that is not whole is
    said to be so.

    Args:
        dag: ℛ, open for writing.
        path: a file of `export_items`.
        on_progress: called with (bytes so far, bytes in all, "storing").

    Returns:
        The completeness report; ℛ keeps it too (`ArtifactDAG.imports`).

    Raises:
        DataError: no such file, or not an exported repository.
    """
    salt = salt_of(path)
    if salt is None:
        raise DataError(f"{os.fspath(path)} is no exported repository; guardlearn export RUNS.db -o FILE writes one")
    with dag.writing() as connection:
        run = _Import(connection, Path(path))
        if connection.execute(sa.select(meta.c.value).where(meta.c.name == "side_salt")).scalar_one() != salt:
            run.faults.append(
                f"side salt {salt!r} is not this repository's; specifications to come get sides by its own"
            )
        report = run.store(on_progress)
        imports.record(connection, os.fspath(path), report)
    return report


class _Replay(Appender):
    """Appends events with the times they had."""

    moments: dict[str, int]
    """When each parent was found missing, by item."""
    moment: int | None = None

    def _moment(self, item_id: str, kind: str) -> int:
        known = self.moments.get(item_id) if kind == _PARENT_MISSING else self.moment
        return super()._moment(item_id, kind) if known is None else known


class _Import:
    """One import inside one writing transaction."""

    def __init__(self, connection: Connection, path: Path) -> None:
        self.faults: list[str] = []
        self._connection, self._path = connection, path
        self._appender = _Replay(connection)
        self._appender.moments = {}
        self._start = self._appender.seq
        last = sa.select(sa.func.coalesce(sa.func.max(specifications.c.key), 0))
        self._last_key = int(connection.execute(last).scalar_one())  # of the specifications that were here before
        self._counts = dict.fromkeys(KINDS, 0)
        self._held = self._skipped = 0
        self._changed: set[str] = set()
        self._owed: dict[str, str] = {}  # texts that are gone, whose redaction has not been read yet
        self._items: dict[str, tuple[int, ItemRows]] = {}
        self._specifications: dict[bytes, SpecificationLine] = {}

    def store(self, on_progress: OnProgress | None) -> ImportReport:
        """Read every line."""
        for number, kind, value in self._lines(on_progress):
            try:
                self._take(number, kind, value)
            except (msgspec.ValidationError, GuardlearnError, ValueError, RecursionError) as error:
                self._fault(number, " ".join(str(error).split()))
        self._flush()
        self._appender.moment = None
        for name, value in self._owed.items():
            self._redact(name, value, _ACTOR, "the file holds only the hash of its text")
            self.faults.append(f"{name}: its text is gone, and the event that says so is not in the file")
        self._appender.finish()
        changed = len(self._changed)
        new = self._appender.new
        return ImportReport(
            read=new + self._held,
            new=new,
            unchanged=self._held - changed,
            changed=changed,
            skipped=self._skipped,
            faults=self.faults,
            unknown={},
        )

    def _lines(self, on_progress: OnProgress | None) -> Iterator[tuple[int, str, Any]]:
        running, number, ended, done, stored = hashlib.sha256(), 0, False, 0, 0
        total = self._path.stat().st_size
        with self._path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                done += len(raw)
                kind, value = self._parsed(number, raw)
                if kind == "end" and isinstance(value, dict):
                    ended = True
                    self._whole(number, value, running.hexdigest())
                elif kind in KINDS:
                    self._counts[kind] += 1
                    yield number, kind, value
                elif kind and not (number == 1 and kind == "format"):
                    self._fault(number, f"{kind!r} is no kind of line; allowed: {', '.join(KINDS)}")
                running.update(raw)
                if done - stored > _BATCH_BYTES:
                    self._flush()
                    stored = done
                if on_progress and number % _BATCH == 0:
                    on_progress(done, total, "storing")
        if not ended:
            self.faults.append(f"line {number}: the file stops here, before its end line; it was cut off")

    def _parsed(self, number: int, raw: bytes) -> tuple[str, Any]:
        """Return a line's kind and value; "" and a fault where it is not as it was written."""
        try:
            line = json.loads(raw)
            if isinstance(line, dict) and line.pop("check", None) is not None and checked(line) == raw:
                kind = next(iter(line), "")
                return kind, line.get(kind)
            reason = "was altered since it was written"
        except (ValueError, RecursionError):
            reason = "is no JSON" if raw.endswith(b"\n") else "is incomplete"
        self._fault(number, f"{reason}; it is not taken")
        return "", None

    def _whole(self, number: int, end: dict[str, Any], digest: str) -> None:
        said = {kind: end.get(kind) for kind in KINDS}
        if said != self._counts:
            differs = [
                f"{self._counts[kind]} of {said[kind]} {kind}s" for kind in KINDS if said[kind] != self._counts[kind]
            ]
            self.faults.append(f"line {number}: the file holds {', '.join(differs)}")
        elif end.get("digest") != digest:
            self.faults.append(
                f"line {number}: the lines before it are not those that were written, or in another order"
            )

    def _take(self, number: int, kind: str, value: Any) -> None:
        if kind == "item":
            self._item(number, msgspec.convert(value, ItemLine))
        elif kind == "event":
            self._event(msgspec.convert(value, EventLine))
        elif kind == "pin":
            pinned = msgspec.convert(value, PinLine)
            registration.pin(self._connection, pinned.spec_group, pinned.side)
        else:
            made = msgspec.convert(value, SpecificationLine)
            if not storable(made.spec_group + made.cluster):
                raise DataError("a group holds NUL or a lone surrogate")
            self._specifications[text_bytes(made.text)] = made
        if len(self._items) + len(self._specifications) >= _BATCH:
            self._flush()

    def _item(self, number: int, item: ItemLine) -> None:
        rows = encoded(item)
        if item.id in self._items:
            self._flush()  # its second line meets a stored item
        self._items[item.id] = number, rows

    def _event(self, event: EventLine) -> None:
        if event.kind == _PARENT_MISSING:
            if event.item_id in self._items:
                self._appender.moments[event.item_id] = event.created_at
            return
        if event.kind not in EVENT_KINDS:
            raise DataError(f"unknown event {event.kind!r}; allowed are: {', '.join(EVENT_KINDS)}")
        checked_event(event.kind, event.value)
        self._flush()
        if not all(storable(getattr(event, name)) for name in EVENT_FIELDS[:-1]):
            raise DataError("an event's text holds NUL or a lone surrogate")
        same = [events.c[name] == getattr(event, name) for name in EVENT_FIELDS]
        known = sa.select(events.c.seq).where(events.c.seq <= self._start, *same).limit(1)
        if self._start and self._connection.execute(known).first() is not None:
            return
        self._appender.moment = event.created_at
        if event.kind == "redact":
            self._redact(event.item_id, event.value, event.actor, event.reason)
            self._owed.pop(event.item_id, None)
        else:
            self._appender.add_event(event.item_id, event.kind, event.value, event.actor, event.reason)
        before = sa.select(items.c.seq).where(items.c.id == event.item_id)
        if self._connection.execute(before).scalar_one() <= self._start:
            self._changed.add(event.item_id)

    def _redact(self, item_id: str, value: str, actor: str, reason: str) -> None:
        if value != redaction.SEEN_ONLY:
            if self._connection.execute(sa.select(items.c.seq).where(items.c.id == item_id)).first() is None:
                raise DataError(f"no item {item_id!r} in ℛ; an event is about a stored item")
            redaction.redact(self._appender, item_id, actor, reason)
            return
        self._appender.add_event(item_id, "redact", value, actor, reason)
        seq = sa.select(items.c.seq).where(items.c.id == item_id).scalar_subquery()
        self._connection.execute(sa.update(bodies).where(bodies.c.seq == seq).values(seen=b""))

    def _flush(self) -> None:
        """Store what has been read and not yet stored, sides first."""
        if self._specifications:
            self._store_sides(self._specifications)
            self._specifications = {}
        if not self._items:
            return
        chosen = sa.select(items.c.id).where(items.c.id.in_(list(self._items)))
        held = set(self._connection.execute(chosen).scalars())
        fresh = [encoded for name, (_, encoded) in self._items.items() if name not in held]
        self._appender.add_encoded(fresh)
        for each in fresh:
            row = each.row
            if row["body_digest"] != body_digest(each.body):
                self._owed[row["id"]] = ""
            elif row["seen_digest"] != seen_digest(each.body["seen"]):
                self._owed[row["id"]] = redaction.SEEN_ONLY
        for name in held:
            number, encoded = self._items[name]
            try:
                self._appender.add_encoded([encoded])
                self._held += 1
            except DataError as error:
                self._fault(number, str(error))
        self._items, self._appender.moments = {}, {}

    def _store_sides(self, given: dict[bytes, SpecificationLine]) -> None:
        keys = self._appender.text_keys({digest_of(body): body for body in given})
        wanted = {keys[digest_of(body)]: (body, each) for body, each in given.items()}
        columns = (specifications.c.key, specifications.c.side)
        for key, side in self._connection.execute(sa.select(*columns).where(columns[0].in_(list(wanted)))):
            body, each = wanted.pop(key)
            self._same_side(body, each, Side(side))
        for body, each in wanted.values():
            here = registration.side_of(self._connection, "", each.spec_group) if each.spec_group else None
            if here is not None:
                self._same_side(body, each, here)
                each.side = here
        grouped = [_side(key, each, None) for key, (_, each) in wanted.items() if each.spec_group]
        if grouped:
            self._connection.execute(specifications.insert(), grouped)
        loose = {key: pair for key, pair in wanted.items() if not pair[1].spec_group}
        if loose:
            self._store_loose(loose)
        change = sum(side_digest(digest_of(b).hex(), each.spec_group, each.side.value) for b, each in wanted.values())
        if wanted:
            add_to_sides(self._connection, change, len(wanted))

    def _store_loose(self, given: dict[int, tuple[bytes, SpecificationLine]]) -> None:
        """Store specifications without a group; those near one that is here on another side are set aside."""
        contents = [decode_text(body) for body, _ in given.values()]
        index = NeighbourIndex(self._connection, contents)
        rows = []
        for (key, (_, each)), text, sketch in zip(given.items(), contents, index.sketch(contents), strict=True):
            if each.side is not Side.SET_ASIDE and self._sides_near(index, sketch) - {each.side}:
                each.side, each.cluster = Side.SET_ASIDE, own_cluster(text)
                self.faults.append(f"specification {each.cluster[1:]}: near one here on another side; it is set aside")
            rows.append(_side(key, each, sketch.packed))
            index.add(key, sketch, each.cluster, each.side)
        self._connection.execute(specifications.insert(), rows)
        index.flush()

    def _sides_near(self, index: NeighbourIndex, sketch: Sketch) -> set[Side]:
        """Return the sides of near-duplicates that were here before; the file's own have settled theirs."""
        return {each.side for each in index.near(sketch) if each.key <= self._last_key} - {Side.SET_ASIDE}

    def _same_side(self, body: bytes, given: SpecificationLine, here: Side) -> None:
        if given.side is not here:
            name = f"specification {digest_of(body).hex()[:12]} (group {given.spec_group or 'none'})"
            self.faults.append(f"{name}: its side is {here.value} here and {given.side.value} in the file; it stays")

    def _fault(self, number: int, reason: str) -> None:
        self._skipped += 1
        self.faults.append(f"line {number}: {reason}")


def _side(key: int, given: SpecificationLine, signature: bytes | None) -> dict[str, Any]:
    named = {"spec_group": given.spec_group, "cluster": given.cluster, "side": given.side.value}
    return {"key": key, **named, "signature": signature}
