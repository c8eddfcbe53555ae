"""Reads one object of an AtomicGuard store: first what decides its place, later the rows it becomes.

Whatever depends on other objects is left to the survey and the import. This module runs in the processes of
`atomicguard_pool` too, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.dag.importers import atomicguard_object as objects
from guardlearn.dag.rows import NAMES, ItemRows, encode_item, encode_text, storable, storable_name, to_micros
from guardlearn.errors import RepositoryError

__all__ = ["Head", "Record", "read_object", "rows_of", "skim_object"]


class Head(msgspec.Struct, array_like=True):
    """What decides the place of one object."""

    fault: str = ""
    """Why it cannot be read, "" where it can."""
    id: str = ""
    parent_id: str = ""
    """The attempt it retries, by the provenance that the reader chose; "" for none."""
    created_at: int = 0
    """Microseconds since 1970; the file's time where the object has none."""
    time_known: bool = False
    status: str = ""


class Record(msgspec.Struct, array_like=True):
    """An object on its way into ℛ, flat, because it goes from process to process, and what the report says of it."""

    fault: str = ""
    """Why there is nothing else, "" where there is."""
    names: str = ""
    """The row's NAMES, with NUL between them."""
    fatal: bool = False
    body_digest: bytes = b""
    artifact: bytes = b""
    feedback: bytes = b""
    details: bytes = b""
    texts: tuple[bytes, bytes, bytes, bytes] = (b"", b"", b"", b"")
    """Ψ and its digest, Ω and its digest."""
    faults: list[str] = []
    unknown: tuple[str, ...] = ()
    """What the object does not say."""
    cited: dict[str, list[str]] = {}
    """Ids of other attempts by what they are to this one; "" for what can be no id."""
    history: list[tuple[str, bytes]] = []
    """H: id and feedback."""
    exclude: str = ""
    """Why it is not a generator's work to learn from."""


class _Skimmed(msgspec.Struct):
    """The fields of an object that decide its place."""

    artifact_id: str
    content: msgspec.Raw
    previous_attempt_id: Any = None
    created_at: Any = None
    status: Any = None


class _SkimmedWithHistory(_Skimmed):
    context: Any = None


_NOW = datetime(1970, 1, 1, tzinfo=UTC)  # the survey knows the time
_decode = msgspec.json.Decoder(_Skimmed).decode
_decode_with_history = msgspec.json.Decoder(_SkimmedWithHistory).decode


def skim_object(path: str, by_history: bool) -> Head:
    """Return what decides the place of an object file.

    Args:
        path: the file.
        by_history: join a restarted cycle to the last attempt of its H (erratum 7).
    """
    try:
        value = _skimmed(objects.read_bytes(path), by_history)
    except ValueError as error:
        return Head(fault=f"not read, {error}")
    created_at = objects.time_of(value.get("created_at"))
    return Head(
        id=value["artifact_id"],
        parent_id=_id(_parent(value, by_history)),
        created_at=to_micros(created_at or _modified(path)),
        time_known=created_at is not None,
        status=storable_name(str(value.get("status"))),
    )


def read_object(path: str, store: str, by_history: bool, people: Collection[str]) -> Record:
    """Return what an object file becomes.

    Args:
        path: the file.
        store: folder of its DAG, kept in the metadata.
        by_history: see `skim_object`.
        people: keys of the amendments that people wrote (`amendment_key`).
    """
    try:
        value, plain = objects.parse(objects.read_bytes(path))
        human = bool(people) and objects.amendment_key(value.get("previous_attempt_id"), value["content"]) in people
        made = objects.convert(
            value,
            parent_id=_parent(value, by_history) or None,
            created_at=_NOW,
            store=store,
            human=human,
            plain=plain,
        )
        rows = encode_item(made.item, decoded=plain)
    except RepositoryError as error:
        return Record(fault=f"it cannot be stored: {error}")
    except ValueError as error:
        return Record(fault=f"not read, {error}")
    body = rows.body
    return Record(
        names=rows.names,
        fatal=rows.row["fatal"],
        body_digest=rows.row["body_digest"],
        artifact=body["artifact"],
        feedback=body["feedback"],
        details=body["details"],
        texts=(rows.specification, rows.specification_digest, rows.constraints, rows.constraints_digest),
        faults=made.faults,
        unknown=tuple(made.unknown),
        cited={kind: names if plain else list(map(_id, names)) for kind, names in made.cited.items() if names},
        history=[(name if plain else _id(name), encode_text(said)) for name, said in made.history],
        exclude=made.exclude,
    )


def rows_of(record: Record, created_at: int) -> ItemRows:
    """Return the rows that `encode_item` made, with their time."""
    row: dict[str, Any] = dict(zip(NAMES, record.names.split("\0"), strict=True))
    row["fatal"], row["created_at"], row["body_digest"] = record.fatal, created_at, record.body_digest
    row["seen_digest"] = b""
    body = {"artifact": record.artifact, "feedback": record.feedback, "details": record.details, "seen": b""}
    return ItemRows(row, body, *record.texts, record.names)


def _skimmed(raw: bytes, by_history: bool) -> dict[str, Any]:
    """Return the fields that decide a place; the whole object where only that tells what is wrong."""
    try:
        found = _decode_with_history(raw) if by_history else _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return objects.parse(raw)[0]
    if bytes(found.content)[:1] != b'"' or not found.artifact_id or not storable(found.artifact_id):
        return objects.parse(raw)[0]
    return {name: getattr(found, name) for name in found.__struct_fields__}


def _parent(value: dict[str, Any], by_history: bool) -> str:
    parent = value.get("previous_attempt_id")
    if isinstance(parent, str) and parent:
        return parent
    told = objects.history(value) if by_history else []
    return next((name for name, _ in reversed(told) if name), "")


def _id(name: str) -> str:
    return name if storable(name) else ""


def _modified(path: str) -> datetime:
    try:
        return datetime.fromtimestamp(Path(path).stat().st_mtime, UTC)
    except OSError:  # it went while it was read
        return _NOW
