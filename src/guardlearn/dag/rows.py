"""Turns an item into rows and their digests, and rows back into an item.

A row's digest covers every field, the digests of its texts, and its parent's digest, so that a chain cannot be altered
without a trace, and a redacted text leaves its hash behind.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any

import msgspec

from guardlearn.errors import RepositoryError
from guardlearn.types import ArtifactStatus, Facts, FeedbackEntry, RepositoryItem, Side, Source, utc

__all__ = [
    "ItemRows",
    "body_digest",
    "decode_item",
    "decode_seen",
    "decode_text",
    "digest_of",
    "encode_item",
    "encode_text",
    "event_digest",
    "from_micros",
    "item_digest",
    "seen_digest",
    "storable",
    "to_micros",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _plain(value: object) -> object:
    """Return what JSON holds for a value it does not know (erratum 35)."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    raise TypeError(
        f"metadata or sampling holds a {type(value).__name__!r}, which is not JSON serializable; give texts, numbers, "
        "lists, dicts, enums or times"
    )


_encode_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain).encode

NAMES = (
    "id",
    "parent_id",
    "action_pair_id",
    "workflow_id",
    "workflow_ref",
    "source",
    "status",
    "cause",
    "guard",
    "guard_version",
    "model",
    "adapter",
    "prompt_digest",
    "spec_group",
)
"""Text columns of `items`: no NUL, no lone surrogates."""

_names_of = itemgetter(*NAMES)
_SHORT = 65_536
"""Texts below so many bytes are small enough to be copied or kept."""


# a member is a text that equals its value; calling the enum for each item costs more than the look-up
_SOURCES: dict[str, str] = {member.value: member.value for member in Source}
_STATUSES: dict[str, str] = {member.value: member.value for member in ArtifactStatus}


class ItemRows(msgspec.Struct):
    """An item on its way into ℛ: `row` lacks seq, text keys and digest until it is stored."""

    row: dict[str, Any]
    body: dict[str, Any]
    specification: bytes
    specification_digest: bytes
    constraints: bytes
    constraints_digest: bytes


def encode_item(item: RepositoryItem) -> ItemRows:
    """Return the rows of `item`.

    Raises:
        RepositoryError: the id is empty, a name holds what databases refuse, or metadata is no JSON.
    """
    try:
        return _encode(item)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RepositoryError(f"item {item.id!r} cannot be stored: {error}") from error


def _encode(item: RepositoryItem) -> ItemRows:
    row: dict[str, Any] = {
        "id": item.id,
        "parent_id": item.parent_id or "",
        "action_pair_id": item.action_pair_id,
        "workflow_id": item.workflow_id,
        "workflow_ref": item.workflow_ref,
        "source": _SOURCES.get(item.source) or Source(item.source).value,
        "status": _STATUSES.get(item.status) or ArtifactStatus(item.status).value,
        "cause": item.cause,
        "guard": item.guard,
        "guard_version": item.guard_version,
        "model": item.model,
        "adapter": item.adapter,
        "prompt_digest": item.prompt_digest,
        "spec_group": item.group or "",
        "fatal": bool(item.fatal),
        "created_at": to_micros(item.created_at),
    }
    if not item.id:
        raise ValueError("its id is empty; give every attempt an id of its own")
    if not storable("".join(_names_of(row))):
        name = next(name for name in NAMES if not storable(row[name]))
        raise ValueError(f"{name} {row[name]!r} holds NUL or a lone surrogate, which databases refuse in names")
    details: dict[str, Any] = {}  # most attempts of a log have neither
    if item.sampling:
        details["sampling"] = item.sampling
    if item.metadata:
        details["metadata"] = item.metadata
    seen = (
        b""
        if item.seen_history is None
        else _encode_json([[e.artifact, e.feedback, e.item_id] for e in item.seen_history]).encode()
    )
    body = {
        "artifact": encode_text(item.artifact),
        "feedback": encode_text(item.feedback),
        "details": _encode_json(details).encode() if details else b"",
        "seen": seen,
    }
    row["body_digest"] = body_digest(body)
    row["seen_digest"] = seen_digest(seen)
    return ItemRows(row, body, *_shared_text(item.specification), *_shared_text(item.constraints))


def _shared_text(text: str) -> tuple[bytes, bytes]:
    """Return a Ψ or Ω as UTF-8, and its digest; many items share one."""
    return _kept_text(text) if len(text) < _SHORT // 8 else _text_and_digest(text)


def _text_and_digest(text: str) -> tuple[bytes, bytes]:
    body = encode_text(text)
    return body, digest_of(body)


_kept_text = lru_cache(maxsize=512)(_text_and_digest)


def storable(name: str) -> bool:
    """Whether databases take `name` as text: no NUL, no lone surrogate."""
    if "\0" in name:
        return False
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            return False
    return True


def encode_text(text: str) -> bytes:
    """Return `text` as UTF-8, lone surrogates kept."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(body: bytes) -> str:
    """Return the text that `encode_text` was given."""
    return body.decode("utf-8", "surrogatepass")


def digest_of(body: bytes) -> bytes:
    """Return the 32 bytes of SHA-256."""
    return hashlib.sha256(body).digest()


def to_micros(moment: datetime) -> int:
    """Return microseconds since 1970 UTC; a naive time is taken as UTC."""
    return (utc(moment) - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the UTC time of `to_micros`."""
    return _EPOCH + timedelta(microseconds=micros)


def body_digest(body: Mapping[str, bytes]) -> bytes:
    """Return the digest of artifact, feedback and details; lengths keep them apart."""
    parts = (body["artifact"], body["feedback"], body["details"])
    lengths = b"%d,%d,%d;" % (len(parts[0]), len(parts[1]), len(parts[2]))
    if len(parts[0]) < _SHORT:  # one call costs less than four; a long artifact is not copied
        return digest_of(b"".join((lengths, *parts)))
    running = hashlib.sha256(lengths)
    for part in parts:
        running.update(part)
    return running.digest()


def seen_digest(seen: bytes) -> bytes:
    """Return the digest of a stored seen_history, b"" for none."""
    return digest_of(seen) if seen else b""


def item_digest(row: Mapping[str, Any], specification: bytes, constraints: bytes, parent: bytes) -> bytes:
    """Return the digest of an item's row.

    Args:
        row: columns of `items`, seq, text keys and digest not looked at.
        specification: digest of Ψ.
        constraints: digest of Ω.
        parent: digest of the parent's row; b"" without one, or where it was not there yet.
    """
    content = (
        "item",
        *_names_of(row),
        str(row["created_at"]),
        "fatal" if row["fatal"] else "",
        specification.hex(),
        constraints.hex(),
        row["body_digest"].hex(),
        row["seen_digest"].hex(),
        parent.hex(),
    )
    return _digest_names(content)


def event_digest(row: Mapping[str, Any], item: bytes) -> bytes:
    """Return the digest of an event's row; `item` is the digest of the item it is about."""
    content = ["event", *[row[name] for name in ("item_id", "kind", "value", "actor", "reason")]]
    return _digest_names([*content, str(row["created_at"]), item.hex()])


def _digest_names(content: Sequence[str]) -> bytes:
    """Return the digest of a list of names; they hold no NUL, so it keeps them apart."""
    return digest_of("\0".join(content).encode())


def decode_seen(seen: bytes) -> tuple[FeedbackEntry, ...] | None:
    """Return a stored seen_history; None where there is none."""
    if not seen:
        return None
    return tuple(FeedbackEntry(artifact=a, feedback=f, item_id=i) for a, f, i in json.loads(seen))


_STATUS = {member.value: member for member in ArtifactStatus}
_SOURCE = {member.value: member for member in Source}
_SIDE = {member.value: member for member in Side}


def decode_item(
    row: Mapping[str, Any],
    specification: str,
    constraints: str,
    root_id: str,
    history: tuple[FeedbackEntry, ...],
) -> RepositoryItem:
    """Return the item of one joined row (items, bodies, facts and the side of Ψ).

    Args:
        row: its columns by name; the current status is `current_status`.
        specification: Ψ.
        constraints: Ω.
        root_id: id of the first item of its chain.
        history: H by the chain; a stored seen_history takes precedence.
    """
    details = json.loads(row["details"]) if row["details"] else {}
    seen = decode_seen(row["seen"])
    status = _STATUS[row["current_status"]]
    return RepositoryItem(
        id=row["id"],
        artifact=decode_text(row["artifact"]),
        specification=specification,
        status=status,
        action_pair_id=row["action_pair_id"],
        constraints=constraints,
        workflow_id=row["workflow_id"],
        workflow_ref=row["workflow_ref"],
        parent_id=row["parent_id"] or None,
        source=_SOURCE[row["source"]],
        feedback=decode_text(row["feedback"]),
        cause=row["cause"],
        fatal=bool(row["fatal"]),
        guard=row["guard"],
        guard_version=row["guard_version"],
        created_at=from_micros(row["created_at"]),
        model=row["model"],
        adapter=row["adapter"],
        sampling=details.get("sampling", {}),
        prompt_digest=row["prompt_digest"],
        group=row["spec_group"] or None,
        seen_history=seen,
        metadata=details.get("metadata", {}),
        seq=row["seq"],
        facts=Facts(
            status=status,
            root_id=root_id,
            attempt=row["attempt"],
            rejected_ancestors=row["rejected_ancestors"],
            excluded=bool(row["excluded"]),
            reviewed=bool(row["reviewed"]),
            stale=bool(row["stale"]),
            redacted=bool(row["redacted"]),
            broken=bool(row["broken"]),
        ),
        side=_SIDE.get(row["side"]),
        history=history if seen is None else seen,
    )
