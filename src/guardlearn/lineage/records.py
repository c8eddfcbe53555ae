"""What ℛ says of each adapter: the steps of its round and the promotions that name it, as one record.

Pure reading: the record is what the round stored, nothing is computed anew and no folder is looked into
(`lineage.folders` does that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from guardlearn import adapters
from guardlearn.dag import ArtifactDAG, rounds, tables
from guardlearn.dag.rounds import Promotion, RoundStep, State
from guardlearn.digests import digest_json
from guardlearn.errors import ModelError

__all__ = ["AdapterRecord", "base_of", "children", "learners", "manifest_of", "record_of_folder", "records"]


class AdapterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One round's candidate: what it is, what it learned from, how it did. What is not known yet is empty."""

    learner: str
    """"" for an adapter that no round made."""
    round: int
    """1-based, by learner; 0: no round made it."""
    state: str
    """planned | extracted | trained | measured | promoted | refused; "" where no round made it."""
    folder: str = ""
    digest: str = ""
    """SHA-256 of its weights; "" until they are trained."""
    config_digest: str = ""
    """SHA-256 of its adapter_config.json; "" where the round did not note it."""
    parent: str = ""
    """Digest of the adapter that training went on from; "" for the bare base."""
    incumbent: str = ""
    """Digest of what was live when the round was planned; "" for the bare base."""
    mode: str = ""
    """restart | continue."""
    base_model: str = ""
    """As the round was given it."""
    base_model_digest: str = ""
    predicate: str = ""
    """Φ as text."""
    seq: int = 0
    """Items and events up to here had been looked at."""
    item_ids: list[str] = []
    """Everything trained on, both sides, in order; rejected attempts too where rows were made of them."""
    rejected_item_ids: list[str] = []
    """Those of them that were trained on as rejected."""
    new_item_ids: list[str] = []
    """Those of them that no earlier round of this learner had."""
    item_ids_digest: str = ""
    sides_digest: str = ""
    views: list[str] = []
    template_digest: str = ""
    prompts: dict[str, Any] = {}
    training: dict[str, Any] = {}
    """TrainingConfig as it was resolved."""
    seed: int | None = None
    weighting: dict[str, Any] = {}
    weights: dict[str, float] = {}
    """By item id, where not 1."""
    held_out: dict[str, Any] = {}
    look: int | None = None
    """The how manyth test on these held-out specifications."""
    job: str = ""
    """The job's folder."""
    rows: int | None = None
    validation_rows: int | None = None
    dropped: dict[str, int] = {}
    dropped_rows: dict[str, int] = {}
    manifest: dict[str, Any] = {}
    """The job's manifest."""
    manifest_digest: str = ""
    """SHA-256 of the job's manifest.json; "" where the round did not note it."""
    result: dict[str, Any] = {}
    """The training's own account: steps, seconds, losses, versions."""
    evidence: dict[str, Any] = {}
    """What was measured, without its pairs."""
    regressions: dict[str, Any] = {}
    """Likewise, by action pair that was not trained."""
    forgetting: dict[str, Any] = {}
    hidden: dict[str, Any] = {}
    cost: dict[str, Any] = {}
    checked: str = ""
    """How its answers were compared before anything was sampled."""
    unmeasured: dict[str, str] = {}
    """What was not measured, and why."""
    decision: dict[str, Any] = {}
    """The gate's, with every check."""
    reason: str = ""
    """Of the decision, one line."""
    planned_at: datetime | None = None
    decided_at: datetime | None = None
    live: bool = False
    promotions: list[Promotion] = []
    """Every row of ℛ that made it live."""

    @property
    def name(self) -> str:
        """What it is called: LEARNER/ROUND, or its folder where no round made it."""
        return f"{self.learner}/{self.round}" if self.round else self.folder

    @property
    def decided(self) -> bool:
        """Whether its round has ended."""
        return self.state in (State.PROMOTED, State.REFUSED)

    @property
    def gain(self) -> float | None:
        """Measured gain of the first-attempt pass rate, in [-1, 1]."""
        found = self.decision.get("gain")
        return _number(found if found is not None else self.difference.get("rate"))

    @property
    def difference(self) -> dict[str, Any]:
        """The evidence's comparison with the base: rate, low, high, p_value, …; empty where none was made."""
        return dict(self.evidence.get("difference") or {})

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the gain."""
        low, high = _number(self.difference.get("low")), _number(self.difference.get("high"))
        return None if low is None or high is None else (low, high)


def records(dag: ArtifactDAG, learner: str | None = None) -> list[AdapterRecord]:
    """Return the record of every round, by learner and round.

    Args:
        dag: ℛ; it is only read.
        learner: of this one alone; None: of all.
    """
    with dag.reading() as connection:
        steps = rounds.read(connection, learner)
        promotions = rounds.read_promotions(connection, learner)
    by_round: dict[tuple[str, int], list[RoundStep]] = {}
    for step in steps:
        by_round.setdefault((step.learner, step.round), []).append(step)
    last = {promotion.learner: promotion for promotion in promotions}
    return [_record(of_round, promotions, last.get(name)) for (name, _), of_round in sorted(by_round.items())]


def learners(dag: ArtifactDAG) -> list[str]:
    """Return the names that have rounds or promotions, sorted."""
    named = sa.union(sa.select(tables.rounds.c.learner), sa.select(tables.promotions.c.learner))
    with dag.reading() as connection:  # their names alone: a round's details may be long
        return sorted(connection.execute(named).scalars())


def children(dag: ArtifactDAG, record: AdapterRecord) -> list[AdapterRecord]:
    """Return the adapters whose training went on from this one."""
    return [each for each in records(dag) if record.digest and each.parent == record.digest]


def base_of(record: AdapterRecord) -> str:
    """Return the base model an adapter stands on, as its round was given it.

    Raises:
        ModelError: nothing says so.
    """
    if not record.base_model:
        raise ModelError(f"nothing says which base model adapter {record.name} was trained on; give --model")
    return record.base_model


def manifest_of(record: AdapterRecord) -> dict[str, Any]:
    """Return the manifest of the job an adapter was trained from.

    Raises:
        ModelError: its round has none: it was not trained.
    """
    if not record.manifest:
        raise ModelError(f"adapter {record.name} has no job's manifest: its round is {record.state}")
    return record.manifest


def record_of_folder(folder: Path) -> AdapterRecord:
    """Return what an adapter that no round made says of itself, in the manifest beside it.

    Raises:
        ModelError: no adapter there, or nothing says what it learned from.
    """
    manifest = adapters.read_manifest(folder)
    if manifest is None:
        raise ModelError(f"{folder} holds no {adapters.MANIFEST}: nothing says what this adapter learned from")
    published = adapters.read_published(folder)
    checkpoint, training = manifest.get("checkpoint") or {}, dict(manifest.get("training") or {})
    return AdapterRecord(
        learner="",
        round=0,
        state="",
        folder=str(folder),
        digest=adapters.adapter_digest(folder),
        base_model=str(manifest.get("base_model") or ""),
        predicate=str(manifest.get("predicate") or ""),
        seq=int(checkpoint.get("seq") or 0),
        item_ids=[*(manifest.get("item_ids") or ()), *(manifest.get("validation_item_ids") or ())],
        rejected_item_ids=_rejected(manifest.get("attempts"), manifest.get("rejected_item_ids")),
        parent=_digest(manifest.get("parent_adapter")),
        training=training,
        views=list(training.get("views") or ()),
        prompts=dict(manifest.get("prompts") or {}),
        seed=manifest.get("seed"),
        sides_digest=str(manifest.get("sides_digest") or ""),
        item_ids_digest=str(manifest.get("item_ids_digest") or ""),
        manifest=manifest,
        result=dict(published.get("result") or {}),
        **_from_manifest(manifest),
    )


def _record(steps: Sequence[RoundStep], promotions: Sequence[Promotion], last: Promotion | None) -> AdapterRecord:
    details: dict[State, dict[str, Any]] = {step.state: step.details for step in steps}
    end = steps[-1]
    planned, trained = details.get(State.PLANNED, {}), details.get(State.TRAINED, {})
    folder, digest = str(trained.get("adapter") or ""), str(trained.get("adapter_digest") or "")
    own = [each for each in promotions if digest and _names(each, end.learner, end.round, folder, digest)]
    fields = (
        _from_manifest(trained.get("manifest") or {})
        | _planned(planned, trained.get("manifest") or {})
        | _extracted(details.get(State.EXTRACTED, {}))
        | _measured(details.get(State.MEASURED, {}))
    )
    return AdapterRecord(
        learner=end.learner,
        round=end.round,
        state=end.state.value,
        folder=folder,
        digest=digest,
        config_digest=str(trained.get("config_digest") or ""),
        manifest=dict(trained.get("manifest") or {}),
        result=dict(trained.get("result") or {}),
        decision=dict(end.details.get("decision") or {}) if end.state.decided else {},
        reason=str(end.details.get("reason") or "") if end.state.decided else "",
        planned_at=steps[0].created_at,
        decided_at=end.created_at if end.state.decided else None,
        live=last is not None and last in own,
        promotions=own,
        **fields,
    )


def _planned(planned: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a round's plan tells; where it says nothing, those of the job's manifest."""
    training = dict(planned.get("training") or manifest.get("training") or {})
    attempts = dict(planned.get("attempts") or {})
    ids = _with_attempts(planned.get("item_ids") or (), attempts)
    seeds = [planned.get("seed"), manifest.get("seed"), training.get("seed")]
    return {
        "parent": _digest(planned.get("parent")),
        "incumbent": _digest(planned.get("incumbent")),
        "mode": str(planned.get("mode") or ""),
        "base_model": str(planned.get("base_model") or manifest.get("base_model") or ""),
        "predicate": str(planned.get("predicate") or manifest.get("predicate") or ""),
        "seq": int(planned.get("seq") or 0),
        "item_ids": ids,
        "item_ids_digest": digest_json(ids),
        "rejected_item_ids": _rejected({"": list(attempts.items())}, planned.get("rejected_item_ids")),
        "new_item_ids": list(planned.get("new_item_ids") or ()),
        "sides_digest": str(planned.get("sides_digest") or manifest.get("sides_digest") or ""),
        "views": list(training.get("views") or ()),
        "prompts": dict(manifest.get("prompts") or planned.get("prompts") or {}),
        "seed": next((seed for seed in seeds if seed is not None), None),
        "training": training,
        "weighting": dict(planned.get("weighting") or {}),
        "weights": dict(planned.get("weights") or {}),
        "held_out": dict(planned.get("held_out") or {}),
        "look": planned.get("look"),
    }


def _with_attempts(ids: Sequence[str], attempts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a plan's items, and before each the rejected attempts that were trained with it."""
    return list(dict.fromkeys(name for item_id in ids for name in (*attempts.get(item_id, ()), item_id)))


def _rejected(attempts: Mapping[str, Sequence[Any]] | None, others: Sequence[str] | None) -> list[str]:
    """Return the items trained on as rejected: attempts as pairs of trace and attempts by side, and traces."""
    found = [name for pairs in (attempts or {}).values() for _, names in pairs for name in names]
    return list(dict.fromkeys([*found, *(others or ())]))


def _extracted(extracted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the written job tells."""
    found: dict[str, Any] = {
        "job": str(extracted.get("job") or ""),
        "manifest_digest": str(extracted.get("manifest_digest") or ""),
        "dropped": dict(extracted.get("dropped") or {}),
        "dropped_rows": dict(extracted.get("dropped_rows") or {}),
    }
    return found | {name: extracted[name] for name in ("rows", "validation_rows") if extracted.get(name) is not None}


def _measured(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the measurement tells."""
    names = ("evidence", "regressions", "forgetting", "hidden", "cost", "unmeasured")
    return {name: dict(measured.get(name) or {}) for name in names} | {"checked": str(measured.get("checked") or "")}


def _from_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a job's manifest alone tells."""
    return {
        "base_model_digest": str(manifest.get("base_model_digest") or ""),
        "template_digest": str(manifest.get("template_digest") or ""),
        "rows": manifest.get("rows"),
        "validation_rows": manifest.get("validation_rows"),
    }


def _names(promotion: Promotion, learner: str, round_: int, folder: str, digest: str) -> bool:
    """Whether a promotion means this round's adapter: equal weights may come out of two rounds."""
    if (promotion.learner, promotion.adapter_digest) != (learner, digest):
        return False
    return promotion.round == round_ if promotion.round else promotion.adapter == folder


def _digest(adapter: Any) -> str:
    """Return the digest of what a round or a manifest names as an adapter: {"digest": …}, a digest, or None."""
    return str((adapter.get("digest") if isinstance(adapter, Mapping) else adapter) or "")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
