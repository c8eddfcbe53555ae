"""What people left beside AtomicGuard's artifacts: amendments of 2.3.0, reviews of 2.39.1 (erratum 11)."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from guardlearn.dag.importers.atomicguard_object import decode
from guardlearn.dag.importers.atomicguard_survey import read_bytes
from guardlearn.digests import digest_json
from guardlearn.errors import DataError

__all__ = ["Review", "amendment_key", "amendments", "reviews"]


class Review(NamedTuple):
    """One row of `pending_reviews`."""

    id: str
    artifact_id: str
    content: str
    status: str
    feedback: str


def amendments(source: str | os.PathLike[str], faults: list[str]) -> set[str]:
    """Return keys of the artifacts that people wrote: each `amendments/*/*.json` under `source`."""
    found: set[str] = set()
    for path in sorted(Path(source).glob("**/amendments/*/*.json")):
        try:
            value = decode(read_bytes(path))
        except ValueError:
            faults.append(f"{path.stem}: this amendment cannot be read; an item it wrote has source unknown")
            continue
        if value.get("amendment_type") == "artifact":
            found.add(amendment_key(value.get("parent_artifact_id"), value.get("content")))
    return found


def amendment_key(parent_id: Any, content: Any) -> str:
    """Return what an amendment and the item made of it have in common."""
    return digest_json([parent_id or "", content])


def reviews(path: str | os.PathLike[str]) -> list[Review]:
    """Return the rows of `pending_reviews` in a reviews database, which is only read.

    Raises:
        DataError: it is no such database.
    """
    if not Path(path).is_file():
        raise DataError(f"no reviews database at {os.fspath(path)}; give AtomicGuard's SQLite file of pending_reviews")
    try:
        with _read_only(Path(path)) as connection:
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
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    log = Path(f"{path}-wal")  # without one nothing is pending, and immutable leaves no lock files behind
    immutable = "" if log.exists() and log.stat().st_size else "&immutable=1"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{immutable}", uri=True)
    try:
        yield connection
    finally:
        connection.close()
