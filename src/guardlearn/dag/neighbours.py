"""Near-duplicates among the specifications of ℛ: a MinHash index in the database.

The index covers every specification once one without a group arrives. Shingles common to most specifications are
looked for again each time their number has doubled; where they changed, all signatures are made anew, which keeps
signatures comparable and costs each specification a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag import near_duplicates
from guardlearn.dag.side_tables import side_bands, side_index
from guardlearn.dag.tables import specifications, texts
from guardlearn.types import Side

__all__ = ["BUCKET", "Neighbour", "NeighbourIndex", "Sketch", "unpack"]

_SAMPLE = 400
_COMMON_FROM = 10
BUCKET = 32
"""A bucket of the index takes so many specifications: a full one finds the same neighbours."""
_CHUNK = 500


class Sketch(NamedTuple):
    """A text as the index sees it."""

    values: Any
    """MinHash signature, uint32."""
    bands: list[int]

    @property
    def packed(self) -> bytes:
        """The signature as stored: little-endian uint32."""
        return bytes(self.values.astype("<u4").tobytes())


class Neighbour(NamedTuple):
    """A known specification near the one in question."""

    similarity: float
    key: int
    cluster: str
    side: Side


class NeighbourIndex:
    """The index for one batch of new specifications, within one writing transaction.

    Args:
        connection: a writing transaction on ℛ.
        incoming: texts of the batch; they count when common shingles are looked for.
    """

    def __init__(self, connection: Connection, incoming: Sequence[str]) -> None:
        self.connection = connection
        self._buckets: dict[tuple[int, int], list[int]] = {}
        self._known: dict[int, tuple[Any, str, Side]] = {}
        self._unsaved: list[dict[str, int]] = []
        self.common, emptied = self._current(incoming)
        # without a group nothing is stored unindexed, so only the others need to be looked through
        self._catch_up(sa.true() if emptied else specifications.c.spec_group > "")

    def sketch(self, batch: Sequence[str]) -> list[Sketch]:
        """Return the sketches of texts, and fetch what could be near them."""
        made = [near_duplicates.signature(near_duplicates.distinctive(text, self.common)) for text in batch]
        sketches = [Sketch(values, near_duplicates.bands(values)) for values in made]
        self._fetch_buckets(sketches)
        self._fetch_known({key for keys in self._buckets.values() for key in keys})
        return sketches

    def near(self, sketch: Sketch) -> list[Neighbour]:
        """Return the near-duplicates of a sketch made by this index, nearest first."""
        import numpy

        keys = sorted({key for place in enumerate(sketch.bands) for key in self._buckets.get(place, ())})
        if not keys:
            return []
        known = [self._known[key] for key in keys]
        similarities = near_duplicates.similarity(sketch.values, numpy.stack([values for values, _, _ in known]))
        found = [
            Neighbour(float(similarity), key, cluster, side)
            for similarity, key, (_, cluster, side) in zip(similarities, keys, known, strict=True)
            if similarity >= near_duplicates.NEAR
        ]
        return sorted(found, key=lambda neighbour: (-neighbour.similarity, neighbour.key))

    def add(self, key: int, sketch: Sketch, cluster: str, side: Side) -> None:
        """Make a specification findable, for this batch at once and after `flush` for all."""
        self._known[key] = (sketch.values, cluster, side)
        self._enter(key, sketch)

    def flush(self) -> None:
        """Write what was added, and forget what was fetched."""
        if self._unsaved:
            self.connection.execute(side_bands.insert(), self._unsaved)
        self._unsaved, self._buckets, self._known = [], {}, {}

    def _enter(self, key: int, sketch: Sketch) -> None:
        for band, value in enumerate(sketch.bands):
            bucket = self._buckets.setdefault((band, value), [])
            if len(bucket) < BUCKET:  # more would make appending quadratic
                bucket.append(key)
                self._unsaved.append({"band": band, "value": value, "key": key})

    def _fetch_buckets(self, sketches: Sequence[Sketch]) -> None:
        for band in range(near_duplicates.BANDS):
            values = list({sketch.bands[band] for sketch in sketches} - {v for b, v in self._buckets if b == band})
            self._buckets |= {(band, value): [] for value in values}
            for part in _parts(values):
                chosen = sa.and_(side_bands.c.band == band, side_bands.c.value.in_(part))
                rows = self.connection.execute(sa.select(side_bands.c.value, side_bands.c.key).where(chosen))
                for value, key in rows:
                    self._buckets[band, value].append(key)

    def _fetch_known(self, keys: set[int]) -> None:
        import numpy

        table = specifications.c
        for part in _parts(sorted(keys - self._known.keys())):
            columns = sa.select(table.key, table.signature, table.cluster, table.side).where(table.key.in_(part))
            for key, packed, cluster, side in self.connection.execute(columns):
                self._known[key] = (numpy.frombuffer(packed, dtype="<u4"), cluster, Side(side))

    def _current(self, incoming: Sequence[str]) -> tuple[frozenset[int], bool]:
        """Return the common shingles, looked for anew at each doubling, and whether the index was emptied for them."""
        scheme = near_duplicates.scheme()
        stored = int(self.connection.execute(sa.select(sa.func.count()).select_from(specifications)).scalar_one())
        total = stored + len(incoming)
        state = self.connection.execute(sa.select(side_index)).mappings().first()
        common = unpack(state["common"]) if state else frozenset()
        known_scheme = state is not None and state["scheme"] == scheme
        if state is not None and known_scheme and (total < 2 * state["specs"] or total < _COMMON_FROM):
            return common, False
        found = near_duplicates.common_shingles(self._sample(incoming, stored)) if total >= _COMMON_FROM else common
        emptied = state is not None and (found != common or not known_scheme)
        if emptied:
            self.connection.execute(side_bands.delete())
            self.connection.execute(specifications.update().values(signature=None))
        row = {"number": 1, "scheme": scheme, "specs": total, "common": _pack(found)}
        self.connection.execute(side_index.delete())
        self.connection.execute(side_index.insert(), row)
        return found, emptied

    def _sample(self, incoming: Sequence[str], stored: int) -> Iterator[str]:
        """Yield at most about _SAMPLE texts, spread evenly over those stored and those arriving."""
        step = max(1, -(-(stored + len(incoming)) // _SAMPLE))
        yield from incoming[::step]
        keys = [key for (key,) in self.connection.execute(sa.select(specifications.c.key).order_by("key"))]
        for _, text in self._texts(keys[::step]):
            yield text

    def _catch_up(self, chosen: sa.ColumnElement[bool]) -> None:
        """Index those of the chosen specifications that are not."""
        missing = sa.select(specifications.c.key).where(chosen, specifications.c.signature.is_(None)).order_by("key")
        keys = [key for (key,) in self.connection.execute(missing)]
        mark = specifications.update().where(specifications.c.key == sa.bindparam("of"))
        mark = mark.values(signature=sa.bindparam("packed"))
        for part in _parts(keys):
            found = list(self._texts(part))
            sketches = self.sketch([text for _, text in found])
            for (key, _), sketch in zip(found, sketches, strict=True):
                self._enter(key, sketch)
            rows = [{"of": key, "packed": sketch.packed} for (key, _), sketch in zip(found, sketches, strict=True)]
            self.connection.execute(mark, rows)
            self.flush()

    def _texts(self, keys: Iterable[int]) -> Iterator[tuple[int, str]]:
        for part in _parts(list(keys)):
            rows = self.connection.execute(
                sa.select(texts.c.key, texts.c.body).where(texts.c.key.in_(part)).order_by(texts.c.key)
            )
            for key, body in rows:
                yield key, body.decode("utf-8", "surrogatepass")


def _parts(values: Sequence[int]) -> Iterator[Sequence[int]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))


def _pack(hashes: Iterable[int]) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in sorted(hashes))


def unpack(packed: bytes) -> frozenset[int]:
    """Return the common shingles as `side_index` holds them."""
    return frozenset(int.from_bytes(packed[at : at + 4], "little") for at in range(0, len(packed), 4))
