"""Near-duplicates of one stored specification, found by reading alone.

The MinHash index (`neighbours.py`) holds every specification once one without a group arrives; where it does not hold
all, a bounded number of the others is compared one by one. Similarities are exact: the Jaccard similarity of the two
sets of distinctive shingles, of which the index only estimates who could be near.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import near_duplicates
from guardlearn.dag.batching import select_in
from guardlearn.dag.neighbours import unpack
from guardlearn.dag.reading import last_seq
from guardlearn.dag.rows import decode_text
from guardlearn.dag.side_tables import side_bands, side_index
from guardlearn.dag.tables import items, specifications, texts
from guardlearn.types import Side

__all__ = ["COMPARED", "LOOKED_THROUGH", "NearDuplicate", "Nearby", "nearby"]

COMPARED = 2_000
"""Most specifications outside the index that are compared one by one, the newest first."""
LOOKED_THROUGH = 200_000
"""Most rows of ℛ, from the newest back, among which attempts at a near-duplicate are counted."""

_TEXTS = sa.select(texts.c.key, texts.c.body, specifications.c.side, specifications.c.cluster).join(
    specifications, specifications.c.key == texts.c.key
)


class NearDuplicate(msgspec.Struct, frozen=True, kw_only=True):
    """Another specification that says nearly the same."""

    similarity: float
    """Jaccard similarity of the distinctive shingles, in [`near_duplicates.NEAR`, 1]."""
    specification: str
    side: Side
    cluster: str
    attempts: int
    """Attempts at it among the rows looked through."""
    first_id: str
    """The first of them; "" where there is none."""


class Nearby(msgspec.Struct, frozen=True, kw_only=True):
    """The near-duplicates of a specification, and how far they were looked for."""

    found: list[NearDuplicate]
    """Nearest first."""
    left_out: int
    """Further ones, beyond what was asked for."""
    compared: int
    """Specifications outside the index that were compared one by one."""
    not_compared: int
    """Specifications outside the index that were not."""
    looked_through: int
    """Rows among which attempts were counted."""


def nearby(connection: Connection, seq: int, limit: int = 12) -> Nearby:
    """Return the near-duplicates of an item's specification.

    Args:
        connection: a reading transaction.
        seq: the item's.
        limit: at most so many, the nearest.
    """
    key = int(connection.execute(sa.select(items.c.specification).where(items.c.seq == seq)).scalar_one())
    own = decode_text(connection.execute(sa.select(texts.c.body).where(texts.c.key == key)).scalar_one())
    index = connection.execute(sa.select(side_index.c.common, side_index.c.scheme)).one_or_none()
    common = unpack(index.common) if index is not None else frozenset[int]()
    shingles = near_duplicates.distinctive(own, common)
    usable = index is not None and index.scheme == near_duplicates.scheme()
    one_by_one, not_compared = _outside(connection, key, usable)
    keys = sorted({*(_candidates(connection, shingles) if usable else ()), *one_by_one} - {key})
    near = sorted(_near(connection, keys, shingles, common), key=lambda each: (-each[0], each[1]))
    last = last_seq(connection)
    counted = _attempts(connection, [each[1] for each in near[:limit]], last)
    return Nearby(
        found=[
            NearDuplicate(
                similarity=similarity,
                specification=text,
                side=side,
                cluster=cluster,
                attempts=counted.get(other, (0, ""))[0],
                first_id=counted.get(other, (0, ""))[1],
            )
            for similarity, other, text, side, cluster in near[:limit]
        ],
        left_out=max(0, len(near) - limit),
        compared=len(one_by_one),
        not_compared=not_compared,
        looked_through=min(last, LOOKED_THROUGH),
    )


def _candidates(connection: Connection, shingles: frozenset[int]) -> set[int]:
    """Return the keys of indexed specifications that share a band."""
    bands = near_duplicates.bands(near_duplicates.signature(shingles))
    places = [sa.and_(side_bands.c.band == band, side_bands.c.value == value) for band, value in enumerate(bands)]
    return set(connection.execute(sa.select(side_bands.c.key).where(sa.or_(*places))).scalars())


def _outside(connection: Connection, key: int, usable: bool) -> tuple[list[int], int]:
    """Return the newest specifications that a usable index does not hold, and how many more there are."""
    outside = specifications.c.key != key
    if usable:
        outside = sa.and_(outside, specifications.c.signature.is_(None))
    newest = sa.select(specifications.c.key).where(outside).order_by(specifications.c.key.desc()).limit(COMPARED + 1)
    keys = list(connection.execute(newest).scalars())
    if len(keys) <= COMPARED:
        return keys, 0
    total = connection.execute(sa.select(sa.func.count()).select_from(specifications).where(outside)).scalar_one()
    return keys[:COMPARED], int(total) - COMPARED


def _near(
    connection: Connection, keys: Sequence[int], shingles: frozenset[int], common: frozenset[int]
) -> Iterator[tuple[float, int, str, Side, str]]:
    """Yield (similarity, key, text, side, cluster) of what is near."""
    for key, body, side, cluster in select_in(connection, _TEXTS, texts.c.key, keys):
        text = decode_text(bytes(body))
        others = near_duplicates.distinctive(text, common)
        similarity = len(shingles & others) / len(shingles | others)
        if similarity >= near_duplicates.NEAR:
            yield similarity, int(key), text, Side(side), str(cluster)


def _attempts(connection: Connection, keys: Sequence[int], last: int) -> dict[int, tuple[int, str]]:
    """Return how many attempts each specification has among the newest rows, and the first one's id."""
    if not keys:
        return {}
    query = (
        sa.select(items.c.specification, sa.func.count(), sa.func.min(items.c.seq))
        .where(items.c.seq > last - LOOKED_THROUGH, items.c.specification.in_(keys))
        .group_by(items.c.specification)
    )
    found = {int(key): (int(count), int(first)) for key, count, first in connection.execute(query)}
    named = sa.select(items.c.seq, items.c.id).where(items.c.seq.in_([first for _, first in found.values()]))
    ids = {int(seq): str(name) for seq, name in connection.execute(named)}
    return {key: (count, ids[first]) for key, (count, first) in found.items()}
