"""Registry and lineage of adapters: what each learned from, how it did, what is live, and what came of its items.

    record = lineage.find(dag, "promoted")
    lineage.explain(dag, record)                   all that is known of it, as one object
    lineage.impact(dag, item="a17")                the adapters that learned from an item
    lineage.live_adapter(dag)                      folder and digest of what is live, checked

Rounds and promotions are rows of ℛ (`guardlearn.dag.rounds`); nothing here keeps a state of its own.
"""

from guardlearn.dag.rounds import Promotion
from guardlearn.lineage.changing import BASE, Pruned, promote, prune, roll_back
from guardlearn.lineage.differences import Difference, difference
from guardlearn.lineage.explaining import Explanation, explain
from guardlearn.lineage.finding import PROMOTED, LiveAdapter, find, live_adapter, one_learner
from guardlearn.lineage.folders import Presence, check, presence
from guardlearn.lineage.impacts import Impact, Touched, impact
from guardlearn.lineage.items import ItemsNow, items_now
from guardlearn.lineage.records import AdapterRecord, base_of, children, learners, manifest_of, records

__all__ = [
    "BASE",
    "PROMOTED",
    "AdapterRecord",
    "Difference",
    "Explanation",
    "Impact",
    "ItemsNow",
    "LiveAdapter",
    "Presence",
    "Promotion",
    "Pruned",
    "Touched",
    "base_of",
    "check",
    "children",
    "difference",
    "explain",
    "find",
    "impact",
    "items_now",
    "learners",
    "live_adapter",
    "manifest_of",
    "one_learner",
    "presence",
    "promote",
    "prune",
    "records",
    "roll_back",
]
