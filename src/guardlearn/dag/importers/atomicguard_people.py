"""What people left beside AtomicGuard's artifacts: amendments of 2.3.0, reviews of 2.39.1 (erratum 11)."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from guardlearn.dag.importers.atomicguard_files import amendment_files
from guardlearn.dag.importers.atomicguard_object import amendment_key, decode, read_bytes
from guardlearn.errors import DataError

__all__ = ["Review", "amendments", "read_only", "reviews"]


class Review(NamedTuple):
    """One row of `pending_reviews`."""

    id: str
    artifact_id: str
    content: str
    status: str
    feedback: str


def amendments(source: str | os.PathLike[str]) -> tuple[set[str], list[tuple[str, str]]]:
    """Return keys of the artifacts that people wrote, by `amendments/*/*.json` under `source`, and faults by id."""
    found: set[str] = set()
    faults: list[tuple[str, str]] = []
    for path in amendment_files(source):
        try:
            value, _ = decode(read_bytes(path))
        except ValueError:
            faults.append((path.stem, "this amendment cannot be read; an item it wrote has source unknown"))
            continue
        if value.get("amendment_type") == "artifact":
            found.add(amendment_key(value.get("parent_artifact_id"), value.get("content")))
    return found, faults


def reviews(path: str | os.PathLike[str]) -> list[Review]:
    """Return the rows of `pending_reviews` in a reviews database, which is only read.

    Raises:
        DataError: it is no such database.
    """
    if not Path(path).is_file():
        raise DataError(f"no reviews database at {os.fspath(path)}; give AtomicGuard's SQLite file of pending_reviews")
    try:
        with read_only(Path(path)) as connection:
            rows = connection.execute(
                "SELECT review_id, artifact_id, artifact_content, status, feedback FROM pending_reviews "
                "ORDER BY created_at, review_id"
            ).fetchall()
    except sqlite3.Error as error:
        raise DataError(
            f"{os.fspath(path)} cannot be read as AtomicGuard's reviews database ({error}); "
            "it needs a table pending_reviews"
        ) from None
    return [Review(*(str(value or "") for value in row)) for row in rows]


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database of AtomicGuard's that may be in use, and leave it as it is."""
    log = Path(f"{path}-wal")  # without one nothing is pending, and immutable leaves no lock files behind
    immutable = "" if log.exists() and log.stat().st_size else "&immutable=1"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{immutable}", uri=True)
    try:
        yield connection
    finally:
        connection.close()
