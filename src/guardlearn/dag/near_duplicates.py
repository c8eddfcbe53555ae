"""Which specifications are near-duplicates: shingles, the ones most texts share, and MinHash signatures.

Pure functions of texts. Prompts of one agent share most of their words (its template), so shingles common to most
specifications are left out before two are compared; Broder, "On the resemblance and containment of documents" (1997),
for MinHash, Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", ch. 3, for the bands.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

__all__ = [
    "BANDS",
    "NEAR",
    "band",
    "bands",
    "common_shingles",
    "distinctive",
    "scheme",
    "shingles",
    "signature",
    "similarity",
]

NEAR = 0.5
"""Estimated Jaccard similarity from which two specifications are near-duplicates."""

PERMUTATIONS = 128
"""Length of a signature: the similarity's standard error is at most 0.044."""

BANDS = 42
"""Bands of three values: two texts of similarity 0.5 share a band with probability 0.996, of 0.7 nearly always."""

_WORDS = 2
_LEAST_DISTINCTIVE = 3
_COMMON = 0.5
# one ideograph or Hangul syllable is a word of its own: these scripts do not put spaces between words
_SOLID = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKENS = re.compile(rf"[{_SOLID}]|[^\W{_SOLID}]+|[^\w\s]")


def shingles(text: str) -> frozenset[int]:
    """Return the 32-bit hashes of all pairs of neighbouring words or signs in `text`; a shorter text is one shingle."""
    tokens = _TOKENS.findall(text.casefold())
    runs = range(max(1, len(tokens) - _WORDS + 1))
    return frozenset(zlib.crc32(" ".join(tokens[at : at + _WORDS]).encode("utf-8", "surrogatepass")) for at in runs)


def common_shingles(texts: Iterable[str]) -> frozenset[int]:
    """Return the shingles that more than half of `texts` hold: the template they share."""
    counts: Counter[int] = Counter()
    total = 0
    for text in texts:
        counts.update(shingles(text))
        total += 1
    return frozenset(shingle for shingle, count in counts.items() if count > _COMMON * total)


def distinctive(text: str, common: Collection[int]) -> frozenset[int]:
    """Return the shingles of `text` that are not common, or all of them where nearly none is left.

    One changed word makes two new shingles: texts that differ from the template by no more are near-duplicates of
    each other, and only comparing them whole says so.
    """
    whole = shingles(text)
    rest = whole.difference(common)
    return rest if len(rest) >= _LEAST_DISTINCTIVE else whole


def signature(hashes: Collection[int]) -> Any:
    """Return the MinHash signature of a set of 32-bit hashes: uint32, shape [PERMUTATIONS]."""
    import numpy

    factors, offsets = _permutations()
    mixed = numpy.array(sorted(hashes), dtype=numpy.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # MurmurHash3's finalizer
        mixed = (mixed ^ (mixed >> numpy.uint32(shift))) * numpy.uint32(factor)
    return (mixed[:, None] * factors + offsets).min(axis=0)


def bands(values: Any) -> list[int]:
    """Return one signed 64-bit hash for each band of a signature; equal bands make two texts candidates."""
    width = PERMUTATIONS // BANDS  # the two values left over serve the estimate only
    raw = values.astype("<u4").tobytes()
    return [band(raw[at * width * 4 : (at + 1) * width * 4]) for at in range(BANDS)]


def band(part: bytes) -> int:
    """Return the hash of one band: three values of a signature, little-endian uint32."""
    return int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "big", signed=True)


def similarity(values: Any, others: Any) -> Any:
    """Return the estimated Jaccard similarities of a signature and the rows of `others` [n, PERMUTATIONS]."""
    return (others == values).mean(axis=1)


@functools.cache
def scheme() -> str:
    """Return what decides signatures, as 16 hex digits; signatures of different schemes cannot be compared."""
    settings = f"{PERMUTATIONS} {BANDS} {NEAR} {_WORDS} {_COMMON} {_LEAST_DISTINCTIVE} {_TOKENS.pattern}"
    probe = signature(shingles(settings)).astype("<u4").tobytes()
    return hashlib.sha256(settings.encode() + probe).hexdigest()[:16]


@functools.cache
def _permutations() -> tuple[Any, Any]:
    """Return the odd factors and the offsets of the permutations h -> factor * h + offset mod 2^32.

    They are those of datasketch 2's "affine32" with seed 1, so its signatures stay good; the library itself would load
    scipy, which costs each first import a second and 45 MB.
    """
    import numpy

    draw = numpy.random.RandomState(1)  # its stream never changes
    factors = draw.randint(0, 1 << 31, PERMUTATIONS, dtype=numpy.uint32) * numpy.uint32(2) + numpy.uint32(1)
    return factors, draw.randint(0, 1 << 32, PERMUTATIONS, dtype=numpy.uint32)
