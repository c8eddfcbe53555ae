"""Turns an item into rows and their digests, and rows back into an item.

A row's digest covers every field, the digests of its texts, and its parent's digest, so that a chain cannot be altered
without a trace, and a redacted text leaves its hash behind.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any

import msgspec

from guardlearn.errors import RepositoryError
from guardlearn.types import ArtifactStatus, Facts, FeedbackEntry, RepositoryItem, Side, Source, utc

__all__ = [
    "READ_BODY",
    "READ_FACTS",
    "READ_ITEM",
    "ItemRows",
    "body_digest",
    "decode_item",
    "decode_seen",
    "decode_text",
    "digest_of",
    "encode_item",
    "encode_seen",
    "encode_text",
    "event_digest",
    "from_micros",
    "item_digest",
    "seen_digest",
    "storable",
    "storable_name",
    "to_micros",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
_encode_fast = msgspec.json.Encoder(order="sorted").encode
_WRITTEN_OTHERWISE = re.compile(rb"[\x7f-\xff]|[:,\[]-?(?:0\.0000|[0-9.]+e)")
"""Where `_encode_fast` writes JSON otherwise than `_encode_json`: signs beyond ASCII, very small or large numbers.

A text that only looks so costs time, nothing else.
"""

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
_BETWEEN = len(NAMES) - 1
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
    names: str = ""
    """The values of NAMES with NUL between them, where they are joined already."""


def encode_item(item: RepositoryItem, *, decoded: bool = False) -> ItemRows:
    """Return the rows of `item`.

    Args:
        item: an attempt.
        decoded: its metadata and sampling hold what msgspec decoded from JSON, nothing else.

    Raises:
        RepositoryError: the id is empty, a name holds what databases refuse, or metadata is no JSON.
    """
    try:
        return _encode(item, decoded)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RepositoryError(f"item {item.id!r} cannot be stored: {error}") from error


def _encode(item: RepositoryItem, decoded: bool) -> ItemRows:
    names = (
        item.id,
        item.parent_id or "",
        item.action_pair_id,
        item.workflow_id,
        item.workflow_ref,
        _SOURCES.get(item.source) or Source(item.source).value,
        _STATUSES.get(item.status) or ArtifactStatus(item.status).value,
        item.cause,
        item.guard,
        item.guard_version,
        item.model,
        item.adapter,
        item.prompt_digest,
        item.group or "",
    )
    joined = "\0".join(names)
    row: dict[str, Any] = dict(zip(NAMES, names, strict=True))
    row["fatal"], row["created_at"] = bool(item.fatal), to_micros(item.created_at)
    if not item.id:
        raise ValueError("its id is empty; give every attempt an id of its own")
    if joined.count("\0") != _BETWEEN or not (joined.isascii() or storable("".join(names))):
        name = next(name for name in NAMES if not storable(row[name]))
        raise ValueError(f"{name} {row[name]!r} holds NUL or a lone surrogate, which databases refuse in names")
    details: dict[str, Any] = {}  # most attempts of a log have neither
    if item.sampling:
        details["sampling"] = item.sampling
    if item.metadata:
        details["metadata"] = item.metadata
    seen = b"" if item.seen_history is None else encode_seen(item.seen_history)
    body = {
        "artifact": item.artifact.encode("utf-8", "surrogatepass"),
        "feedback": item.feedback.encode("utf-8", "surrogatepass"),
        "details": _encode_details(details, decoded) if details else b"",
        "seen": seen,
    }
    row["body_digest"] = body_digest(body)
    row["seen_digest"] = seen_digest(seen)
    return ItemRows(row, body, *_shared_text(item.specification), *_shared_text(item.constraints), joined)


def _encode_details(details: dict[str, Any], decoded: bool) -> bytes:
    if decoded:  # five times as fast
        with contextlib.suppress(ValueError):  # a lone surrogate, in the name of a folder
            found = _encode_fast(details)
            if not _WRITTEN_OTHERWISE.search(found):
                return found
    return _encode_json(details).encode()


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


def storable_name(text: str) -> str:
    """Return a text as databases take it in a name: NUL and lone surrogates are written out."""
    return text if storable(text) else text.encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")


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
    since = (moment if getattr(moment, "tzinfo", None) is UTC else utc(moment)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    """Return the UTC time of `to_micros`."""
    return _EPOCH + timedelta(microseconds=micros)


def body_digest(body: Mapping[str, bytes]) -> bytes:
    """Return the digest of artifact, feedback and details; lengths keep them apart."""
    parts = (body["artifact"], body["feedback"], body["details"])
    lengths = b"%d,%d,%d;" % (len(parts[0]), len(parts[1]), len(parts[2]))
    if len(parts[0]) < _SHORT:  # one call costs less than four; a long artifact is not copied
        return hashlib.sha256(b"".join((lengths, *parts))).digest()
    running = hashlib.sha256(lengths)
    for part in parts:
        running.update(part)
    return running.digest()


def seen_digest(seen: bytes) -> bytes:
    """Return the digest of a stored seen_history, b"" for none."""
    return digest_of(seen) if seen else b""


def item_digest(
    row: Mapping[str, Any], specification: bytes, constraints: bytes, parent: bytes, names: str = ""
) -> bytes:
    """Return the digest of an item's row.

    Args:
        row: columns of `items`, seq, text keys and digest not looked at.
        specification: digest of Ψ.
        constraints: digest of Ω.
        parent: digest of the parent's row; b"" without one, or where it was not there yet.
        names: `ItemRows.names` where they are joined already.
    """
    joined = names or "\0".join(_names_of(row))
    fatal = "fatal" if row["fatal"] else ""
    content = (
        f"item\0{joined}\0{row['created_at']}\0{fatal}\0{specification.hex()}\0{constraints.hex()}\0"
        f"{row['body_digest'].hex()}\0{row['seen_digest'].hex()}\0{parent.hex()}"
    )
    return hashlib.sha256(content.encode()).digest()


def event_digest(row: Mapping[str, Any], item: bytes) -> bytes:
    """Return the digest of an event's row; `item` is the digest of the item it is about."""
    content = ["event", *[row[name] for name in ("item_id", "kind", "value", "actor", "reason")]]
    # names hold no NUL, so it keeps them apart
    return digest_of("\0".join([*content, str(row["created_at"]), item.hex()]).encode())


def encode_seen(history: Sequence[FeedbackEntry]) -> bytes:
    """Return a seen_history as it is stored."""
    return _encode_json([[each.artifact, each.feedback, each.item_id] for each in history]).encode()


def decode_seen(seen: bytes) -> tuple[FeedbackEntry, ...] | None:
    """Return a stored seen_history; None where there is none."""
    if not seen:
        return None
    return tuple(FeedbackEntry(artifact=a, feedback=f, item_id=i) for a, f, i in _decode_json(seen))


_STATUS = {member.value: member for member in ArtifactStatus}
_SOURCE = {member.value: member for member in Source}
_SIDE = {member.value: member for member in Side}

READ_ITEM = (
    *("seq", "id", "parent_id", "specification", "constraints", "action_pair_id", "workflow_id", "workflow_ref"),
    *("source", "cause", "fatal", "guard", "guard_version", "created_at", "model", "adapter", "prompt_digest"),
    "spec_group",
)
READ_FACTS = (
    *("status", "parent_seq", "root_seq", "attempt", "rejected_ancestors"),
    *("excluded", "reviewed", "stale", "redacted", "broken"),
)
READ_BODY = ("seq", "artifact", "feedback", "details", "seen")
"""Columns of items, facts and bodies in the order in which `decode_item` takes them."""


def decode_item(
    row: Sequence[Any],
    body: Sequence[Any],
    texts: tuple[str, str],
    side: str | None,
    root_id: str,
    history: tuple[FeedbackEntry, ...],
) -> RepositoryItem:
    """Return the item of its rows.

    Args:
        row: columns READ_ITEM, then READ_FACTS.
        body: columns READ_BODY.
        texts: Ψ and Ω.
        side: of Ψ; None where it has none.
        root_id: id of the first item of its chain.
        history: H by the chain; a stored seen_history takes precedence.
    """
    seq, item_id, parent_id, _, _, action_pair_id, workflow_id, workflow_ref, source, cause, fatal, *rest = row
    guard, guard_version, created_at, model, adapter, prompt_digest, group, current, *rest = rest
    _, _, attempt, rejected_ancestors, excluded, reviewed, stale, redacted, broken = rest
    _, artifact, feedback, stored_details, stored_seen = body
    details = _decode_json(stored_details) if stored_details else {}
    seen = decode_seen(stored_seen)
    status = _STATUS[current]
    return RepositoryItem(
        id=item_id,
        artifact=decode_text(artifact),
        specification=texts[0],
        status=status,
        action_pair_id=action_pair_id,
        constraints=texts[1],
        workflow_id=workflow_id,
        workflow_ref=workflow_ref,
        parent_id=parent_id or None,
        source=_SOURCE[source],
        feedback=decode_text(feedback),
        cause=cause,
        fatal=bool(fatal),
        guard=guard,
        guard_version=guard_version,
        created_at=from_micros(created_at),
        model=model,
        adapter=adapter,
        sampling=details.get("sampling", {}),
        prompt_digest=prompt_digest,
        group=group or None,
        seen_history=seen,
        metadata=details.get("metadata", {}),
        seq=seq,
        facts=Facts(
            status=status,
            root_id=root_id,
            attempt=attempt,
            rejected_ancestors=rejected_ancestors,
            excluded=bool(excluded),
            reviewed=bool(reviewed),
            stale=bool(stale),
            redacted=bool(redacted),
            broken=bool(broken),
        ),
        side=_SIDE.get(side or ""),
        history=history if seen is None else seen,
    )


def _decode_json(body: bytes) -> Any:
    """Return a value that `_encode_json` wrote."""
    try:
        return msgspec.json.decode(body)  # five times as fast
    except msgspec.DecodeError:  # lone surrogates, NaN and infinities are no JSON to it
        return json.loads(body)
