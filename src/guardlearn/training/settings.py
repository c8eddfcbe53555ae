"""Reading a job folder: settings, rows and manifest, checked against their digests before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_bytes
from guardlearn.errors import JobError

__all__ = ["Job", "Settings", "read_job"]

_FORMATS = (2, 3)  # 3 says more of what a job was made of; the files are the same
_FILES = ("job.toml", "train.jsonl", "validation.jsonl")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What job.toml says; its meaning and defaults stand at `guardlearn.jobs.TrainingConfig`."""

    base_model: str
    views: list[str]
    retry: Any
    max_length: int
    epochs: float
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    lora_r: int
    lora_alpha: int
    seed: int
    gradient_checkpointing: bool
    method: str
    backend: str
    load_in_4bit: bool
    layout: Any = "plain"
    max_steps: int | None = None
    save_steps: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job folder, read and found unaltered."""

    folder: Path
    settings: Settings
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    manifest: dict[str, Any]
    manifest_digest: str


def read_job(folder: Path) -> Job:
    """Read a job folder.

    Raises:
        JobError: a file is missing, altered (its digest is named) or unreadable, or of another format.
    """
    raw = _read(folder, "manifest.json")
    manifest = _json(raw, folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") not in _FORMATS:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        reads = " and ".join(map(str, _FORMATS))
        raise JobError(
            f"{folder}/manifest.json is of format {found!r}, this trainer reads {reads}; write the job again"
        )
    data = {name: _read(folder, name) for name in _FILES}
    for name, content in data.items():
        written, found = manifest.get("files", {}).get(name), digest_bytes(content)
        if written != found:
            raise JobError(
                f"{folder}/{name} was altered: its SHA-256 is {found}, the manifest says {written}; write the job again"
            )
    return Job(
        folder=folder,
        settings=_settings(data["job.toml"], folder / "job.toml"),
        train=_rows(data["train.jsonl"], folder / "train.jsonl"),
        validation=_rows(data["validation.jsonl"], folder / "validation.jsonl"),
        manifest=manifest,
        manifest_digest=digest_bytes(raw),
    )


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise JobError(
            f"{folder} holds no readable {name} ({error.strerror}); a job folder is what `train` writes"
        ) from error


def _json(raw: bytes | str, where: Path, line: int | None = None) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        place = f"{where} line {line}" if line else str(where)
        raise JobError(f"{place} is no JSON ({error}); write the job again") from error


def _rows(raw: bytes, where: Path) -> list[dict[str, Any]]:
    lines = raw.split(b"\n")  # not splitlines: U+2028 may stand inside a JSON string
    return [_json(line, where, number) for number, line in enumerate(lines, start=1) if line]


def _settings(raw: bytes, where: Path) -> Settings:
    try:
        return Settings(**tomllib.loads(raw.decode("utf-8")))
    except (tomllib.TOMLDecodeError, TypeError) as error:  # TypeError names the missing or the unknown key
        problem = str(error).replace("Settings.__init__()", "").strip()
        raise JobError(
            f"{where}: {problem}; write the job again, or use the guardlearn version that wrote it"
        ) from error
