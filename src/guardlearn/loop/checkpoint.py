"""The training checkpoint: a row of ℛ, written together with the finished adapter (Definitions 14 and 15).

The adapter folder is in place first; then one transaction stores the checkpoint and every item it trained. Errata
41-44.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from guardlearn.adapters import adapter_digest
from guardlearn.dag import ArtifactDAG, checkpoints
from guardlearn.dag.checkpoints import TrainingCheckpoint
from guardlearn.dag.tables import items
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.traces import content_digest

__all__ = [
    "adapter_of",
    "check_item",
    "last_checkpoint",
    "load_training_checkpoint",
    "save_training_checkpoint",
    "store",
]


def load_training_checkpoint(dag: ArtifactDAG, learner: str | None = None) -> dict[str, Any]:
    """Return the last training checkpoint, checked for integrity (Definition 15).

    Args:
        dag: ℛ; it is only read.
        learner: whose; None: the only learner of this ℛ.

    Returns:
        The guide's keys `last_item_id`, `timestamp` (ISO 8601, for people) and `traces_processed`, and `number`,
        `learner`, `seq`, `adapter`, `adapter_digest`. Before the first checkpoint: None, None, 0, and the like.

    Raises:
        UsageError: several learners, and none was named.
        RepositoryError: the item it points at, or its adapter, is not what it was (⊥_integrity).
    """
    last = last_checkpoint(dag, learner)
    if last is None:
        empty: dict[str, Any] = {"last_item_id": None, "timestamp": None, "traces_processed": 0}
        return empty | {"number": 0, "learner": learner, "seq": 0, "adapter": None, "adapter_digest": None}
    check_item(dag, last)
    adapter_of(last, None)
    return {
        "last_item_id": last.item_id,
        "timestamp": last.created_at.isoformat(),
        "traces_processed": last.traces_processed,
        "number": last.number,
        "learner": last.learner,
        "seq": last.seq,
        "adapter": last.adapter,
        "adapter_digest": last.adapter_digest,
    }


def save_training_checkpoint(
    dag: ArtifactDAG,
    last_item_id: str,
    traces_processed: int,
    *,
    adapter: str | Path,
    item_ids: Sequence[str] | None = None,
    learner: str = "default",
) -> TrainingCheckpoint:
    """Store a training checkpoint in ℛ, together with the finished adapter it stands for (Definition 14).

    Args:
        dag: ℛ, open for writing.
        last_item_id: the last item trained.
        traces_processed: traces trained by this learner so far, these included.
        adapter: folder of the finished adapter; without one there is no checkpoint (erratum 44).
        item_ids: items trained since the checkpoint before, `last_item_id` last; None: that one alone.
        learner: who learns; each learner trains an item at most once (erratum 43).

    Raises:
        RepositoryError: an item is unknown or was trained before, or the count does not add up.
        ModelError: no finished adapter there.
    """
    ids = list(item_ids) if item_ids is not None else [last_item_id]
    if not ids or ids[-1] != last_item_id:
        raise UsageError(f"last_item_id {last_item_id!r} must be the last of item_ids, which ends in {ids[-1:]}")
    contents = {item_id: content_digest(dag.get_item(item_id)) for item_id in ids}
    before = last_checkpoint(dag, learner)
    return store(dag, learner, contents, dag.last_seq, traces_processed, Path(adapter), before)


def last_checkpoint(dag: ArtifactDAG, learner: str | None) -> TrainingCheckpoint | None:
    """Return the newest checkpoint of a learner, or of the only one where None is named."""
    with dag.reading() as connection:
        if learner is not None:
            return next(iter(checkpoints.read(connection, learner, last=True)), None)
        found = checkpoints.read(connection)
    learners = sorted({each.learner for each in found})
    if len(learners) > 1:
        raise UsageError(f"{dag.target} has {len(learners)} learners ({', '.join(learners)}); name one of them")
    return found[-1] if found else None


def check_item(dag: ArtifactDAG, last: TrainingCheckpoint) -> None:
    """Refuse a checkpoint whose item is not in ℛ as it was: ℛ[id] must be what was trained (Definition 15)."""
    with dag.reading() as connection:
        found = connection.execute(sa.select(items.c.digest).where(items.c.id == last.item_id)).scalar_one_or_none()
    if found is None or bytes(found).hex() != last.item_digest:
        raise RepositoryError(
            f"training checkpoint {last.number} points at item {last.item_id!r}, which "
            f"{'is not in' if found is None else 'is another in'} {dag.target}; `guardlearn verify` says what changed"
        )


def adapter_of(last: TrainingCheckpoint, output: Path | None) -> Path:
    """Return the folder of a checkpoint's adapter, found where it was or in `output`, and unaltered."""
    places = [Path(last.adapter)] + ([output / Path(last.adapter).name] if output else [])
    folder = next((place for place in places if place.is_dir()), None)
    digest = adapter_digest(folder) if folder else None
    if digest != last.adapter_digest:
        raise RepositoryError(
            f"training checkpoint {last.number} stands for the adapter in {last.adapter} with weights "
            f"{last.adapter_digest[:12]}; {'there is none' if digest is None else f'those there are {digest[:12]}'}: "
            "put it back"
        )
    assert folder is not None
    return folder


def store(
    dag: ArtifactDAG,
    learner: str,
    contents: Mapping[str, bytes],
    seq: int,
    traces_processed: int,
    adapter: Path,
    before: TrainingCheckpoint | None,
) -> TrainingCheckpoint:
    """Store a checkpoint after `before`; `contents` as in `dag.checkpoints.append`."""
    about = {
        "seq": seq,
        "traces_processed": traces_processed,
        "adapter": str(adapter.absolute()),
        "adapter_digest": adapter_digest(adapter),
        "parent_adapter": before.adapter_digest if before else "",
    }
    with dag.writing() as connection:
        return checkpoints.append(connection, learner, contents, about)
