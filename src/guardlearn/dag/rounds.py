"""Rounds and promotions: rows of ℛ that say how far each round of learning came, and which adapter is live.

A round is appended steps: planned, extracted, trained, measured, then promoted or refused. A learner's round has each
step once (a unique index), so of two processes that finish the same round one is refused by the database: whoever
appends the decision has decided. A learner's live adapter is what its last promotion says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from guardlearn.dag.rows import from_micros, storable, to_micros
from guardlearn.dag.tables import head, promotions, rounds
from guardlearn.digests import digest_json
from guardlearn.errors import RepositoryError, UsageError

__all__ = [
    "Promotion",
    "RoundStep",
    "State",
    "append",
    "live",
    "promote",
    "promotion_digest",
    "read",
    "read_promotions",
    "step_digest",
]


class State(StrEnum):
    """What a round has reached."""

    PLANNED = "planned"
    EXTRACTED = "extracted"
    TRAINED = "trained"
    MEASURED = "measured"
    PROMOTED = "promoted"
    REFUSED = "refused"

    @property
    def step(self) -> int:
        """Place in the order of a round, 1 to 5; promoted and refused share the last."""
        return min(list(State).index(self), 4) + 1

    @property
    def decided(self) -> bool:
        """Whether the round has ended."""
        return self in (State.PROMOTED, State.REFUSED)


class RoundStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a round."""

    number: int
    """1-based, over all rounds of ℛ."""
    learner: str
    round: int
    """1-based, by learner."""
    state: State
    details: dict[str, Any]
    """What the step left; plain JSON."""
    created_at: datetime
    """For people; nothing is decided by it."""


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """One change of what is live."""

    number: int
    learner: str
    round: int
    """The round that promoted it; 0: by hand."""
    action: str
    """promote | rollback."""
    adapter: str
    """Its folder; "" for the bare base."""
    adapter_digest: str
    """SHA-256 of its weights; "" for the bare base."""
    actor: str
    reason: str
    created_at: datetime


def append(connection: Connection, learner: str, round_: int, state: State, details: Mapping[str, Any]) -> RoundStep:
    """Store one step of a round.

    Args:
        connection: the writing transaction.
        learner: whose round.
        round_: from 1; a new one only where the one before is decided.
        state: the step reached; it must follow what the round has. A round may be refused after any step.
        details: what the step left, plain JSON.

    Raises:
        RepositoryError: the round is not where this step would follow; another process was faster.
        UsageError: the learner's name cannot be stored.
    """
    _check_name("learner", learner)
    last = next(iter(read(connection, learner, last=True)), None)
    _must_follow(last, learner, round_, state)
    row = _numbered(connection, rounds) | {
        "learner": learner,
        "round": round_,
        "step": state.step,
        "state": state.value,
        "details": json.dumps(details, sort_keys=True, separators=(",", ":")).encode(),
    }
    _store(connection, rounds, row, step_digest)
    return _step(row)


def read(
    connection: Connection, learner: str | None = None, round_: int | None = None, *, last: bool = False
) -> list[RoundStep]:
    """Return the steps of a learner or of all, of one round or of all, oldest first; with `last`, the newest alone."""
    query = sa.select(rounds)
    if learner is not None:
        query = query.where(rounds.c.learner == learner)
    if round_ is not None:
        query = query.where(rounds.c.round == round_)
    query = query.order_by(rounds.c.number.desc() if last else rounds.c.number)
    return [_step(row) for row in connection.execute(query.limit(1) if last else query).mappings().all()]


def promote(
    connection: Connection,
    learner: str,
    *,
    action: str,
    adapter: str,
    adapter_digest: str,
    actor: str,
    reason: str,
    round_: int = 0,
) -> Promotion:
    """Store what is live from now on.

    Args:
        connection: the writing transaction.
        learner: whose adapter.
        action: "promote" or "rollback".
        adapter: its folder; "" goes back to the bare base.
        adapter_digest: of its weights.
        actor: who says so.
        reason: why.
        round_: the round that decided; 0: by hand.

    Raises:
        UsageError: unknown action, or a text that cannot be stored.
    """
    if action not in ("promote", "rollback"):
        raise UsageError(f"action is {action!r}; allowed: promote, rollback")
    for name, text in (("learner", learner), ("actor", actor)):
        _check_name(name, text)
    for name, text in (("adapter", adapter), ("reason", reason)):
        if not storable(text):
            raise UsageError(f"{name} {text!r} holds NUL or a lone surrogate; leave them out")
    row = _numbered(connection, promotions) | {
        "learner": learner,
        "round": round_,
        "action": action,
        "adapter": adapter,
        "adapter_digest": adapter_digest,
        "actor": actor,
        "reason": reason,
    }
    _store(connection, promotions, row, promotion_digest)
    return _promotion(row)


def read_promotions(connection: Connection, learner: str | None = None) -> list[Promotion]:
    """Return every change of what is live, the first one first."""
    query = sa.select(promotions).order_by(promotions.c.number)
    if learner is not None:
        query = query.where(promotions.c.learner == learner)
    return [_promotion(row) for row in connection.execute(query).mappings().all()]


def live(connection: Connection, learner: str) -> Promotion | None:
    """Return what is live for a learner; None where that is the bare base, promoted or never left."""
    query = sa.select(promotions).where(promotions.c.learner == learner).order_by(promotions.c.number.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return _promotion(row) if row is not None and row["adapter_digest"] else None


def step_digest(row: Any, before: bytes) -> bytes:
    """Return the digest of a step's row, which covers the step `before` it."""
    plain = [row[name] for name in ("number", "learner", "round", "step", "state", "created_at")]
    return bytes.fromhex(digest_json(["round", *plain, bytes(row["details"]).hex(), before.hex()]))


def promotion_digest(row: Any, before: bytes) -> bytes:
    """Return the digest of a promotion's row, which covers the promotion `before` it."""
    names = (*Promotion.__struct_fields__[:-1], "created_at")
    return bytes.fromhex(digest_json(["promotion", *(row[name] for name in names), before.hex()]))


def _must_follow(last: RoundStep | None, learner: str, round_: int, state: State) -> None:
    at, reached = (last.round, last.state) if last else (0, State.REFUSED)
    if reached.decided:
        fits = round_ == at + 1 and state is State.PLANNED
    else:
        fits = round_ == at and (state.step == reached.step + 1 or state is State.REFUSED)
    if not fits:
        now = f"at {reached} in round {at}" if last else "before its first round"
        raise RepositoryError(
            f"learner {learner!r} is {now}, so round {round_} cannot be {state} now; another process was faster: run "
            "the same command again"
        )


def _check_name(what: str, text: str) -> None:
    if not text or not storable(text):
        raise UsageError(f"{what} {text!r} cannot be stored: give a name without NUL and lone surrogates")


def _numbered(connection: Connection, table: sa.Table) -> dict[str, Any]:
    number = connection.execute(sa.select(head.c.seq).where(head.c.name == table.name)).scalar_one()
    return {"number": int(number) + 1, "created_at": to_micros(datetime.now(UTC))}


def _store(connection: Connection, table: sa.Table, row: dict[str, Any], digest: Any) -> None:
    chosen = head.c.name == table.name
    running = connection.execute(sa.select(head.c.digest).where(chosen)).scalar_one()
    row["digest"] = digest(row, bytes(running))
    connection.execute(sa.insert(table).values(**row))
    connection.execute(sa.update(head).where(chosen).values(seq=row["number"], digest=row["digest"]))


def _step(row: Any) -> RoundStep:
    return RoundStep(
        number=row["number"],
        learner=row["learner"],
        round=row["round"],
        state=State(row["state"]),
        details=json.loads(bytes(row["details"])),
        created_at=from_micros(row["created_at"]),
    )


def _promotion(row: Any) -> Promotion:
    plain = {name: row[name] for name in Promotion.__struct_fields__[:-1]}
    return Promotion(**plain, created_at=from_micros(row["created_at"]))
