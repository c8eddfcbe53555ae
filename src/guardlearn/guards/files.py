"""Files that a guard gives a program beside the artifact: tests, schemas, configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from guardlearn.digests import digest_bytes, digest_json
from guardlearn.errors import GuardError, UsageError
from guardlearn.types import Specification

__all__ = ["files_digest", "files_of", "given_files", "inside", "readable_paths"]

_MOST_FOLDER_BYTES = 64 << 20
_LEFT_OUT = {"__pycache__", ".git", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def given_files(folder: str, files: Mapping[str, str], guard: str) -> dict[str, bytes]:
    """Return the contents of `folder`'s files and of `files` by relative name; the latter win.

    Raises:
        UsageError: there is no such folder, it is too large, or a name leads out of the work folder.
    """
    named = {inside(name, guard): text.encode("utf-8", "surrogatepass") for name, text in files.items()}
    return (_folder_files(folder, guard) if folder else {}) | named


def files_of(specification: Specification, key: str, guard: str) -> dict[str, bytes]:
    """Return the files that a specification brings under a key of its metadata.

    Raises:
        GuardError: they are not {name: text}.
    """
    given = specification.metadata.get(key, {})
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for text in given.values()):
        raise GuardError(
            f"specification {specification.id!r}: metadata.{key} is {str(given)[:60]}; "
            f"guard {guard!r} needs {{file name: text}}"
        )
    try:
        return given_files("", given, guard)
    except UsageError as error:
        raise GuardError(f"specification {specification.id!r}: {error}") from None


def files_digest(files: Mapping[str, bytes]) -> str:
    """Return one digest over names and contents."""
    return digest_json({name: digest_bytes(data) for name, data in files.items()})


def readable_paths(paths: Sequence[str], guard: str) -> tuple[Path, ...]:
    """Return the paths a program may read as absolute ones.

    Raises:
        UsageError: one is not there.
    """
    found = tuple(Path(each).expanduser().absolute() for each in paths)
    for path in found:
        if not path.exists():
            raise UsageError(f"guard {guard!r}: readable {str(path)!r} is not there")
    return found


def inside(name: str, guard: str) -> str:
    """Return a file's name if it stays within the work folder."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or str(path) == ".":
        raise UsageError(f"guard {guard!r}: {name!r} is no file name within the work folder")
    return str(path)


def _folder_files(folder: str, guard: str) -> dict[str, bytes]:
    """Return the contents of a folder's files by relative name, caches left out."""
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"guard {guard!r}: there is no folder {folder!r}")
    files: dict[str, bytes] = {}
    size = 0
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if _LEFT_OUT & set(name.parts) or not path.is_file():
            continue
        size += path.stat().st_size
        if size > _MOST_FOLDER_BYTES:
            raise UsageError(f"guard {guard!r}: {folder!r} holds more than 64 MiB; give what is large as `readable`")
        files[name.as_posix()] = path.read_bytes()
    return files
