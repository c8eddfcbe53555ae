"""Traces as they were trained: read from ℛ by id, whatever verdicts and clusters say by now.

Items, links and stored histories never change; verdicts do. An item that was superseded since was accepted when it was
trained, and H holds the attempts that were rejected then, so which those were is recorded where it cannot be derived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.batching import batches, select_in
from guardlearn.dag.reading import items_by_seq, paths_to_root
from guardlearn.dag.rows import storable
from guardlearn.dag.tables import items
from guardlearn.errors import JobError
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side, TrainingTrace

__all__ = ["recorded_histories", "traces_again"]

_SEQS = sa.select(items.c.id, items.c.seq)


def recorded_histories(traces: Sequence[TrainingTrace]) -> dict[str, list[str]]:
    """Return H, as item ids, of the traces whose H ℛ would not derive for ever as it is now; by item id.

    Where every earlier attempt of a chain is in H, the chain alone tells it: links never change. Where one is not, its
    verdict decided, and verdicts change. A history that was stored with the item is read from there.
    """
    return {
        trace.item.id: [entry.item_id for entry in trace.history]
        for trace in traces
        if trace.item.seen_history is None
        and (trace.item.facts is None or trace.item.facts.attempt != len(trace.history) + 1)
    }


def traces_again(
    dag: ArtifactDAG,
    ids: Sequence[str],
    *,
    sides: Mapping[str, Side] | None = None,
    groups: Mapping[str, str] | None = None,
    histories: Mapping[str, Sequence[str]] | None = None,
) -> list[TrainingTrace]:
    """Return the traces of items as they were when they were extracted, in the order of `ids`.

    Args:
        dag: ℛ; it is only read.
        ids: items that were extracted.
        sides: by item id; train where one is absent.
        groups: by item id; "" where one is absent.
        histories: what `recorded_histories` returned for these traces.

    Raises:
        JobError: an item, or one of its H, is gone, or an item was redacted since; the line names it.
    """
    told = histories or {}
    traces: list[TrainingTrace] = []
    with dag.reading() as connection:
        for batch in batches(ids):
            found = _found(connection, batch, dag.target)
            shown = _histories(connection, found, told, dag.target)
            for item in found:
                history = shown.get(item.id, item.history)
                once = msgspec.structs.replace(item, status=ArtifactStatus.ACCEPTED, history=history)
                group, side = (groups or {}).get(item.id, ""), (sides or {}).get(item.id, Side.TRAIN)
                traces.append(TrainingTrace(item=once, history=history, group=group, side=side))
    return traces


def _found(connection: Connection, ids: Sequence[str], target: str) -> list[RepositoryItem]:
    seqs = _seqs(connection, ids, target)
    found = items_by_seq(connection, [seqs[name] for name in ids])
    for item in found:
        if item.facts is not None and item.facts.redacted:
            raise JobError(
                f"item {item.id!r} was redacted in {target} since it was trained: its texts are gone for good, so its "
                "rows cannot be made again"
            )
    return found


def _histories(
    connection: Connection, found: Sequence[RepositoryItem], told: Mapping[str, Sequence[str]], target: str
) -> dict[str, tuple[FeedbackEntry, ...]]:
    """Return H of those items whose present H may be another one; by item id."""
    asked = {item.id: told[item.id] for item in found if item.id in told}
    ids = list(dict.fromkeys(name for names in asked.values() for name in names))
    by_id = _seqs(connection, ids, target)
    wanted = {name: [by_id[each] for each in names] for name, names in asked.items()}
    # an earlier attempt that is not in H now was rejected then, or it would have been recorded
    changed = {
        item.seq: item.id
        for item in found
        if item.id not in told
        and item.seen_history is None
        and item.facts is not None
        and item.facts.attempt != len(item.history) + 1
    }
    wanted |= {changed[seq]: path[:-1] for seq, path in paths_to_root(connection, list(changed)).items()}
    seqs = sorted({seq for path in wanted.values() for seq in path})
    entries = {
        item.seq: FeedbackEntry(artifact=item.artifact, feedback=item.feedback, item_id=item.id)
        for item in items_by_seq(connection, seqs)
    }
    return {name: tuple(entries[seq] for seq in path) for name, path in wanted.items()}


def _seqs(connection: Connection, ids: Sequence[str], target: str) -> dict[str, int]:
    seqs = {name: int(seq) for name, seq in select_in(connection, _SEQS, items.c.id, [i for i in ids if storable(i)])}
    for name in ids:
        if name not in seqs:
            raise JobError(f"item {name!r} is gone from {target}, though it was trained on; give the ℛ that holds it")
    return seqs
