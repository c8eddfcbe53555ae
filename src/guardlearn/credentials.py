"""Keys and tokens in texts that would be trained on: a model repeats what it has learned.

The detectors are detect-secrets' (https://github.com/Yelp/detect-secrets) for secrets of a known shape: cloud keys,
tokens of services, private keys, passwords in addresses. Its guesses by entropy and by words such as "password" are
left out: in code they find mostly digests and variable names. What has no known shape is not found.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from guardlearn.errors import missing_library
from guardlearn.prompts import Renderer
from guardlearn.types import OnProgress, RepositoryItem, TrainingTrace

__all__ = ["CredentialFinding", "count_kinds", "find_credentials", "kinds_in"]

_GUESSES = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "KeywordDetector", "IPPublicDetector"})
_REMEMBERED = 20_000  # texts: Ψ, Ω and rejected attempts come back trace after trace
_EVERY = 200


class CredentialFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One trace with keys or tokens in its texts; what they are is never repeated here."""

    item_id: str
    kinds: dict[str, list[str]]
    """Kind of secret → the places it stands in: specification, constraints, artifact, history, attempts, and what a
    renderer adds."""


def find_credentials(
    traces: Sequence[TrainingTrace], on_progress: OnProgress | None = None, *, renderer: Renderer | None = None
) -> list[CredentialFinding]:
    """Return the traces whose texts hold a key or token, in order.

    Args:
        traces: what would be trained on.
        on_progress: called with (traces scanned, traces, note).
        renderer: makes the prompts; what it adds to them is looked at too.

    Raises:
        BackendUnavailable: detect-secrets is not installed.
    """
    found = []
    for number, trace in enumerate(traces, start=1):
        kinds: dict[str, list[str]] = {}
        for place, text in (*_texts(trace), *(renderer.added_texts(trace.item) if renderer else ())):
            for kind in kinds_in(text):
                places = kinds.setdefault(kind, [])
                if place not in places:
                    places.append(place)
        if kinds:
            found.append(CredentialFinding(item_id=trace.item.id, kinds=kinds))
        if on_progress and (number % _EVERY == 0 or number == len(traces)):
            on_progress(number, len(traces), f"{len(found)} with keys or tokens")
    return found


def count_kinds(findings: Sequence[CredentialFinding]) -> dict[str, int]:
    """Return how many traces hold each kind, the most frequent first."""
    counts = Counter(kind for finding in findings for kind in finding.kinds)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


@functools.lru_cache(maxsize=_REMEMBERED)
def kinds_in(text: str) -> tuple[str, ...]:
    """Return the kinds of keys and tokens in a text, sorted.

    Raises:
        BackendUnavailable: detect-secrets is not installed.
    """
    return tuple(sorted({each.secret_type for each in _detectors() if any(each.analyze_string(text))}))


@functools.cache
def _detectors() -> tuple[Any, ...]:
    try:
        from detect_secrets.core.plugins import initialize
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ImportError:
        raise missing_library("detect-secrets", "secrets", "looking for keys and tokens") from None
    kinds: dict[str, type] = get_mapping_from_secret_type_to_class()
    names = sorted(kind.__name__ for kind in kinds.values())
    return tuple(initialize.from_plugin_classname(name) for name in names if name not in _GUESSES)


def _texts(trace: TrainingTrace) -> Iterator[tuple[str, str]]:
    yield from _of_item(trace.item, "artifact")
    for entry in trace.history:
        yield "history", entry.artifact
        yield "history", entry.feedback
    for attempt in trace.attempts:
        yield from _of_item(attempt, "attempts")


def _of_item(item: RepositoryItem, place: str) -> Iterator[tuple[str, str]]:
    yield "specification", item.specification
    yield "constraints", item.constraints
    yield place, item.artifact
