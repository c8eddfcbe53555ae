"""Records the attempts of a user's own agent, one chain at a time.

    with dag.chain("Write f(x) that returns x + 1.", action_pair_id="write_code") as chain:
        while not chain.accepted and chain.attempts < 4:
            artifact = my_agent(chain.specification, chain.history)
            passed, feedback = my_check(artifact)
            chain.record(artifact, passed, feedback)

Every attempt is stored as it is recorded, so a crash loses nothing that was recorded before it. Definitions 5 and 10.
"""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from guardlearn.errors import GuardError, UsageError
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Verdict

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["Chain"]

_COMMON = frozenset(
    "constraints action_pair_id workflow_id workflow_ref source guard guard_version model adapter sampling "
    "prompt_digest group metadata".split()
)
_PER_ATTEMPT = _COMMON | {"id", "created_at", "cause", "fatal", "seen_history"}


class Chain:
    """The attempts at one specification, in order.

    Attributes:
        specification: Ψ; may be amended between attempts (Definition 12).
        items: what was recorded so far.
    """

    def __init__(self, dag: ArtifactDAG, specification: str, **given: Any) -> None:
        """Start an empty chain.

        Args:
            dag: ℛ, open for writing.
            specification: Ψ.
            given: fields of RepositoryItem that hold for every attempt: constraints, action_pair_id, workflow_id,
                workflow_ref, source, guard, guard_version, model, adapter, sampling, prompt_digest, group, metadata.

        Raises:
            UsageError: `given` names another field.
        """
        _allow(given, _COMMON, "a chain")
        self._dag = dag
        self._given = given
        self.specification = specification
        self.items: list[RepositoryItem] = []

    @property
    def history(self) -> tuple[FeedbackEntry, ...]:
        """H: the rejected attempts so far, for the next prompt."""
        return tuple(
            FeedbackEntry(artifact=item.artifact, feedback=item.feedback, item_id=item.id)
            for item in self.items
            if item.status is ArtifactStatus.REJECTED
        )

    @property
    def attempts(self) -> int:
        """How many attempts were recorded."""
        return len(self.items)

    @property
    def accepted(self) -> bool:
        """Whether the last attempt was accepted."""
        return bool(self.items) and self.items[-1].status is ArtifactStatus.ACCEPTED

    def record(self, artifact: str, verdict: object, feedback: str = "", **fields: Any) -> RepositoryItem:
        """Store one attempt, the child of the one before.

        Args:
            artifact: what the agent wrote, exactly as judged.
            verdict: True or False, a Verdict, an ArtifactStatus, or an object with `passed` and perhaps `feedback`;
                None is "no verdict".
            feedback: what the guard said; "" takes the verdict's own.
            fields: fields of RepositoryItem for this attempt only.

        Raises:
            GuardError: the verdict is none of these.
            UsageError: `fields` names another field.
        """
        _allow(fields, _PER_ATTEMPT, "an attempt")
        judged = _judged(verdict)
        if feedback:
            judged["feedback"] = feedback
        content = {
            "id": uuid.uuid4().hex,
            "artifact": artifact,
            "specification": self.specification,
            "parent_id": self.items[-1].id if self.items else None,
            **self._given,
            **judged,
            **fields,
        }
        item = RepositoryItem(**content)
        self._dag.append(item)
        self.items.append(item)
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to do: every attempt was stored as it was recorded."""


def _judged(verdict: object) -> dict[str, Any]:
    """Return the fields of an item that a verdict fills."""
    if isinstance(verdict, Verdict):
        names = ("status", "feedback", "cause", "fatal", "guard", "guard_version")
        # a verdict that names no guard leaves the chain's in place
        return {name: value for name in names if (value := getattr(verdict, name)) != ""}
    if isinstance(verdict, ArtifactStatus):
        return {"status": verdict}
    passed = verdict if verdict is None else getattr(verdict, "passed", verdict)
    if passed is None:
        return {"status": ArtifactStatus.PENDING}
    if not isinstance(passed, bool | int) or passed not in (0, 1):
        raise GuardError(
            f"{verdict!r} is no verdict: give True, False, None, a Verdict, or an object with .passed and .feedback"
        )
    status = ArtifactStatus.ACCEPTED if passed else ArtifactStatus.REJECTED
    return {"status": status, "feedback": str(getattr(verdict, "feedback", "") or "")}


def _allow(given: dict[str, Any], allowed: frozenset[str], what: str) -> None:
    for name in given:
        if name not in allowed:
            raise UsageError(f"{what} takes no {name!r}; allowed are: {', '.join(sorted(allowed))}")
