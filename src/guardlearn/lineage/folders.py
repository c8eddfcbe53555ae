"""Whether an adapter's folder is there and is what its round left: by digest, never by name or time."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from guardlearn import adapters
from guardlearn.errors import ModelError
from guardlearn.lineage.records import AdapterRecord

__all__ = ["Presence", "check", "presence", "pruned_note", "read_pruned_note"]


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """What is where an adapter should be."""

    state: str
    """there | altered | gone | pruned | not trained."""
    said: str
    """In words, for people."""
    found: str = ""
    """Digest of the weights that are there; "": none."""


def presence(record: AdapterRecord) -> Presence:
    """Look at an adapter's folder; reads all of its weights."""
    if not record.digest:
        return Presence(state="not trained", said=f"not trained: the round is {record.state}")
    folder = Path(record.folder)
    if not (folder / adapters.WEIGHTS).is_file():
        note = read_pruned_note(record)
        if note is not None:
            return Presence(state="pruned", said=f"pruned by {note['actor']} at {note['at']}")
        return Presence(state="gone", said=f"there is none in {folder}")
    found = adapters.adapter_digest(folder)
    if found != record.digest:
        said = f"edited by hand: its weights are {found[:12]}, the round left {record.digest[:12]}"
        return Presence(state="altered", said=said, found=found)
    config = adapters.config_digest(folder)
    if record.config_digest and config != record.config_digest:
        said = f"edited by hand: its adapter_config.json is {config[:12]}, the round left {record.config_digest[:12]}"
        return Presence(state="altered", said=said, found=found)
    return _manifest_presence(record, folder, found)


def check(record: AdapterRecord) -> Path:
    """Return the folder of an adapter that is there, unaltered.

    Raises:
        ModelError: it is not; both digests are named where they differ.
    """
    found = presence(record)
    if found.state != "there":
        raise ModelError(
            f"adapter {record.name} cannot be used: {found.said}; put its folder {record.folder or '(none)'} back as "
            "it was, or name another adapter"
        )
    return Path(record.folder)


def pruned_note(record: AdapterRecord) -> Path:
    """Return the file that says, beside where the folder was, that and by whom it was pruned."""
    folder = Path(record.folder)
    return folder.with_name(f"{folder.name}.pruned.json")


def read_pruned_note(record: AdapterRecord) -> dict[str, str] | None:
    """Return who pruned this adapter and when; None where nobody did."""
    try:
        note = json.loads(pruned_note(record).read_text(encoding="utf-8"))
        told = {name: str(note[name]) for name in ("digest", "actor", "at")}
        datetime.fromisoformat(told["at"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return told if told["digest"] == record.digest else None


def _manifest_presence(record: AdapterRecord, folder: Path, found: str) -> Presence:
    """Compare what stands beside the weights with what the round knows of them."""
    try:
        manifest: dict[str, Any] | None = adapters.read_manifest(folder)
    except ModelError as error:
        return Presence(state="altered", said=f"edited by hand: {error}", found=found)
    if record.round and record.manifest and manifest != record.manifest:
        said = f"edited by hand: its {adapters.MANIFEST} is not the one that the round left"
        return Presence(state="altered", said=said, found=found)
    return Presence(state="there", said=f"there, unaltered: {folder}", found=found)
