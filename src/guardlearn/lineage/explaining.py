"""All that is known of one adapter, as one object: what `guardlearn why` prints for people.

Nothing here judges: figures and reasons are those that its round stored; what its items are now comes from ℛ.
"""

from __future__ import annotations

from typing import Any

import msgspec

from guardlearn import predicates
from guardlearn.dag import ArtifactDAG, rounds
from guardlearn.dag.rounds import Promotion
from guardlearn.errors import PredicateError, UsageError
from guardlearn.lineage.differences import figures
from guardlearn.lineage.folders import Presence, presence
from guardlearn.lineage.items import ItemsNow, items_now
from guardlearn.lineage.records import AdapterRecord, children, records
from guardlearn.predicates import wording
from guardlearn.predicates.expression import All, Any_, Comparison, Not, Predicate, Word

__all__ = ["Explanation", "explain", "in_words"]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter, from what it learned to what came of it."""

    name: str
    record: AdapterRecord
    folder: Presence
    selects: str
    """Φ in words."""
    items: ItemsNow
    parent: str
    """Name of the adapter it went on from, its digest where ℛ does not know it; "": the bare base."""
    incumbent: str
    """Likewise, what was live when its round began."""
    figures: dict[str, Any]
    """Headline figures; None where they were not measured."""
    live_now: list[Promotion]
    """What is live for its learner: one, or none for the bare base."""
    live_name: str
    """What that is called, by itself or by its folder; "": the bare base."""
    inherited: int
    """Items that its parents learned from beside its own."""
    children: list[str]
    """Names of the adapters that went on from it."""
    notes: list[str]
    """What is missing, altered or not known any more, each in a line."""


def explain(dag: ArtifactDAG, record: AdapterRecord) -> Explanation:
    """Gather what is known of an adapter.

    Args:
        dag: ℛ; it is only read.
        record: what `find` returned.
    """
    names = {each.digest: each.name for each in reversed(records(dag)) if each.digest}
    place, now = presence(record), items_now(dag, record)
    with dag.reading() as connection:
        live = rounds.live(connection, record.learner) if record.learner else None
    return Explanation(
        name=record.name,
        record=record,
        folder=place,
        selects=in_words(record.predicate),
        items=now,
        parent=names.get(record.parent, record.parent),
        incumbent=names.get(record.incumbent, record.incumbent),
        figures=figures(record) if record.evidence or record.decision else {},
        live_now=[live] if live else [],
        live_name=(_name(live, record.learner) or names.get(live.adapter_digest, live.adapter)) if live else "",
        inherited=len(record.manifest.get("inherited_item_ids") or ()),
        children=[each.name for each in children(dag, record)],
        notes=list(_notes(dag, record, place, now)),
    )


def _name(live: Promotion, learner: str) -> str:
    """Return the name of a live adapter that its round promoted; one promoted by hand is known by its weights."""
    return f"{learner}/{live.round}" if live.round else ""


def in_words(text: str) -> str:
    """Return what a predicate's text selects, in words; text that is none is returned as it is."""
    if not text:
        return "not said"
    try:
        return _words(predicates.parse(text))
    except (PredicateError, UsageError):
        return text


def _words(predicate: Predicate) -> str:
    match predicate:
        case Word(comparisons=()):
            return "everything" if predicate.name == "everything" else repr(predicate)
        case Word():
            return " and ".join(wording.holding(each.field, each.test, each.value) for each in predicate.comparisons)
        case Not(term=Word(comparisons=(Comparison() as only,))):
            return wording.failing(only.field, only.test, only.value, _negated(only))
        case Not():
            return f"not ({_words(predicate.term)})"
        case All():
            return "; ".join(_words(term) for term in predicate.terms)
        case Any_():
            return " or ".join(f"({_words(term)})" for term in predicate.terms)
    return repr(predicate)


def _negated(only: Comparison) -> str:
    """Return what `wording.failing` says of an item that is not what a comparison asks."""
    return f"not {wording.holding(only.field, only.test, only.value)}" if only.field in wording.NAMED else ""


def _notes(dag: ArtifactDAG, record: AdapterRecord, place: Presence, now: ItemsNow) -> list[str]:
    found = []
    if place.state not in ("there", "not trained"):
        found.append(f"its folder: {place.said}")
    if record.manifest and record.round and not set(record.manifest.get("item_ids") or ()) <= set(record.item_ids):
        found.append("its job's manifest names items that its round did not plan")
    if now.gone:
        shown = ", ".join(now.gone[:3])
        found.append(f"{len(now.gone)} of its {now.count} items are not in {dag.target}: {shown}")
    if now.other_versions:
        versions = ", ".join(f"{name} ({count} items)" for name, count in now.other_versions.items())
        found.append(f"judged by another version of the guard than the one that measured it: {versions}")
    if not record.item_ids:
        found.append("nothing says which items it learned from")
    return found
