"""Adapters that no round made, but of which ℛ has the training checkpoint: those of `incremental_training_loop`."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from guardlearn.dag import ArtifactDAG, checkpoints
from guardlearn.dag.tables import items, trained
from guardlearn.lineage.records import AdapterRecord

__all__ = ["increments"]


def increments(dag: ArtifactDAG, known: Sequence[AdapterRecord]) -> list[AdapterRecord]:
    """Return a record of each training checkpoint whose adapter is none of `known`, the oldest first.

    An increment goes on from the one before, so its items are all that its learner has trained by then.

    Args:
        dag: ℛ; it is only read.
        known: the records of rounds, whose checkpoints are not told twice.
    """
    rounds = {record.digest for record in known}
    with dag.reading() as connection:
        found = [each for each in checkpoints.read(connection) if each.adapter_digest not in rounds]
        if not found:
            return []
        query = (
            sa.select(trained.c.checkpoint, items.c.id)
            .join(items, items.c.seq == trained.c.seq)
            .where(trained.c.learner.in_({each.learner for each in found}))
            .order_by(trained.c.checkpoint, trained.c.seq)
        )
        by_checkpoint: dict[int, list[str]] = {}
        for number, item_id in connection.execute(query):
            by_checkpoint.setdefault(number, []).append(item_id)
    learned: dict[str, list[str]] = {}
    made = []
    for each in found:
        learned[each.learner] = [*learned.get(each.learner, []), *by_checkpoint.get(each.number, [])]
        made.append(
            AdapterRecord(
                learner=each.learner,
                round=0,
                state="",
                folder=each.adapter,
                digest=each.adapter_digest,
                parent=each.parent_adapter,
                seq=each.seq,
                item_ids=learned[each.learner],
                new_item_ids=by_checkpoint.get(each.number, []),
                planned_at=each.created_at,
            )
        )
    return made
