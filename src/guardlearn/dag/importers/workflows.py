"""W and its hash: which workflows are at hand, so that an attempt's W_ref can be checked (Definition 11).

Workflows stand in JSON files, or in the tables of AtomicGuard's web.db, from which its JSON is put together again.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from guardlearn.dag.importers.atomicguard_people import read_only
from guardlearn.digests import digest_json
from guardlearn.errors import DataError

__all__ = ["read_workflows", "workflow_fault", "workflow_hash"]

_SQLITE = b"SQLite format 3\0"
_WORKFLOW: dict[str, Any] = {
    "description": "",
    "specification": None,
    "constraints": "",
    "model": "",
    "provider": "",
    "rmax": 3,
}
"""Keys of a workflow's JSON and what a web.db holds where it has none; so below."""
_ACTION_PAIR: dict[str, Any] = {
    "generator": "",
    "generator_config": {},
    "guard": "",
    "guards": None,
    "guard_config": {},
    "requires": [],
    "artifact_type": "",
    "output_type": "",
    "r_patience": None,
    "e_max": 1,
    "escalate_feedback_to": [],
    "escalate_feedback_by_guard": {},
    "human_prompt_title": "",
    "description": "",
    "group": "",
    "goal": False,
}
_JSON = (
    *("specification", "generator_config", "guards", "guard_config", "requires", "escalate_feedback_to"),
    "escalate_feedback_by_guard",
)
"""Columns that hold JSON."""


def workflow_hash(workflow: Mapping[str, Any]) -> str:
    """Return W_ref of a workflow's JSON: SHA-256 of it with sorted keys and no spaces (Definition 11)."""
    return digest_json(dict(workflow))


def read_workflows(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the workflows in `path`: name by hash.

    Args:
        path: a workflow's JSON file, a folder of them, or AtomicGuard's web.db.

    Raises:
        DataError: it cannot be read, or holds no workflow.
    """
    place = Path(path)
    try:
        if place.is_dir():
            found = [(each.name, _document(each)) for each in sorted(place.glob("*.json"))]
        elif _is_database(place):
            found = _documents(place)
        else:
            found = [(place.name, _document(place))]
    except OSError as error:
        raise DataError(
            f"{place} cannot be read ({error.strerror}); give a workflow's JSON, a folder or web.db"
        ) from error
    except sqlite3.Error as error:
        raise DataError(f"{place} holds no workflows ({error}); give a workflow's JSON, a folder or web.db") from error
    if not found:
        raise DataError(
            f"{place} holds no workflow; give a workflow's JSON, a folder of *.json, or AtomicGuard's web.db"
        )
    return {workflow_hash(document): name for name, document in found}


def workflow_fault(workflow_ref: str, workflows: Collection[str] | None) -> str:
    """Return what is wrong with an attempt's W_ref, "" where it is one of the hashes at hand, absent or unchecked."""
    if workflows is None or not workflow_ref or workflow_ref in workflows:
        return ""
    return f"its workflow_ref {workflow_ref!a} is the hash of none of the workflows given"


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _document(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is no workflow's JSON ({' '.join(str(error).split())}); correct it or leave it out"
        ) from None
    if not isinstance(value, dict):
        raise DataError(
            f"{path} is no workflow's JSON (a {type(value).__name__}, no object); correct it or leave it out"
        )
    return value


def _documents(path: Path) -> list[tuple[str, dict[str, Any]]]:
    with read_only(path) as connection:
        connection.row_factory = sqlite3.Row
        pairs: dict[str, dict[str, Any]] = {}
        for row in connection.execute("SELECT * FROM workflow_action_pairs ORDER BY workflow_slug, sort_order"):
            _check_kept(row)
            pairs.setdefault(row["workflow_slug"], {})[row["ap_id"]] = _said(row, _ACTION_PAIR)
        rows = connection.execute("SELECT * FROM workflows ORDER BY slug")
        return [
            (
                row["slug"],
                {
                    "name": row["name"],
                    **_said(row, _WORKFLOW),
                    **json.loads(row["extra"]),
                    "action_pairs": pairs.get(row["slug"], {}),
                },
            )
            for row in rows
        ]


def _check_kept(row: sqlite3.Row) -> None:
    lost = [key for key in json.loads(row["source_keys"]) if key not in _ACTION_PAIR]
    if lost:
        raise DataError(
            f"action pair {row['ap_id']!r} of workflow {row['workflow_slug']!r} had {', '.join(lost)}, which web.db "
            "does not keep, so its hash is not known; give the workflow's JSON"
        )


def _said(row: sqlite3.Row, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the JSON of a row said: the keys it had, and whatever is not the default."""
    had = json.loads(row["source_keys"])
    said = {}
    for key, default in defaults.items():
        value = row[key]
        if key in _JSON:
            value = json.loads(value) if value else None
        elif isinstance(default, bool):
            value = bool(value)
        if key in had or value != default:
            said[key] = value
    return said
