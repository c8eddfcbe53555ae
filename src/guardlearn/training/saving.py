"""Folders that appear whole or not at all, and what a saved model says about its making.

Standard library only: the training process saves adapters with it, and everything after it publishes and merges.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from guardlearn.errors import GuardlearnError, ModelError, write_failure

__all__ = ["ADAPTER_CONFIG", "MANIFEST", "WEIGHTS", "free_space", "manifest_in", "placed", "versions"]

MANIFEST = "guardlearn.json"
"""File of an adapter's or a merged model's folder that says what it came from."""

ADAPTER_CONFIG = "adapter_config.json"
"""File by which a folder is an adapter's."""

WEIGHTS = "adapter_model.safetensors"
"""File of an adapter's folder that holds its weights."""


def manifest_in(folder: Path) -> dict[str, Any] | None:
    """Return what the adapter or merged model in `folder` learned from, or None where nothing says so.

    Raises:
        ModelError: its manifest is unreadable.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")).get("manifest")
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"{path} is not readable as an adapter's manifest ({error}); publish the adapter again"
        ) from error
    if manifest is not None and not isinstance(manifest, dict):
        raise ModelError(f"{path} holds no adapter's manifest but {manifest!r:.40}; publish the adapter again")
    return manifest


@contextlib.contextmanager
def placed(to: Path, *, replaces: str | None = None, keeps: str | None = None) -> Iterator[Path]:
    """Yield a new folder beside `to` that takes its place when the block ends well.

    Files are with the disk before the move, so a full one is noticed first. Whatever goes wrong, `to` is as it was.

    Args:
        to: folder to appear, with its parents.
        replaces: file by which an older folder at `to` may be replaced; None: nothing but an empty folder is.
        keeps: pattern of what stays in `to` beside the new content, and does not make it a foreign folder.

    Raises:
        ModelError: `to` holds something else, or the disk does not take what is written.
    """
    to = to.resolve()
    old = to.with_name(f".{to.name}.old")
    staged = to.with_name(f".{to.name}.new-{socket.gethostname()}-{os.getpid()}")
    try:
        if old.is_dir() and not to.exists():
            old.rename(to)  # a kill came between the two moves below
        _check_place(to, replaces, keeps)
        _remove_leftovers(staged)
        staged.mkdir(parents=True)
        yield staged
        _flush(staged)
        if to.exists():
            shutil.rmtree(old, ignore_errors=True)
            to.rename(old)
        try:
            staged.rename(to)
        except OSError:
            if old.exists():
                old.rename(to)
            raise
        for kept in old.glob(keeps) if keeps else ():
            kept.rename(to / kept.name)
        shutil.rmtree(old, ignore_errors=True)
    except GuardlearnError:
        raise
    except Exception as error:  # each library has its own error for a write that failed; any other goes on as it is
        reason = error.strerror if isinstance(error, PermissionError) else write_failure(error)
        if reason is None:
            raise
        raise ModelError(
            f"{to} cannot be written ({reason}; {free_space(to)} free there); make room or name another place, and "
            "run it again"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def versions(*libraries: str) -> dict[str, str]:
    """Return the versions of Python and of these distributions, by name."""
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _check_place(to: Path, replaces: str | None, keeps: str | None) -> None:
    if not to.exists() or (replaces and (to / replaces).is_file()):
        return
    if to.is_dir() and all(keeps is not None and path.match(keeps) for path in to.iterdir()):
        return
    if replaces == ADAPTER_CONFIG:
        raise ModelError(f"{to} exists and is no adapter folder; choose another place for the adapter")
    raise ModelError(f"{to} exists and is not empty; choose another folder, or remove it first")


def _remove_leftovers(staged: Path) -> None:
    """Remove what killed processes of this machine left beside; a living one's work is its own."""
    ours = staged.name.rpartition("-")[0] + "-"
    for path in staged.parent.iterdir() if staged.parent.is_dir() else ():
        pid = path.name.removeprefix(ours)
        if path.name.startswith(ours) and (pid == str(os.getpid()) or not _lives(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, ValueError):
        return False
    return True


def _flush(folder: Path) -> None:
    """Make every file as readable as its folder, and see that the disk has taken it."""
    allowed = folder.stat().st_mode & 0o666  # as the user's umask has it; safetensors writes for its owner alone
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(allowed)
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)  # a network disk or a quota may say only here that it is full
            finally:
                os.close(handle)


def free_space(to: Path) -> str:
    """Return how much room is left where `to` is or would be."""
    there = next(folder for folder in (to, *to.absolute().parents) if folder.is_dir())
    return f"{shutil.disk_usage(there).free / 2**20:.0f} MB"
