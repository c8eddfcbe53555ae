"""The tables of ℛ, declared once; SQLAlchemy Core turns them into each database's DDL.

Two immutable tables share one `seq`, the commit order: `items` (what was attempted) and `events` (what became known
later). `bodies` holds the long texts of an item, `texts` each Ψ and Ω once. `specifications` holds the side of every Ψ,
`pinned_groups` the sides that were chosen by hand. `readings` notes each time held-out specifications were read,
`checkpoints` and `trained` what was trained into which adapter, `rounds` how far each round came, `promotions` which
adapter is live, `imports` what each import read. All of these only grow (`triggers.py`). `facts` and `waiting` are
derived, may change, and can be rebuilt at any time; `head` holds the running digests that show a deleted last row.

Definitions 2, 5, 10, 11. Names are text without NUL and lone surrogates; long texts are UTF-8 bytes with
`surrogatepass`, because SQLite's text refuses lone surrogates and PostgreSQL's refuses NUL.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, Table, Text

__all__ = [
    "IMMUTABLE",
    "SCHEMA_VERSION",
    "bodies",
    "checkpoints",
    "events",
    "facts",
    "head",
    "imports",
    "items",
    "meta",
    "metadata",
    "pinned_groups",
    "promotions",
    "readings",
    "rounds",
    "specifications",
    "texts",
    "trained",
    "waiting",
]

SCHEMA_VERSION = 4

metadata = MetaData()

# ids sort bytewise everywhere; SQLite does so by itself
_Name = Text().with_variant(Text(collation="C"), "postgresql")
# SQLite gives only INTEGER PRIMARY KEY the speed of a row id
_Key = BigInteger().with_variant(Integer(), "sqlite")


def _name(column: str) -> Column[str]:
    return Column(column, _Name, nullable=False)


def _bytes(column: str) -> Column[bytes]:
    return Column(column, LargeBinary, nullable=False)


def _whole(column: str) -> Column[int]:
    return Column(column, BigInteger, nullable=False)


def _flag(column: str) -> Column[bool]:
    return Column(column, Boolean, nullable=False)


def _key(column: str) -> Column[int]:
    return Column(column, _Key, primary_key=True, autoincrement=False)


items = Table(
    "items",
    metadata,
    _key("seq"),
    Column("id", _Name, nullable=False, unique=True),
    _name("parent_id"),  # "" for a first attempt
    _whole("specification"),  # Ψ: texts.key
    _whole("constraints"),  # Ω: texts.key
    _name("action_pair_id"),
    _name("workflow_id"),
    _name("workflow_ref"),
    _name("source"),
    _name("status"),  # the first one; facts.status is the current one
    _name("cause"),
    _flag("fatal"),
    _name("guard"),
    _name("guard_version"),
    _whole("created_at"),  # microseconds since 1970, UTC
    _name("model"),
    _name("adapter"),
    _name("prompt_digest"),
    _name("spec_group"),  # "" where none was given
    _bytes("body_digest"),  # of artifact, feedback and details: stays when they are redacted
    _bytes("seen_digest"),  # of bodies.seen; empty where that is empty
    _bytes("digest"),  # covers everything above and the parent's digest
    Index("items_created_at", "created_at", "id"),
)

bodies = Table(
    "bodies",
    metadata,
    _key("seq"),
    _bytes("artifact"),
    _bytes("feedback"),
    _bytes("details"),  # JSON: sampling, metadata; empty where both are
    _bytes("seen"),  # JSON: seen_history; empty where H is the chain's
)

texts = Table(
    "texts",
    metadata,
    _key("key"),
    Column("digest", LargeBinary, nullable=False, unique=True),
    _bytes("body"),
)

events = Table(
    "events",
    metadata,
    _key("seq"),
    _name("item_id"),
    _name("kind"),  # status | exclude | include | review | stale | redact | parent_missing
    _name("value"),
    _name("actor"),
    _name("reason"),
    _whole("created_at"),
    _bytes("digest"),
    Index("events_item", "item_id"),
)

facts = Table(
    "facts",
    metadata,
    _key("seq"),  # items.seq
    _name("status"),
    _whole("parent_seq"),  # 0: first attempt, parent missing, or the link that would close a circle
    _whole("root_seq"),
    _whole("attempt"),
    _whole("rejected_ancestors"),
    _flag("excluded"),
    _flag("reviewed"),
    _flag("stale"),
    _flag("redacted"),
    _flag("broken"),
    Index("facts_root", "root_seq"),
    Index("facts_selection", "status", "rejected_ancestors"),
)

waiting = Table(
    "waiting",
    metadata,
    _key("seq"),  # an item whose parent has not arrived
    _name("parent_id"),
    Index("waiting_parent", "parent_id"),
)

specifications = Table(
    "specifications",
    metadata,
    _key("key"),  # texts.key of Ψ
    _name("spec_group"),  # "" where none was given
    _name("cluster"),  # label of its near-duplicates; may be relabelled, the side may not
    _name("side"),
    Column("signature", LargeBinary, nullable=True),
    Index("specifications_group", "spec_group"),
)

pinned_groups = Table(
    "pinned_groups",  # sides chosen by hand; whoever assigns sides looks here first
    metadata,
    Column("spec_group", _Name, primary_key=True),
    _name("side"),
)

readings = Table(
    "readings",
    metadata,
    _key("number"),
    _name("adapter"),
    _name("sides_digest"),
    _whole("specs"),
    _name("purpose"),
    _whole("created_at"),
    _bytes("digest"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _key("number"),
    _name("learner"),
    _name("item_id"),
    _bytes("item_digest"),
    _whole("seq"),
    _whole("traces"),
    _whole("traces_processed"),
    _name("adapter"),
    _name("adapter_digest"),
    _name("parent_adapter"),
    _whole("created_at"),
    _bytes("trained_digest"),  # of the rows of `trained` that came with it
    _bytes("digest"),
    Index("checkpoints_learner", "learner", "number"),
)

trained = Table(
    "trained",  # an item that a learner has trained; never twice
    metadata,
    Column("learner", _Name, primary_key=True),
    Column("seq", _Key, primary_key=True, autoincrement=False),  # items.seq
    _whole("checkpoint"),  # checkpoints.number
    _bytes("content"),  # digest of what was trained: another item may hold the same
    Index("trained_content", "learner", "content"),
)

rounds = Table(
    "rounds",  # one row a step of a round; that a round has each step once is the fence between two loops
    metadata,
    _key("number"),
    _name("learner"),
    _whole("round"),  # from 1, by learner
    _whole("step"),  # 1 planned, 2 extracted, 3 trained, 4 measured, 5 promoted or refused
    _name("state"),
    _bytes("details"),  # JSON: what the step left
    _whole("created_at"),
    _bytes("digest"),
    Index("rounds_step", "learner", "round", "step", unique=True),
)

promotions = Table(
    "promotions",  # which adapter is live: a learner's last row holds
    metadata,
    _key("number"),
    _name("learner"),
    _whole("round"),  # 0: by hand
    _name("action"),  # promote | rollback
    _name("adapter"),  # its folder; "" for the bare base
    _name("adapter_digest"),
    _name("actor"),
    _name("reason"),
    _whole("created_at"),
    _bytes("digest"),
    Index("promotions_learner", "learner", "number"),
)

imports = Table(
    "imports",
    metadata,
    _key("number"),
    _name("source"),
    _bytes("report"),  # JSON: what was read, what could not be known, each fault
    _whole("created_at"),
    _bytes("digest"),
)

meta = Table(
    "meta",  # format, side_salt, schema_version; an upgraded ℛ has founded_version and when it was upgraded too
    metadata,
    Column("name", _Name, primary_key=True),
    _name("value"),
)

head = Table(
    "head",  # one row each for "log" (items and events), "sides", "readings", "checkpoints", "rounds", …
    metadata,
    Column("name", _Name, primary_key=True),
    _whole("seq"),
    _bytes("digest"),
)

IMMUTABLE = (
    items, events, texts, readings, checkpoints, trained, rounds, promotions, imports, meta, pinned_groups,
)  # fmt: skip
"""Tables that refuse every change; `bodies` and `specifications` refuse all but one each (see `triggers.py`)."""
