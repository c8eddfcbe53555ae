"""What an adapter's items are now: where they came from, and what ℛ has noted about them since.

An item is looked at with the attempts before it in its chain: their feedback was learned from, too. What is gone from ℛ
(a manifest of another one, an older backup) is listed, never an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from guardlearn.dag import ArtifactDAG, reading
from guardlearn.dag.batching import select_in
from guardlearn.dag.rows import storable
from guardlearn.dag.tables import events, facts, items, specifications
from guardlearn.lineage.judges import Judge, judged_again
from guardlearn.lineage.records import AdapterRecord
from guardlearn.types import ArtifactStatus

__all__ = ["CHANGES", "ItemsNow", "items_now"]

CHANGES = {
    "redacted": "their texts, or those of an attempt before them, were blanked",
    "excluded": "they were excluded from training",
    "stale guard": "the guard that judged them has changed since",
    "verdict changed": "they are not judged any more as they were trained",
}
"""What may have happened to a trained item since, and what it means."""

_ABOUT = (
    "id", "source", "action_pair_id", "guard", "guard_version",
)  # fmt: skip
_FLAGS = ("status", "excluded", "stale", "redacted")
_ROWS = (
    sa.select(
        items.c.seq, *(items.c[name] for name in _ABOUT), specifications.c.side, *(facts.c[name] for name in _FLAGS)
    )
    .join(facts, facts.c.seq == items.c.seq)
    .outerjoin(specifications, specifications.c.key == items.c.specification)
)
_SEQS = sa.select(items.c.id, items.c.seq)
_EVENTS = sa.select(events.c.item_id, events.c.kind, events.c.seq, events.c.reason)
_KINDS = {"redact": "redacted", "exclude": "excluded", "stale": "stale guard", "status": "verdict changed"}


class ItemsNow(msgspec.Struct, frozen=True, kw_only=True):
    """The items an adapter learned from, as ℛ has them now."""

    count: int
    """Items the adapter names."""
    gone: list[str]
    """Those that are not in this ℛ."""
    by_source: dict[str, int]
    by_action_pair: dict[str, int]
    by_guard: dict[str, int]
    """By name@version of the guard whose verdict counts; versions are cut to 12 digits."""
    by_side: dict[str, int]
    other_versions: dict[str, int]
    """Of `by_guard`: versions of the measuring guard other than the one that measured."""
    since: dict[str, list[str]]
    """A key of CHANGES → ids of trained items to which it happened after the round was planned, and still holds."""


class _Row(NamedTuple):
    seq: int
    id: str
    source: str
    action_pair_id: str
    guard: str
    guard_version: str
    side: str | None
    status: str
    excluded: bool
    stale: bool
    redacted: bool


def items_now(dag: ArtifactDAG, record: AdapterRecord) -> ItemsNow:
    """Look up what became of the items that an adapter learned from.

    Args:
        dag: ℛ; it is only read.
        record: what `find` returned.
    """
    with dag.reading() as connection:
        wanted = [name for name in dict.fromkeys(record.item_ids) if storable(name)]
        seqs = dict(select_in(connection, _SEQS, items.c.id, wanted))
        paths = reading.paths_to_root(connection, list(seqs.values()))
        chains = sorted({seq for path in paths.values() for seq in path})
        rows = {row[0]: _Row(*row) for row in select_in(connection, _ROWS, items.c.seq, chains)}
        noted = list(select_in(connection, _EVENTS, events.c.item_id, [row.id for row in rows.values()]))
    later = {(item_id, _KINDS[kind]) for item_id, kind, at, _ in noted if at > record.seq and kind in _KINDS}
    own = [rows[seq] for seq in seqs.values()]
    judges = _judges(own, noted)
    return ItemsNow(
        count=len(record.item_ids),
        gone=[name for name in dict.fromkeys(record.item_ids) if name not in seqs],
        by_source=_counted(row.source for row in own),
        by_action_pair=_counted(row.action_pair_id for row in own),
        by_guard=_counted(map(str, judges)),
        by_side=_counted(row.side or "none" for row in own),
        other_versions=_other_versions(record, judges),
        since={kind: [] for kind in CHANGES} | _since(own, paths, rows, later, set(record.rejected_item_ids)),
    )


def _judges(own: Sequence[_Row], noted: Sequence[tuple[Any, ...]]) -> list[Judge]:
    """Return whose verdict counts for each item: the newest that names a guard."""
    again: dict[str, Judge] = {}
    for item_id, kind, _, reason in sorted(noted, key=itemgetter(2)):
        if kind == "status" and (judge := judged_again(reason)) is not None:
            again[item_id] = judge
    return [again.get(row.id) or Judge(row.guard, row.guard_version) for row in own]


def _since(
    own: Sequence[_Row],
    paths: Mapping[int, Sequence[int]],
    rows: Mapping[int, _Row],
    later: set[tuple[str, str]],
    rejected: set[str],
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in own:
        chain = [rows[seq] for seq in paths[row.seq]]
        trained = ArtifactStatus.REJECTED if row.id in rejected else ArtifactStatus.ACCEPTED
        holds = {
            "redacted": any(each.redacted and (each.id, "redacted") in later for each in chain),
            "excluded": row.excluded and (row.id, "excluded") in later,
            "stale guard": any(each.stale and (each.id, "stale guard") in later for each in chain),
            "verdict changed": row.status != trained and (row.id, "verdict changed") in later,
        }
        for kind in (name for name, yes in holds.items() if yes):
            found.setdefault(kind, []).append(row.id)
    return found


def _other_versions(record: AdapterRecord, judges: Sequence[Judge]) -> dict[str, int]:
    name, version = record.evidence.get("guard"), record.evidence.get("guard_version")
    if not name or not version:
        return {}
    return _counted(str(judge) for judge in judges if judge.name == name and judge.version != version)


def _counted(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())
