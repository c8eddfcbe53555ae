"""AtomicGuard's prompt templates, and the artifacts its prompts held: what a prompt needs beside the item.

Templates stand in the table `ap_context` of AtomicGuard's web.db, or in an `ap_context.json`; both are only read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from guardlearn.dag.batching import batches
from guardlearn.dag.importers.atomicguard_people import read_only
from guardlearn.dag.rows import decode_text, storable
from guardlearn.dag.tables import bodies, facts, items
from guardlearn.errors import DataError, UsageError
from guardlearn.prompts import PromptConfig, Renderer
from guardlearn.types import RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["dependency_contents", "load_prompts", "with_dependencies"]

_FIELDS = ("role", "constraints", "task", "feedback_wrapper", "escalation_feedback_wrapper", "feedback_mode")
_OPTIONAL = ("artifact_context",)
_SQLITE = b"SQLite format 3\0"


def load_prompts(path: str | os.PathLike[str], *, system: str = "") -> PromptConfig:
    """Return prompts as AtomicGuard 2.39.1 asks them, by the templates in `path`.

    Args:
        path: AtomicGuard's web.db, or an ap_context.json.
        system: the system message its generator sends; "" for none.

    Raises:
        DataError: it cannot be read, holds no templates, or one that cannot be filled.
    """
    place = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            database = file.read(len(_SQLITE)) == _SQLITE
        found = _rows(Path(path)) if database else _entries(Path(path))
    except OSError as error:
        raise DataError(
            f"{place} cannot be read ({error.strerror}); give AtomicGuard's web.db or ap_context.json"
        ) from error
    except (sqlite3.Error, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{place} holds no ap_context ({reason}); give AtomicGuard's web.db or ap_context.json"
        ) from error
    if not found:
        raise DataError(f"{place} holds no template; its ap_context is empty")
    try:
        return PromptConfig(layout="atomicguard", templates=found, system=system)
    except UsageError as error:
        raise DataError(f"{place}: {error}") from error


def dependency_contents(dag: ArtifactDAG, given: Iterable[RepositoryItem]) -> dict[str, str]:
    """Return the contents, by id, of the artifacts that AtomicGuard items built on.

    Those that ℛ does not hold, that were redacted, or that hold NUL or lone surrogates are not among them.
    """
    wanted: dict[str, None] = {}
    for item in given:
        kept = item.metadata.get("atomicguard")
        found = kept.get("dependency_artifacts") if isinstance(kept, dict) else None
        if isinstance(found, dict):
            wanted |= dict.fromkeys(each for each in found.values() if isinstance(each, str) and storable(each))
    query = (
        sa.select(items.c.id, bodies.c.artifact)
        .join(bodies, bodies.c.seq == items.c.seq)
        .join(facts, facts.c.seq == items.c.seq)
        .where(~facts.c.redacted)
    )
    contents: dict[str, str] = {}
    with dag.reading() as connection:
        for some in batches(list(wanted)):
            rows = connection.execute(query.where(items.c.id.in_(some)))
            contents |= {name: decode_text(bytes(artifact)) for name, artifact in rows}
    return {name: text for name, text in contents.items() if storable(text)}


def with_dependencies(renderer: Renderer, dag: ArtifactDAG, given: Iterable[RepositoryItem]) -> Renderer:
    """Return a renderer that knows the artifacts which the prompts of `given` held; others need none."""
    if renderer.config.layout != "atomicguard":
        return renderer
    return dataclasses.replace(renderer, dependencies=dependency_contents(dag, given))


def _rows(path: Path) -> dict[str, dict[str, str]]:
    with read_only(path) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(ap_context)")}
        missing = sorted({"ap_id", *_FIELDS} - columns)
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        names = [*_FIELDS, *(name for name in _OPTIONAL if name in columns)]
        rows = connection.execute(f"SELECT ap_id, {', '.join(names)} FROM ap_context ORDER BY ap_id")
        return {str(pair): _template(dict(zip(names, texts, strict=True))) for pair, *texts in rows}


def _entries(path: Path) -> dict[str, dict[str, str]]:
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    entries = value.get("action_pairs", value) if isinstance(value, dict) else None
    if not isinstance(entries, dict):
        raise ValueError("no object of action pairs")
    return {pair: _template(entry) for pair, entry in entries.items() if isinstance(entry, dict)}


def _template(entry: dict[str, Any]) -> dict[str, str]:
    """Return the fields of a template that say something, so that a database and a file of it are the same."""
    said = {name: entry[name] for name in (*_FIELDS, *_OPTIONAL) if entry.get(name)}
    return {name: text for name, text in said.items() if (name, text) != ("feedback_mode", "inline")}
