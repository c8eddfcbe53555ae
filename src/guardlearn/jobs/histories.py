"""Traces as they were trained: read from ℛ by id, whatever verdicts and clusters say by now.

Items, links and stored histories never change; verdicts do. An item that was superseded since was accepted when it was
trained, and H holds the attempts that were rejected then, so which those were is recorded where it cannot be derived.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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
    """Return H, as item ids, of those whose H ℛ would not derive for ever as it is now, attempts too; by item id.

    Where every earlier attempt of a chain is in H, the chain alone tells it: links never change. Where one is not, its
    verdict decided, and verdicts change. A history that was stored with the item is read from there.
    """
    shown = [(each, each.history) for trace in traces for each in trace.attempts]
    return {
        item.id: [entry.item_id for entry in history]
        for item, history in [*shown, *((trace.item, trace.history) for trace in traces)]
        if item.seen_history is None and (item.facts is None or item.facts.attempt != len(history) + 1)
    }


def traces_again(
    dag: ArtifactDAG,
    ids: Sequence[str],
    *,
    sides: Mapping[str, Side] | None = None,
    groups: Mapping[str, str] | None = None,
    histories: Mapping[str, Sequence[str]] | None = None,
    attempts: Mapping[str, Sequence[str]] | None = None,
    rejected: Collection[str] = (),
) -> list[TrainingTrace]:
    """Return the traces of items as they were when they were extracted, in the order of `ids`.

    Args:
        dag: ℛ; it is only read.
        ids: items that were extracted.
        sides: by item id; train where one is absent.
        groups: by item id; "" where one is absent.
        histories: what `recorded_histories` returned for these traces.
        attempts: the rejected attempts that came with a trace, by its item id.
        rejected: those of `ids` that were rejected.

    Raises:
        JobError: an item, or one of its H, is gone, or an item was redacted since; the line names it.
    """
    told, before = histories or {}, attempts or {}
    failed = {*rejected, *(name for names in before.values() for name in names)}
    traces: list[TrainingTrace] = []
    with dag.reading() as connection:
        for batch in batches(ids):
            wanted = list(dict.fromkeys(name for trace in batch for name in (*before.get(trace, ()), trace)))
            found = _found(connection, wanted, dag.target)
            shown = _histories(connection, found, told, dag.target)
            then = {item.id: _then(item, shown.get(item.id, item.history), item.id in failed) for item in found}
            for name in batch:
                group, side = (groups or {}).get(name, ""), (sides or {}).get(name, Side.TRAIN)
                own = tuple(then[each] for each in before.get(name, ()))
                item = then[name]
                traces.append(TrainingTrace(item=item, history=item.history, group=group, side=side, attempts=own))
    return traces


def _then(item: RepositoryItem, history: tuple[FeedbackEntry, ...], rejected: bool) -> RepositoryItem:
    """Return an item as it was when it was extracted: judged so, not excluded, its chain whole."""
    status, facts = ArtifactStatus.REJECTED if rejected else ArtifactStatus.ACCEPTED, item.facts
    if facts is not None:
        facts = msgspec.structs.replace(facts, status=status, excluded=False, broken=False)
    return msgspec.structs.replace(item, status=status, history=history, facts=facts)


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
