"""A human answers for the generator: a_human : (C, Δ_Ψ, Δ_Ω) → a (Definition 16).

The answer is judged by the same guard (Theorem 5) and stored as the chain's next attempt, with source HUMAN; with it
the specification or its constraints may be amended, Ψ' = Ψ ⊕ Δ_Ψ (Definition 12). ⊕ only ever adds: what is amended
stays as it was, and Δ stands in a paragraph of its own after it. Whoever answers what somebody else has answered
already makes a second child of one rejection: the chain becomes a tree, and both answers count.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from guardlearn.collect import stored_part
from guardlearn.contexts import KnownSpecifications, amended, derived_context
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.tables import facts, items
from guardlearn.digests import digest_json
from guardlearn.engines import judge
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.predicates import Predicate
from guardlearn.types import ArtifactStatus, Guard, RepositoryItem, Source, Specification, Verdict

__all__ = ["Amendment", "amend", "amended_text", "answered_by", "last_rejected", "unanswered"]


class Amendment(msgspec.Struct, frozen=True, kw_only=True):
    """What a human gives; at least one field says something new."""

    artifact: str
    specification: str = ""
    """Δ_Ψ, what is added to the specification."""
    constraints: str = ""
    """Δ_Ω, what is added to the constraints."""

    @property
    def kinds(self) -> list[str]:
        """AtomicGuard's kinds of amendment beside the content itself."""
        return [kind for kind in ("specification", "constraints") if getattr(self, kind).strip()]


def amended_text(text: str, addition: str) -> str:
    """Return Ψ ⊕ Δ: the text as it is, and the addition as a paragraph of its own."""
    parts = [part for part in (text, addition.strip()) if part.strip()]
    return "\n\n".join(parts) if addition.strip() else text


def last_rejected(dag: ArtifactDAG, item_id: str) -> RepositoryItem:
    """Return the rejected attempt that an answer follows: the last one at or after an item, else before it.

    Args:
        dag: ℛ.
        item_id: any attempt of the chain.

    Raises:
        RepositoryError: there is no such item, or no rejected attempt in its chain, or its texts were redacted.
    """
    links = {link.id: link for link in dag.tree(item_id)}

    def follows(name: str | None) -> bool:
        seen = set[str]()
        while name and name != item_id and name not in seen:
            seen.add(name)
            name = links[name].parent_id if name in links else None
        return name == item_id

    below = [link.id for link in links.values() if link.status is ArtifactStatus.REJECTED and follows(link.id)]
    above = [item.id for item in dag.provenance(item_id) if item.status is ArtifactStatus.REJECTED]
    if not below and not above:
        raise RepositoryError(
            f"there is no rejected attempt in the chain of {item_id!r} ({links[item_id].status.value}); "
            "an amendment answers a rejection"
        )
    found = dag.get_item((below or above)[-1])
    if found.facts and found.facts.redacted:
        raise RepositoryError(f"the texts of {found.id!r} were redacted; there is nothing to amend")
    return found


def unanswered(dag: ArtifactDAG, guard: Guard, where: Predicate | None = None) -> RepositoryItem | None:
    """Return the last rejected attempt of the oldest chain that nothing was accepted in; None where there is none.

    Args:
        dag: ℛ.
        guard: whose rejections are looked at.
        where: looks at these attempts only; None: at all.
    """
    other = facts.alias("other")
    solved = sa.exists().where(other.c.root_seq == facts.c.root_seq, other.c.status == ArtifactStatus.ACCEPTED.value)
    query = (
        sa.select(items.c.id)
        .join(facts, facts.c.seq == items.c.seq)
        .where(facts.c.status == ArtifactStatus.REJECTED.value, sa.not_(facts.c.redacted), sa.not_(solved))
        .where(items.c.guard == guard.name)
        .order_by(facts.c.root_seq, facts.c.seq.desc())
    )
    wanted = None if where is None else set(dag.ids(where))
    with dag.reading() as connection, connection.execute(query) as names:
        found = next((name for name in names.scalars() if wanted is None or name in wanted), None)
    return None if found is None else dag.get_item(found)


def answered_by(dag: ArtifactDAG, rejected: RepositoryItem) -> list[RepositoryItem]:
    """Return what humans have answered to a rejected attempt already, in the order of commit."""
    children = [dag.get_item(link.id) for link in dag.tree(rejected.id) if link.parent_id == rejected.id]
    return [child for child in children if child.source is Source.HUMAN]


def amend(
    dag: ArtifactDAG,
    rejected: RepositoryItem,
    amendment: Amendment,
    guard: Guard,
    *,
    known: KnownSpecifications = KnownSpecifications(),
    actor: str = "",
) -> RepositoryItem:
    """Judge a human's answer and store it, whatever the verdict; returns the item as ℛ has it.

    The same answer of the same person to the same rejection is stored once. Where it got no verdict it is judged
    again; one that gets a verdict now is stored beside the one without.

    Args:
        dag: ℛ, open for writing.
        rejected: what is answered; read from ℛ.
        amendment: the answer.
        guard: G, which reads what `known` says beside Ψ.
        known: the specification file.
        actor: who answers; stored in the item's metadata.

    Raises:
        UsageError: the artifact is the rejected one, and nothing was amended.
        GuardError: the guard returned something that is no verdict.
    """
    if amendment.artifact == rejected.artifact and not amendment.kinds:
        raise UsageError(f"the artifact of {rejected.id!r} is unchanged; nothing was stored")
    specification = amended_text(rejected.specification, amendment.specification)
    constraints = amended_text(rejected.constraints, amendment.constraints)
    name = digest_json([rejected.id, actor, amendment.artifact, specification, constraints, guard.name, guard.version])
    item_id, silent = f"human-{name[:26]}", None
    while dag.known_ids([item_id]):
        before = dag.get_item(item_id)
        if before.status is not ArtifactStatus.PENDING:
            return before
        silent = before
        item_id = f"human-{digest_json([name, item_id])[:26]}"
    context = amended(derived_context(rejected, known, answered=True), specification, constraints)
    verdict = judge(guard, amendment.artifact, context)
    if silent is not None and verdict.status is ArtifactStatus.PENDING:
        return silent
    dag.append(_item(item_id, rejected, amendment.artifact, context.specification, verdict, amendment.kinds, actor))
    return dag.get_item(item_id)


def _item(
    item_id: str,
    rejected: RepositoryItem,
    artifact: str,
    asked: Specification,
    verdict: Verdict,
    kinds: list[str],
    actor: str,
) -> RepositoryItem:
    carried: dict[str, Any] = {key: rejected.metadata[key] for key in ("spec_id", "sample") if key in rejected.metadata}
    return RepositoryItem(
        id=item_id,
        parent_id=rejected.id,
        artifact=artifact,
        specification=asked.specification,
        constraints=asked.constraints or "",
        status=verdict.status,
        source=Source.HUMAN,
        feedback=verdict.feedback,
        cause=verdict.cause,
        fatal=verdict.fatal,
        guard=verdict.guard,
        guard_version=verdict.guard_version,
        action_pair_id=rejected.action_pair_id,
        workflow_id=rejected.workflow_id,
        workflow_ref=rejected.workflow_ref,
        group=rejected.group,
        metadata={
            **carried,
            "actor": actor,
            "amended": kinds,
            "guard_seconds": round(verdict.seconds, 4),
            **({"verdicts": [stored_part(each) for each in verdict.verdicts]} if verdict.verdicts else {}),
        },
    )
