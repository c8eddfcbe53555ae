"""The lines of an exported repository, checked, and the rows of an item's line (see `exporting`)."""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

from guardlearn.dag.exporting import FORMAT, VERSION
from guardlearn.dag.rows import NAMES, ItemRows, body_digest, decode_text, digest_of, encode_text, seen_digest, storable
from guardlearn.errors import DataError
from guardlearn.types import ArtifactStatus, Side, Source

__all__ = ["EventLine", "ItemLine", "PinLine", "SpecificationLine", "encoded", "salt_of", "text_bytes"]

_Micros = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
_Text = str | dict[str, str]


class SpecificationLine(msgspec.Struct, forbid_unknown_fields=True):
    """A Ψ and its side."""

    text: _Text
    spec_group: str
    cluster: str
    side: Side


class PinLine(msgspec.Struct, forbid_unknown_fields=True):
    """A group whose side was chosen by hand."""

    spec_group: str
    side: Side


class EventLine(msgspec.Struct, forbid_unknown_fields=True):
    """What became known about an item later."""

    item_id: str
    kind: str
    value: str
    actor: str
    reason: str
    created_at: _Micros


class ItemLine(msgspec.Struct, forbid_unknown_fields=True):
    """An attempt, as stored."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    parent_id: str
    action_pair_id: str
    workflow_id: str
    workflow_ref: str
    source: Source
    status: ArtifactStatus
    cause: str
    guard: str
    guard_version: str
    model: str
    adapter: str
    prompt_digest: str
    spec_group: str
    fatal: bool
    created_at: _Micros
    specification: _Text
    constraints: _Text
    artifact: _Text
    feedback: _Text
    details: dict[str, Any] | None = None
    seen: list[Any] | None = None
    body_digest: str = ""
    seen_digest: str = ""


def salt_of(path: str | os.PathLike[str]) -> str | None:
    """Return the side salt of an exported repository, None where the file is something else.

    Raises:
        DataError: it cannot be read, or another version of guardlearn wrote it.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.readline(65_536)
    except OSError as error:
        raise DataError(f"{os.fspath(path)} cannot be read ({error.strerror}); name a file") from error
    try:
        first = json.loads(start)
    except (ValueError, RecursionError):
        return None
    if not isinstance(first, dict) or first.get("format") != FORMAT:
        return None
    version, salt = first.get("version"), first.get("side_salt")
    if version != VERSION or not isinstance(salt, str):
        raise DataError(f"{os.fspath(path)} has version {version!r} of {FORMAT}, this guardlearn reads {VERSION}")
    return salt


def text_bytes(text: _Text) -> bytes:
    """Return a text as ℛ stores it; see `exporting`."""
    if isinstance(text, str):
        return encode_text(text)
    try:
        return encode_text(decode_text(base64.b64decode(text["base64"], validate=True)))
    except (KeyError, binascii.Error, UnicodeDecodeError) as error:
        raise DataError(f"a text is neither a string nor base64 of UTF-8 ({error})") from error


def encoded(item: ItemLine) -> ItemRows:
    """Return an item's rows; a redacted text keeps the hash that its line carries.

    Raises:
        DataError: a name that databases refuse, or a text beside the hash of a text that is gone.
        ValueError: a hash that is not hexadecimal.
    """
    row: dict[str, Any] = {name: getattr(item, name) for name in NAMES}
    row |= {"source": item.source.value, "status": item.status.value, "fatal": item.fatal}
    row["created_at"] = item.created_at
    if not storable("".join(row[name] for name in NAMES)):
        raise DataError(f"item {item.id!a} has a name with NUL or a lone surrogate, which databases refuse")
    body = {"artifact": text_bytes(item.artifact), "feedback": text_bytes(item.feedback)}
    for name in ("details", "seen"):  # in the order and spelling they had: the digests cover these bytes
        value = getattr(item, name)
        body[name] = b"" if value is None else json.dumps(value, separators=(",", ":")).encode()
    row["body_digest"] = bytes.fromhex(item.body_digest) if item.body_digest else body_digest(body)
    row["seen_digest"] = bytes.fromhex(item.seen_digest) if item.seen_digest else seen_digest(body["seen"])
    if (item.body_digest and any(body[name] for name in ("artifact", "feedback", "details"))) or (
        item.seen_digest and body["seen"]
    ):
        raise DataError(f"item {item.id!r} carries the hash of a redacted text and a text; it is one or the other")
    psi, omega = text_bytes(item.specification), text_bytes(item.constraints)
    return ItemRows(row, body, psi, digest_of(psi), omega, digest_of(omega))
