"""C(r): what a guard needs to judge a stored artifact again (Definition 13).

ℛ holds Ψ, Ω, H and the artifact. What a guard reads beside them, such as cases or a signature, stands in the metadata
of the specification file and is taken from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from guardlearn.types import FeedbackEntry, GuardContext, RepositoryItem, Specification

__all__ = ["KnownSpecifications", "derived_context"]


class KnownSpecifications:
    """The lines of a specification file, found by id, else by text."""

    def __init__(self, given: Iterable[Specification] = ()) -> None:
        lines = list(given)
        self._by_id = {line.id: line for line in lines}
        self._by_text = {line.specification: line for line in lines}

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def of(self, item: RepositoryItem) -> Specification:
        """Return the specification an item answers: its own Ψ and Ω, with the metadata of the line it came from.

        Ψ and Ω are the item's even where the file says otherwise: they may have been amended (Definition 12).
        """
        name = str(item.metadata.get("spec_id", ""))
        line = self._by_id.get(name) or self._by_text.get(item.specification)
        metadata: dict[str, Any] = line.metadata if line else {}
        return Specification(
            id=name or (line.id if line else item.id),
            specification=item.specification,
            constraints=item.constraints,
            group=item.group,
            action_pair_id=item.action_pair_id,
            metadata=metadata,
        )

    def knows(self, item: RepositoryItem) -> bool:
        """Whether the file has the line an item came from."""
        return item.metadata.get("spec_id") in self._by_id or item.specification in self._by_text


def derived_context(item: RepositoryItem, known: KnownSpecifications, *, answered: bool = False) -> GuardContext:
    """Return the context a guard judges in.

    Args:
        item: as ℛ returns it.
        known: the specification file.
        answered: the context of the attempt that follows this one, whose H holds it too; False: the item's own.
    """
    history = item.history
    if answered:
        history = (*history, FeedbackEntry(artifact=item.artifact, feedback=item.feedback, item_id=item.id))
    return GuardContext(specification=known.of(item), history=history)


def amended(context: GuardContext, specification: str, constraints: str) -> GuardContext:
    """Return a context with another Ψ and Ω (Definition 12)."""
    changed = msgspec.structs.replace(context.specification, specification=specification, constraints=constraints)
    return msgspec.structs.replace(context, specification=changed)
