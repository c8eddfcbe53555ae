"""Which side a specification is on: train, validation or held-out, assigned once and never changed.

What was given a `group` follows its group; what was not follows its nearest near-duplicate; what has none is placed by
hash(key, salt). A specification near two sides is set aside. `assign` runs inside the transaction that stores a new Ψ,
so sides depend on the order in which specifications arrived and on nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.neighbours import Neighbour, NeighbourIndex
from guardlearn.dag.tables import items, meta, pinned_groups, specifications
from guardlearn.digests import digest_text
from guardlearn.errors import DataError
from guardlearn.types import Side

__all__ = [
    "SHARES",
    "Assigned",
    "PendingSpecification",
    "Placement",
    "assign",
    "check",
    "own_cluster",
    "place",
    "placements",
]

SHARES = ((Side.TRAIN, 0.8), (Side.VALIDATION, 0.1), (Side.HELD_OUT, 0.1))
"""Share of the hash space that each side takes."""

_FILL_FROM = 8
_CHECK_FROM = 10
_CHUNK = 500


class PendingSpecification(NamedTuple):
    """A Ψ that may be new to ℛ."""

    key: int
    """texts.key."""
    text: str
    group: str | None


class Assigned(NamedTuple):
    """A row of `specifications`, as it was just written."""

    key: int
    group: str
    """"" where none was given."""
    cluster: str
    """What must not be split: the group's name, or "~" and twelve hex digits for near-duplicates."""
    side: Side


class Placement(NamedTuple):
    """Where a specification lies."""

    cluster: str
    side: Side


def place(key: str, salt: str) -> Side:
    """Return the side that hash(key, salt) falls on, in the proportions of SHARES."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for side, share in SHARES[:-1]:
        if position < share:
            return side
        position -= share
    return SHARES[-1][0]


def assign(connection: Connection, pending: Iterable[PendingSpecification]) -> list[Assigned]:
    """Give each specification that has no side its side; return what was new, in the order written.

    Specifications with a group come first, whatever their place in `pending`: their side does not depend on texts, and
    those without a group can then join them. Comparing texts (MinHash) happens only for those without one.

    Args:
        connection: a writing transaction on ℛ.
        pending: specifications whose texts are stored already; known ones are left as they are.
    """
    fresh = _unknown(connection, pending)
    if not fresh:
        return []
    placer = _Placer(connection)
    assigned = _by_group(connection, [each for each in fresh if each.group], placer)
    loose = [each for each in fresh if not each.group]
    if loose:
        index = NeighbourIndex(connection, [each.text for each in loose])
        for start in range(0, len(loose), _CHUNK):
            assigned += _by_neighbours(connection, loose[start : start + _CHUNK], index, placer)
    return assigned


def placements(connection: Connection, item_ids: Sequence[str]) -> dict[str, Placement]:
    """Return where the Ψ of each item lies; a chain follows its root, so ask for roots."""
    columns = sa.select(items.c.id, specifications.c.cluster, specifications.c.side).join(
        specifications, specifications.c.key == items.c.specification
    )
    found: dict[str, Placement] = {}
    for start in range(0, len(item_ids), _CHUNK):
        rows = connection.execute(columns.where(items.c.id.in_(item_ids[start : start + _CHUNK])))
        found |= {item_id: Placement(cluster, Side(side)) for item_id, cluster, side in rows}
    return found


def check(connection: Connection) -> None:
    """Refuse sides that no honest measurement can stand on, once there are ten specifications.

    Sides chosen by hand (`assign_side`) are their chooser's business.

    Raises:
        DataError: one cluster holds over half of all specifications, as many are set aside, or a side is empty; the
            message asks for `group`.
    """
    table = specifications.c
    rows = connection.execute(sa.select(table.side, sa.func.count()).group_by(table.side)).all()
    sizes = {Side(side): int(count) for side, count in rows}
    total = sum(sizes.values())
    if total < _CHECK_FROM:
        return
    pinned = set(connection.execute(sa.select(pinned_groups.c.spec_group)).scalars())
    count = sa.func.count()
    largest = sa.select(table.cluster, count).group_by(table.cluster).order_by(count.desc(), table.cluster).limit(1)
    cluster, members = connection.execute(largest).one()
    remedy = "give each specification a `group`, the family that must not be split between sides"
    alike = max(sizes.get(Side.SET_ASIDE, 0), members if str(cluster).startswith("~") else 0)
    if alike > total / 2:
        raise DataError(f"{alike} of {total} specifications are near-duplicates, no side can be free of them; {remedy}")
    if members > total / 2 and cluster not in pinned:
        raise DataError(
            f"{members} of {total} specifications are in group {cluster!r}, so one side would hold most of them; "
            f"{remedy}, smaller than this one"
        )
    empty = [side.value for side, _ in SHARES if not sizes.get(side)]
    if empty and not pinned:
        clusters = connection.execute(sa.select(sa.func.count(table.cluster.distinct()))).scalar_one()
        raise DataError(
            f"no specification is on the side {' or '.join(empty)}: all {total} fall into {clusters} groups, and "
            f"ten are needed to fill every side; {remedy}, or choose sides with assign_side(group, side)"
        )


class _Placer:
    """Places what has no neighbour: by hash, except that the ninth cluster or a later one fills an empty side.

    Without the exception a third of all repositories with ten groups would have nothing held out, and no remedy.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.salt = str(connection.execute(sa.select(meta.c.value).where(meta.c.name == "side_salt")).scalar_one())
        pinned = connection.execute(sa.select(pinned_groups.c.spec_group).limit(1)).first()
        self.empty = [] if pinned else [side for side in (Side.HELD_OUT, Side.VALIDATION) if not self._used(side)]
        self.clusters = self._count() if self.empty else 0

    def place(self, key: str) -> Side:
        """Return the side of a new cluster."""
        side = self.empty[0] if self.empty and self.clusters >= _FILL_FROM else place(key, self.salt)
        self.took(side)
        return side

    def took(self, side: Side) -> None:
        """Note that a new cluster is on `side`."""
        self.clusters += 1
        self.empty = [each for each in self.empty if each is not side]

    def _used(self, side: Side) -> bool:
        chosen = specifications.c.side == side.value
        return self.connection.execute(sa.select(specifications.c.key).where(chosen).limit(1)).first() is not None

    def _count(self) -> int:
        distinct = sa.func.count(specifications.c.cluster.distinct())
        return int(self.connection.execute(sa.select(distinct)).scalar_one())


def _unknown(connection: Connection, pending: Iterable[PendingSpecification]) -> list[PendingSpecification]:
    fresh = {each.key: each for each in reversed(list(pending))}  # the first mention of a text counts
    keys = list(fresh)
    for start in range(0, len(keys), _CHUNK):
        chosen = specifications.c.key.in_(keys[start : start + _CHUNK])
        for (key,) in connection.execute(sa.select(specifications.c.key).where(chosen)):
            del fresh[key]
    return list(reversed(fresh.values()))


def _by_group(connection: Connection, pending: list[PendingSpecification], placer: _Placer) -> list[Assigned]:
    groups = list(dict.fromkeys(str(each.group) for each in pending))
    sides: dict[str, Side] = {}
    for table in (specifications, pinned_groups):
        for start in range(0, len(groups), _CHUNK):
            chosen = table.c.spec_group.in_(groups[start : start + _CHUNK])
            rows = connection.execute(sa.select(table.c.spec_group, table.c.side).where(chosen).distinct())
            sides |= {group: Side(side) for group, side in rows}
    for group in groups:
        if group not in sides:
            sides[group] = placer.place(f"group:{group}")
    assigned = [Assigned(each.key, str(each.group), str(each.group), sides[str(each.group)]) for each in pending]
    if assigned:
        connection.execute(specifications.insert(), [_row(each, None) for each in assigned])
    return assigned


def _by_neighbours(
    connection: Connection, pending: list[PendingSpecification], index: NeighbourIndex, placer: _Placer
) -> list[Assigned]:
    assigned: list[Assigned] = []
    rows: list[dict[str, object]] = []
    sketches = index.sketch([each.text for each in pending])
    for each, sketch in zip(pending, sketches, strict=True):
        cluster, side = _decide(each.text, index.near(sketch), placer)
        assigned.append(Assigned(each.key, "", cluster, side))
        rows.append(_row(assigned[-1], sketch.packed))
        index.add(each.key, sketch, cluster, side)
    connection.execute(specifications.insert(), rows)
    index.flush()
    return assigned


def _decide(text: str, near: list[Neighbour], placer: _Placer) -> tuple[str, Side]:
    """Return cluster and side of an ungrouped specification from its neighbours, nearest first."""
    own = own_cluster(text)
    placed = [neighbour for neighbour in near if neighbour.side is not Side.SET_ASIDE]
    if len({neighbour.side for neighbour in placed}) > 1 or (near and not placed):
        return own, Side.SET_ASIDE  # between two sides, or near nothing but what lies there
    if placed:
        return placed[0].cluster, placed[0].side
    return own, placer.place(f"text:{digest_text(text)}")


def own_cluster(text: str) -> str:
    """Return the cluster of an ungrouped specification that joins nobody's."""
    return f"~{digest_text(text)[:12]}"


def _row(assigned: Assigned, signature: bytes | None) -> dict[str, object]:
    return {
        "key": assigned.key,
        "spec_group": assigned.group,
        "cluster": assigned.cluster,
        "side": assigned.side.value,
        "signature": signature,
    }
