"""Checks what decides the sides of specifications to come: clusters, and the index that finds near-duplicates.

Both follow from texts. Signatures are made anew and compared, unless another version of the rules made them: then the
next specification without a group makes all of them anew (`neighbours.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import near_duplicates
from guardlearn.dag.neighbours import BUCKET, unpack
from guardlearn.dag.rows import decode_text
from guardlearn.dag.side_tables import side_bands, side_index
from guardlearn.dag.tables import specifications, texts

__all__ = ["check_clusters", "check_index"]

_BATCH = 500
_KEYS = 50_000
"""Specifications whose bands are held at once: some 10 MB."""
_BAND_BYTES = 12


def check_clusters(connection: Connection) -> Iterator[str]:
    """Yield one line for each specification whose cluster is neither its group nor that of any text."""
    query = (
        sa.select(specifications.c.key, specifications.c.spec_group, specifications.c.cluster, texts.c.digest)
        .outerjoin(texts, texts.c.key == specifications.c.key)
        .execution_options(yield_per=_BATCH)
    )
    for rows in connection.execute(query).partitions():
        for key, group, cluster, digest in rows:
            own = group or f"~{(digest or b'').hex()[:12]}"
            if cluster != own and (group or not _is_cluster(connection, cluster)):
                yield f"the cluster of specification {key} was altered"


def _is_cluster(connection: Connection, cluster: str) -> bool:
    """Whether an ungrouped specification can have joined it: a group's name, or what begins a text's digest."""
    groups = sa.select(specifications.c.key).where(specifications.c.spec_group == cluster).limit(1)
    if connection.execute(groups).first():
        return True
    try:
        start = bytes.fromhex(cluster.removeprefix("~"))
    except ValueError:
        return False
    named = texts.c.digest.between(start, start + b"\xff" * 26)
    found = connection.execute(sa.select(texts.c.key).where(named).limit(1)).first()
    return cluster == f"~{start.hex()}" and len(start) == 6 and found is not None


def check_index(connection: Connection) -> Iterator[str]:
    """Yield what is wrong with the signatures of specifications and with the index over them."""
    signed = specifications.c.signature.is_not(None)
    state = connection.execute(sa.select(side_index)).mappings().all()
    if not state:
        if connection.execute(sa.select(specifications.c.key).where(signed).limit(1)).first():
            yield "the settings of the near-duplicate index are missing"
        return
    total = connection.execute(sa.select(sa.func.count()).select_from(specifications)).scalar_one()
    if len(state) > 1 or state[0]["number"] != 1 or not 0 <= state[0]["specs"] <= total:
        yield "the settings of the near-duplicate index were altered"
    if state[0]["scheme"] != near_duplicates.scheme():
        altered = next(_signatures(connection, unpack(state[0]["common"])), None)
        if altered is None and connection.execute(sa.select(specifications.c.key).where(signed).limit(1)).first():
            yield "the scheme of the near-duplicate index was altered: its signatures are of this version's"
        return
    yield from _signatures(connection, unpack(state[0]["common"]))
    yield from _bands(connection)


def _signatures(connection: Connection, common: frozenset[int]) -> Iterator[str]:
    query = (
        sa.select(specifications.c.key, specifications.c.signature, texts.c.body)
        .join(texts, texts.c.key == specifications.c.key)
        .where(sa.or_(specifications.c.signature.is_not(None), specifications.c.spec_group == ""))
        .execution_options(yield_per=_BATCH)
    )
    for key, packed, body in connection.execute(query):
        made = near_duplicates.signature(near_duplicates.distinctive(decode_text(body), common))
        if made.astype("<u4").tobytes() != packed:
            yield f"the near-duplicate signature of specification {key} was altered"


def _bands(connection: Connection) -> Iterator[str]:
    """Compare the index with the signatures, a band at a time; a bucket that is full lacks who came later."""
    outside = sa.select(sa.func.count()).where(~side_bands.c.band.between(0, near_duplicates.BANDS - 1))
    if connection.execute(outside).scalar_one():
        yield "the near-duplicate index holds a band that is none"
    low, last = 0, connection.execute(sa.select(sa.func.max(side_bands.c.key))).scalar_one() or 0
    key = specifications.c.key
    while True:
        chosen = sa.select(key).where(specifications.c.signature.is_not(None), key > low).order_by(key)
        high = connection.execute(chosen.offset(_KEYS - 1).limit(1)).scalar_one_or_none()
        for band in range(near_duplicates.BANDS):
            yield from _band(connection, band, low, max(last, 2**62) if high is None else high)
        if high is None:
            return
        low = high


def _band(connection: Connection, band: int, low: int, high: int) -> Iterator[str]:
    part = sa.func.substr(specifications.c.signature, band * _BAND_BYTES + 1, _BAND_BYTES, type_=sa.LargeBinary)
    within = specifications.c.key > low, specifications.c.key <= high, specifications.c.signature.is_not(None)
    expected = {
        key: near_duplicates.band(values)
        for key, values in connection.execute(sa.select(specifications.c.key, part).where(*within))
    }
    held = side_bands.c.band == band, side_bands.c.key > low, side_bands.c.key <= high
    for value, key in connection.execute(sa.select(side_bands.c.value, side_bands.c.key).where(*held)):
        if expected.pop(key, None) != value:
            yield f"the near-duplicate index is wrong about specification {key}"
    missing = list(expected.values())
    full = _full_buckets(connection, band, missing) if missing else set()
    for key, value in expected.items():
        if value not in full:
            yield f"the near-duplicate index lacks specification {key}"


def _full_buckets(connection: Connection, band: int, values: Sequence[int]) -> set[int]:
    full: set[int] = set()
    for start in range(0, len(values), _BATCH):
        chosen = side_bands.c.band == band, side_bands.c.value.in_(values[start : start + _BATCH])
        counted = sa.select(side_bands.c.value).where(*chosen).group_by(side_bands.c.value)
        full |= set(connection.execute(counted.having(sa.func.count() >= BUCKET)).scalars())
    return full
