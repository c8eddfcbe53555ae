"""What ℛ holds already of what is imported, and what a later verdict means there.

The same for every importer: what is stored stays, a verdict that came later becomes an event, and what people noted
themselves is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.batching import batches
from guardlearn.dag.rows import ItemRows, storable
from guardlearn.dag.tables import bodies, events, facts, items, texts
from guardlearn.types import ArtifactStatus

__all__ = ["LateVerdict", "Said", "clash", "known_items", "late_verdict", "verdicts_said"]

_PENDING = ArtifactStatus.PENDING.value


def known_items(connection: Connection, ids: Sequence[str]) -> dict[str, Any]:
    """Return what ℛ holds under `ids`: row, texts, and digests of Ψ and Ω."""
    known: list[int] = []
    for some in batches([name for name in ids if storable(name)]):
        known += connection.execute(sa.select(items.c.seq).where(items.c.id.in_(some))).scalars()
    psi, omega = texts.alias("psi"), texts.alias("omega")
    query = (
        sa.select(
            *items.c,
            *(bodies.c[name] for name in ("artifact", "feedback")),
            facts.c.redacted,
            psi.c.digest.label("psi"),
            omega.c.digest.label("omega"),
        )
        .join(bodies, bodies.c.seq == items.c.seq)
        .join(facts, facts.c.seq == items.c.seq)
        .join(psi, psi.c.key == items.c.specification)
        .join(omega, omega.c.key == items.c.constraints)
    )
    found: dict[str, Any] = {}
    for numbers in batches(known):
        rows = connection.execute(query.where(items.c.seq.in_(numbers))).mappings()
        found |= {row["id"]: row for row in rows}
    return found


class Said(NamedTuple):
    """The last status that events gave an item; "" for none."""

    imported: str = ""
    """By an import."""
    others: str = ""
    """By somebody else."""


def verdicts_said(connection: Connection, ids: Sequence[str], actor: str) -> dict[str, Said]:
    """Return what events said about items; `actor` is the import's name."""
    query = sa.select(events.c.item_id, events.c.value, events.c.actor).where(events.c.kind == "status")
    said: dict[str, Said] = {}
    for some in batches(ids):
        for name, value, who in connection.execute(query.where(events.c.item_id.in_(some)).order_by(events.c.seq)):
            field = "imported" if who == actor else "others"
            said[name] = said.get(name, Said())._replace(**{field: value})
    return said


def clash(encoded: ItemRows, stored: Mapping[str, Any], links: bool = True) -> str:
    """Return what differs between an attempt and the item ℛ holds under its id, "" where they are the same.

    Args:
        encoded: the attempt.
        stored: of `known_items`.
        links: whether an attempt stored with another parent is another attempt.
    """
    row = encoded.row
    differs = {
        "specification": encoded.specification_digest != bytes(stored["psi"]),
        "constraints": encoded.constraints_digest != bytes(stored["omega"]),
        "artifact": not stored["redacted"] and encoded.body["artifact"] != bytes(stored["artifact"]),
        "parent": links and row["parent_id"] != stored["parent_id"],
        "action pair": row["action_pair_id"] != stored["action_pair_id"],
        "workflow": row["workflow_id"] != stored["workflow_id"],
    }
    return next((name for name, other in differs.items() if other), "")


class LateVerdict(NamedTuple):
    """What a verdict that is read again means."""

    status: str = ""
    """To be noted as an event; "" where nothing is."""
    fault: str = ""
    """What is odd, a clause."""


def late_verdict(encoded: ItemRows, stored: Mapping[str, Any], said: Said, implied: bool = False) -> LateVerdict:
    """Return what to do about a stored attempt whose source may have another verdict by now.

    Args:
        encoded: the attempt as its source has it now.
        stored: of `known_items`.
        said: of `verdicts_said`.
        implied: its verdict was not stated but follows from what came after it.
    """
    before, now = said.imported or stored["status"], encoded.row["status"]
    if now == _PENDING or (implied and (before != _PENDING or said.others)):
        return LateVerdict()
    if before == now:
        same = said.imported or stored["redacted"] or stored["feedback"] == encoded.body["feedback"]
        return LateVerdict(
            fault="" if same else "its feedback is another than when it was imported; the first one stays"
        )
    if said.others:
        differs = said.others != now
        return LateVerdict(
            fault=f"is {now} in its source now, and {said.others} by an event, which stays" if differs else ""
        )
    return LateVerdict(status=now)
