"""Guards made of guards (Definitions 38-43): `all_of`, `any_of`, `majority`, run in order or side by side.

A part says accepted, rejected or nothing, so the whole follows three-valued logic (Kleene's): it is decided as soon as
no answer that is still missing could change it.

    all_of     rejected if any part rejects, else none if any gives none, else accepted
    any_of     accepted if any part accepts, else none if any gives none, else rejected
    majority   accepted if more than half accept, rejected if half or more reject, else none

The status therefore depends on the set of the parts' verdicts and not on their order. In order ("sequential", the
default) the parts that stand behind the deciding one are not run; side by side ("parallel") all run, and all that
reject are heard. A rejection is fatal if any part that ran rejected fatally: the chain ends (⊥fatal).
"""

from __future__ import annotations

import concurrent.futures
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from guardlearn.errors import UsageError
from guardlearn.guards.functions import as_guard
from guardlearn.guards.verdicts import accepted, judge, no_verdict, rejected, signed
from guardlearn.guards.versions import code_digest
from guardlearn.types import ArtifactStatus, Guard, GuardContext, Verdict

__all__ = ["POLICIES", "ComposedGuard", "all_of", "any_of", "majority"]

_ACCEPTED, _REJECTED, _PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING


def all_of(*guards: Any, name: str = "", constraints: str | None = None, parallel: bool = False) -> ComposedGuard:
    """Return a guard that accepts what every part accepts; see `ComposedGuard`."""
    return ComposedGuard("all_of", guards, name=name, constraints=constraints, parallel=parallel)


def any_of(*guards: Any, name: str = "", constraints: str | None = None, parallel: bool = False) -> ComposedGuard:
    """Return a guard that accepts what at least one part accepts; see `ComposedGuard`."""
    return ComposedGuard("any_of", guards, name=name, constraints=constraints, parallel=parallel)


def majority(*guards: Any, name: str = "", constraints: str | None = None, parallel: bool = False) -> ComposedGuard:
    """Return a guard that accepts what more than half of the parts accept; see `ComposedGuard`."""
    return ComposedGuard("majority", guards, name=name, constraints=constraints, parallel=parallel)


class ComposedGuard:
    """Several guards as one; it is a guard itself, so it nests (Definition 42)."""

    def __init__(
        self,
        policy: str,
        guards: Sequence[Any],
        *,
        name: str = "",
        constraints: str | None = None,
        parallel: bool = False,
    ) -> None:
        """Compose guards.

        Args:
            policy: "all_of", "any_of" or "majority".
            guards: the parts, in order; plain functions too.
            name: stored with each verdict; "" writes the policy and the parts' names.
            constraints: default Ω; None joins the parts' own.
            parallel: whether all parts run at once, in threads.

        Raises:
            UsageError: there are no parts, or no such policy.
        """
        if policy not in POLICIES:
            raise UsageError(f"unknown policy {policy!r}; it may be {', '.join(POLICIES)}")
        if not guards:
            raise UsageError(f"{policy} needs at least one guard")
        self.policy = policy
        self.guards: tuple[Guard, ...] = tuple(as_guard(each) for each in guards)
        self.name = name or f"{policy}({', '.join(part.name for part in self.guards)})"
        own = dict.fromkeys(part.constraints for part in self.guards if part.constraints)
        self.constraints = "\n".join(own) if constraints is None else constraints
        self.parallel = parallel
        self.version = code_digest(
            sys.modules[__name__], policy, parallel, [[part.name, part.version] for part in self.guards]
        )

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact` with the parts.

        Raises:
            GuardError: a part returned something that is no verdict; it is named.
        """
        began = time.monotonic()
        run = self._side_by_side if self.parallel else self._in_order
        verdicts = run(artifact, context)
        return msgspec.structs.replace(signed(self._joined(verdicts), self, began), verdicts=tuple(verdicts))

    def _in_order(self, artifact: str, context: GuardContext) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for part in self.guards:
            verdicts.append(judge(part, artifact, context))
            missing = len(self.guards) - len(verdicts)
            if _decided(self.policy, verdicts, missing):
                break
        return verdicts

    def _side_by_side(self, artifact: str, context: GuardContext) -> list[Verdict]:
        with concurrent.futures.ThreadPoolExecutor(len(self.guards), "guard") as pool:
            return list(pool.map(lambda part: judge(part, artifact, context), self.guards))

    def _joined(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Return the parts' verdicts as one; whoever agrees with the whole speaks, in the order of the parts."""
        status = POLICIES[self.policy](_counts(verdicts), len(self.guards))
        agreeing = [verdict for verdict in verdicts if verdict.status is status]
        said = [verdict for verdict in agreeing if verdict.feedback]
        if len({verdict.feedback for verdict in said}) > 1:
            feedback = "\n\n".join(f"{verdict.guard}:\n{verdict.feedback}" for verdict in said)
        else:
            feedback = said[0].feedback if said else ""
        if status is _ACCEPTED:
            return accepted(feedback)
        if status is _PENDING:
            return no_verdict(feedback)
        cause = next((verdict.cause for verdict in agreeing if verdict.cause), "rejected")
        return rejected(cause, feedback, fatal=any(verdict.fatal for verdict in agreeing))


_Counts = dict[ArtifactStatus, int]


def _counts(verdicts: Sequence[Verdict]) -> _Counts:
    counts = dict.fromkeys((_ACCEPTED, _REJECTED, _PENDING), 0)
    for verdict in verdicts:
        counts[verdict.status if verdict.status in counts else _PENDING] += 1
    return counts


def _all(counts: _Counts, parts: int) -> ArtifactStatus:
    if counts[_REJECTED]:
        return _REJECTED
    return _ACCEPTED if counts[_ACCEPTED] == parts else _PENDING


def _any(counts: _Counts, parts: int) -> ArtifactStatus:
    if counts[_ACCEPTED]:
        return _ACCEPTED
    return _REJECTED if counts[_REJECTED] == parts else _PENDING


def _most(counts: _Counts, parts: int) -> ArtifactStatus:
    if 2 * counts[_ACCEPTED] > parts:
        return _ACCEPTED
    return _REJECTED if 2 * counts[_REJECTED] >= parts else _PENDING


POLICIES: dict[str, Callable[[_Counts, int], ArtifactStatus]] = {"all_of": _all, "any_of": _any, "majority": _most}
"""What becomes of the parts' verdicts (Definition 41), from how many said what and how many parts there are."""


def _decided(policy: str, verdicts: Sequence[Verdict], missing: int) -> bool:
    """Whether no answer of the missing parts could change the status: not even if all accepted, or all rejected."""
    counts, parts = _counts(verdicts), len(verdicts) + missing
    extremes = ({**counts, status: counts[status] + missing} for status in (_ACCEPTED, _REJECTED))
    return len({POLICIES[policy](each, parts) for each in extremes}) == 1
