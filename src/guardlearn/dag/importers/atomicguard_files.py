"""Finds AtomicGuard's stores under a folder and lists their files; nothing is read and nothing written. Erratum 16."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from guardlearn.errors import DataError

__all__ = ["ObjectFolder", "amendment_files", "find_stores", "listed", "listing", "object_files", "object_folders"]


class ObjectFolder(NamedTuple):
    """One folder of a store's `objects`."""

    number: int
    """Of its store, 1-based."""
    store: str
    """The store's folder as the report names it."""
    path: str


def find_stores(source: str | os.PathLike[str]) -> list[Path]:
    """Return every folder in `source` that is a FilesystemArtifactDAG, whatever the layout (erratum 16).

    Raises:
        DataError: there is none.
    """
    found = [Path(folder) for folder, is_store, _ in _walk(source) if is_store]
    if not found:
        raise DataError(
            f"{os.fspath(source)} holds no AtomicGuard store; one is a folder with index.json and objects/, "
            "or any folder above such ones"
        )
    return sorted(found)


def amendment_files(source: str | os.PathLike[str]) -> list[Path]:
    """Return every amendments/*/*.json under `source`, in order (2.3.0)."""
    found: list[Path] = []
    for folder, _, names in _walk(source):
        if Path(folder).parent.name == "amendments":
            found += [Path(folder, name) for name in names if name.endswith(".json")]
    return sorted(found)


def object_folders(source: str | os.PathLike[str], stores: list[Path]) -> Iterator[ObjectFolder]:
    """Yield the folders that hold object files, store by store, by name.

    Raises:
        DataError: a store's objects cannot be listed.
    """
    for number, store in enumerate(stores, 1):
        with listed(store / "objects") as found:
            paths = sorted(each.path for each in found if each.is_dir())
        name = os.path.relpath(store, source)
        yield from (ObjectFolder(number, name, path) for path in paths)


def object_files(folder: str) -> list[str]:
    """Return the names of a folder's object files, in order.

    Raises:
        DataError: it cannot be listed.
    """
    with listed(folder) as found:
        return sorted(each.name for each in found if each.name.endswith(".json"))


@contextlib.contextmanager
def listed(folder: str | Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Yield what a folder holds.

    Raises:
        DataError: it cannot be listed.
    """
    with listing(folder), os.scandir(folder) as found:
        yield found


@contextlib.contextmanager
def listing(folder: str | Path) -> Iterator[None]:
    """Say of what fails inside that a folder cannot be listed.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{os.fspath(folder)} cannot be listed ({error.strerror}); let this user read it, then do the same again"
        ) from None


def _walk(source: str | os.PathLike[str]) -> Iterator[tuple[str, bool, list[str]]]:
    """Yield each folder, whether it is a store, and its files' names; a store's objects are passed over."""
    for folder, names, files in os.walk(source):
        is_store = "objects" in names and not {"index.json", "index.tmp"}.isdisjoint(files)
        if is_store:
            names.remove("objects")
        names.sort()
        yield folder, is_store, files
