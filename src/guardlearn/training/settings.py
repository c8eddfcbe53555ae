"""Reading a job folder: settings, rows and manifest, checked against their digests before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_bytes
from guardlearn.errors import JobError

__all__ = ["Job", "Settings", "Stage", "read_job"]

_FORMATS = (2, 3, 4)  # 3 says more of what a job was made of; 4 may hold rows of rejected attempts, and a second stage
_FILES = ("job.toml", "train.jsonl", "validation.jsonl")
_SECOND = ("train.second.jsonl", "validation.second.jsonl")
_METHODS = ("sft", "kto", "dpo", "sft+kto", "sft+dpo")


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
    # what older jobs do not say
    beta: float = 0.1
    sft_term: float = 1.0
    second_learning_rate: float = 5e-5
    second_epochs: float = 1.0
    micro_batch_size: int | None = None
    eval_steps: int | None = None
    early_stopping: int = 0
    keep: str = "last"

    @property
    def methods(self) -> list[str]:
        """The method of each stage, in order: `sft+dpo` is two stages."""
        return self.method.split("+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One method's part of a job; the second goes on from what the first left."""

    method: str
    """sft, kto or dpo."""
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    """Empty where the job has no validation side."""
    learning_rate: float
    epochs: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job folder, read and found unaltered."""

    folder: Path
    settings: Settings
    stages: list[Stage]
    """One or two, in order."""
    manifest: dict[str, Any]
    manifest_digest: str

    @property
    def train(self) -> list[dict[str, Any]]:
        """The first stage's rows."""
        return self.stages[0].train

    @property
    def validation(self) -> list[dict[str, Any]]:
        """The first stage's rows of the validation side."""
        return self.stages[0].validation


def read_job(folder: Path) -> Job:
    """Read a job folder.

    Raises:
        JobError: a file is missing, altered (its digest is named) or unreadable, or of another format.
    """
    raw = _read(folder, "manifest.json")
    manifest = _json(raw, folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") not in _FORMATS:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        reads = f"{', '.join(map(str, _FORMATS[:-1]))} and {_FORMATS[-1]}"
        raise JobError(
            f"{folder}/manifest.json is of format {found!r}, this trainer reads {reads}; write the job again"
        )
    data = {name: _unaltered(folder, name, manifest) for name in _FILES}
    settings = _settings(data["job.toml"], folder / "job.toml")
    if len(settings.methods) > 1:
        data |= {name: _unaltered(folder, name, manifest) for name in _SECOND}
    rows = {name: _rows(content, folder / name) for name, content in data.items() if name.endswith(".jsonl")}
    return Job(
        folder=folder,
        settings=settings,
        stages=_stages(settings, rows),
        manifest=manifest,
        manifest_digest=digest_bytes(raw),
    )


def _stages(settings: Settings, rows: dict[str, list[dict[str, Any]]]) -> list[Stage]:
    first, second = settings.methods[0], settings.methods[1:]
    stages = [
        Stage(
            method=first,
            train=rows["train.jsonl"],
            validation=rows["validation.jsonl"],
            learning_rate=settings.learning_rate,
            epochs=settings.epochs,
        )
    ]
    stages += [
        Stage(
            method=method,
            train=rows["train.second.jsonl"],
            validation=rows["validation.second.jsonl"],
            learning_rate=settings.second_learning_rate,
            epochs=settings.second_epochs,
        )
        for method in second
    ]
    return stages


def _unaltered(folder: Path, name: str, manifest: dict[str, Any]) -> bytes:
    content = _read(folder, name)
    written, found = manifest.get("files", {}).get(name), digest_bytes(content)
    if written != found:
        raise JobError(
            f"{folder}/{name} was altered: its SHA-256 is {found}, the manifest says {written}; write the job again"
        )
    return content


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
        settings = Settings(**tomllib.loads(raw.decode("utf-8")))
    except (tomllib.TOMLDecodeError, TypeError) as error:  # TypeError names the missing or the unknown key
        problem = str(error).replace("Settings.__init__()", "").strip()
        raise JobError(
            f"{where}: {problem}; write the job again, or use the guardlearn version that wrote it"
        ) from error
    if settings.method not in _METHODS:
        known = ", ".join(_METHODS)
        raise JobError(f"{where}: method {settings.method!r} is unknown to this trainer, which knows {known}")
    return settings
