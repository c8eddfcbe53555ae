"""What differs between two adapters: what they learned from, how they were trained, how they did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from guardlearn.lineage.records import AdapterRecord

__all__ = ["Difference", "difference", "figures"]

_EXAMPLES = 5


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Two adapters side by side: each pair is (first, second)."""

    first: str
    second: str
    same_weights: bool
    items_in_both: int
    items_in_first: int
    """Items only the first learned from."""
    items_in_second: int
    examples_in_first: list[str]
    examples_in_second: list[str]
    predicate: tuple[str, str] | None
    """None where both say the same."""
    config: dict[str, tuple[Any, Any]]
    """What was set differently, by dotted name; None where one has no such setting."""
    evidence: dict[str, tuple[Any, Any]]
    """Figures of both, also where they are equal."""
    decision: tuple[str, str]
    """State and reason."""


def difference(first: AdapterRecord, second: AdapterRecord) -> Difference:
    """Compare two records; nothing but them is looked at."""
    one, other = dict.fromkeys(first.item_ids), dict.fromkeys(second.item_ids)
    only_first = [item_id for item_id in one if item_id not in other]
    only_second = [item_id for item_id in other if item_id not in one]
    figures_of = figures(first), figures(second)
    return Difference(
        first=first.name,
        second=second.name,
        same_weights=bool(first.digest) and first.digest == second.digest,
        items_in_both=len(one) - len(only_first),
        items_in_first=len(only_first),
        items_in_second=len(only_second),
        examples_in_first=only_first[:_EXAMPLES],
        examples_in_second=only_second[:_EXAMPLES],
        predicate=None if first.predicate == second.predicate else (first.predicate, second.predicate),
        config=_unequal(_config(first), _config(second)),
        evidence={name: (figures_of[0].get(name), figures_of[1].get(name)) for name in figures_of[0]},
        decision=(_decided(first), _decided(second)),
    )


def figures(record: AdapterRecord) -> dict[str, float | None]:
    """Return an adapter's headline figures; None where they were not measured."""
    low, high = record.interval or (None, None)
    base, candidate = (record.evidence.get(which) or {} for which in ("base", "candidate"))
    return {
        "base first attempts": _rate(base),
        "first attempts": _rate(candidate),
        "gain": record.gain,
        "low": low,
        "high": high,
        "p": record.decision.get("p_value", record.difference.get("p_value")),
        "level": record.decision.get("level"),
        "detectable": record.decision.get("detectable", record.difference.get("minimum_detectable")),
        "expected attempts": candidate.get("expected_attempts"),
    }


def _rate(performance: Mapping[str, Any]) -> float | None:
    found: float | None = (performance.get("first_attempt") or {}).get("rate")
    return found


def _config(record: AdapterRecord) -> dict[str, Any]:
    own = {
        name: getattr(record, name)
        for name in ("mode", "base_model", "base_model_digest", "parent", "views", "seed", "sides_digest")
    }
    own["template_digest"] = record.template_digest
    nested = {"training": record.training, "prompts": record.prompts, "weighting": record.weighting}
    told = dict(_flat(nested, ""))
    return {name: value for name, value in own.items() if f"training.{name}" not in told} | told


def _flat(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in sorted(values.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted({*one, *other})
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _decided(record: AdapterRecord) -> str:
    if not record.reason or record.reason.startswith(record.state):
        return record.reason or record.state or "no round"
    return f"{record.state}: {record.reason}"
