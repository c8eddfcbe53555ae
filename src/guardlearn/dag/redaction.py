"""Blanks the texts of an item for good: the one thing that ℛ allows to disappear.

The event comes first, then the blanking, in one transaction; the triggers allow it in no other order. Hashes stay, so
`verify` still vouches for the chain. A history shown to another item that quotes the text is blanked with it.
"""

from __future__ import annotations

import sqlalchemy as sa

from guardlearn.dag.appending import Appender
from guardlearn.dag.rows import decode_seen, decode_text
from guardlearn.dag.tables import bodies, items

__all__ = ["SEEN_ONLY", "redact"]

SEEN_ONLY = "seen_history"
"""Value of a redaction that blanks only the stored history of an item."""


def redact(appender: Appender, item_id: str, actor: str, reason: str) -> int:
    """Blank one item and the stored histories that quote it; returns the seq of its event."""
    connection = appender.connection
    seq = appender.add_event(item_id, "redact", "", actor, reason)
    stored = sa.select(bodies).join(items, items.c.seq == bodies.c.seq)
    body = connection.execute(stored.where(items.c.id == item_id)).mappings().one()
    blank = {"artifact": b"", "feedback": b"", "details": b"", "seen": b""}
    quoting = _quoting(appender, item_id, decode_text(body["artifact"]))
    connection.execute(sa.update(bodies).where(bodies.c.seq == body["seq"]).values(**blank))
    for other_seq, other_id in quoting:
        appender.add_event(other_id, "redact", SEEN_ONLY, actor, f"its history quotes {item_id}: {reason}")
        connection.execute(sa.update(bodies).where(bodies.c.seq == other_seq).values(seen=b""))
    return seq


def _quoting(appender: Appender, item_id: str, artifact: str) -> list[tuple[int, str]]:
    """Return (seq, id) of other items whose stored history holds this item's text."""
    query = (
        sa.select(items.c.seq, items.c.id, bodies.c.seen)
        .join(bodies, bodies.c.seq == items.c.seq)
        .where(items.c.seen_digest != b"", items.c.id != item_id)
    )
    return [
        (seq, other_id)
        for seq, other_id, seen in appender.connection.execute(query, execution_options={"yield_per": 500})
        if any(e.item_id == item_id or (artifact and e.artifact == artifact) for e in decode_seen(seen) or ())
    ]
