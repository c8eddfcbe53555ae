"""Stored artifacts, judged again: whether verdicts hold still, whether they are the stored ones, what has become stale.

Theorem 6 lets a stored verdict stand for another evaluation: same guard, same artifact, same verdict. Here it is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from guardlearn import predicates
from guardlearn.audit.judging import Task, judgements
from guardlearn.audit.report import Check, Finding
from guardlearn.audit.settings import AuditConfig
from guardlearn.contexts import KnownSpecifications, derived_context
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.batching import batches
from guardlearn.engines import Engine
from guardlearn.types import ArtifactStatus, RepositoryItem, Verdict

__all__ = ["Again", "OnStale", "Tally", "words"]

_AT_ONCE = 100
OnStale = Callable[[RepositoryItem, Verdict], None]
"""Called with a stale item and the one verdict that the present guard gives."""


class Tally:
    """What is counted while verdicts come in."""

    def __init__(self, config: AuditConfig) -> None:
        self._allowed = config.allow
        self._tried, self._wrong, self._let, self._none = (Counter[str]() for _ in range(4))
        self.findings: list[Finding] = []
        self.first_failure = ""

    def tried(self, check: str) -> None:
        """Count one trial of a check."""
        self._tried[check] += 1

    def no_verdict(self, check: str, verdict: Verdict, about: str) -> None:
        """Count one trial that the checker itself failed on; `about` says on what."""
        self._none[check] += 1
        self.first_failure = self.first_failure or f"{about}: {' '.join(verdict.feedback.split())}"

    def wrong(self, finding: Finding) -> None:
        """Take a finding."""
        self.findings.append(finding)
        (self._let if finding.allowed else self._wrong)[finding.check] += 1

    def allows(self, check: str, kind: str = "") -> bool:
        """Whether the configuration allows it."""
        return check in self._allowed or kind in self._allowed

    def check(self, name: str) -> Check:
        """Return one check's figures."""
        return Check(
            name=name,
            tried=self._tried[name],
            wrong=self._wrong[name],
            allowed=self._let[name],
            no_verdict=self._none[name],
        )


class Again:
    """Judges items of ℛ again and counts what that shows."""

    def __init__(
        self,
        dag: ArtifactDAG,
        engine: Engine,
        known: KnownSpecifications,
        config: AuditConfig,
        tally: Tally,
        noted: set[str],
        tick: Callable[[str], None],
    ) -> None:
        """Prepare.

        Args:
            dag: ℛ.
            engine: runs the guard as it is now.
            known: the specification file.
            config: how often and how wide.
            tally: takes what is found.
            noted: items whose status somebody else noted; it is not compared.
            tick: called with a note after each judgement.
        """
        self._dag, self._engine, self._known, self._config = dag, engine, known, config
        self._tally, self._noted, self._tick = tally, noted, tick
        self.unknown = 0
        self.judged = 0
        self.changes = Counter[str]()
        self.changed: list[str] = []

    def current(self, ids: Sequence[str]) -> None:
        """Judge items of the present version: their verdicts must hold still and be the stored ones."""
        for item, verdicts in self._each(ids, "stored items"):
            verdict = self._steady(item, verdicts)
            if verdict is None or item.status is ArtifactStatus.PENDING or item.id in self._noted:
                continue
            self._tally.tried("reproduced")
            if verdict.status is ArtifactStatus.PENDING:
                self._tally.no_verdict("reproduced", verdict, f"item {item.id}")
            elif verdict.status is not _judged(item):
                self._find("reproduced", item, [item.status.value, words(verdict)])

    def stale(self, ids: Sequence[str], on_stale: OnStale | None) -> None:
        """Judge items of earlier versions: what the present guard says of them is told, and handed on."""
        for item, verdicts in self._each(ids, "stale items"):
            self.judged += 1
            verdict = self._steady(item, verdicts)
            if verdict is None or verdict.status is ArtifactStatus.PENDING:
                continue
            same = verdict.status is _judged(item)
            self.changes[item.status.value if same else f"{item.status.value} to {verdict.status.value}"] += 1
            if not same:
                self.changed.append(item.id)
            if on_stale and item.id not in self._noted:
                on_stale(item, verdict)

    def _each(self, ids: Sequence[str], note: str) -> Iterator[tuple[RepositoryItem, list[Verdict]]]:
        """Yield each item with its verdicts; all items of a batch are judged once before any is judged twice."""
        for some in batches(ids, _AT_ONCE):
            found = list(self._dag.extract(predicates.item(*some), order_by="seq"))
            self.unknown += sum(not self._known.knows(item) for item in found)
            tasks = (
                Task(place, item.artifact, derived_context(item, self._known))
                for _ in range(self._config.repeat)
                for place, item in enumerate(found)
            )
            given: list[list[Verdict]] = [[] for _ in found]
            for place, verdict in judgements(self._engine, tasks):
                given[place].append(verdict)
                self._tick(note)
                if len(given[place]) == self._config.repeat:
                    yield found[place], given[place]

    def _steady(self, item: RepositoryItem, verdicts: Sequence[Verdict]) -> Verdict | None:
        """Return the one verdict an item gets, None where they differ: then that is what is wrong."""
        said = [words(verdict) for verdict in verdicts]
        if len(verdicts) > 1:
            self._tally.tried("deterministic")
        if len(set(said)) > 1:
            self._find("deterministic", item, said)
            return None
        if len(verdicts) > 1 and verdicts[0].status is ArtifactStatus.PENDING:
            self._tally.no_verdict("deterministic", verdicts[0], f"item {item.id}")
        return verdicts[0]

    def _find(self, check: str, item: RepositoryItem, verdicts: Sequence[str]) -> None:
        self._tally.wrong(
            Finding(
                check=check,
                item_id=item.id,
                specification_id=self._known.of(item).id,
                verdicts=tuple(verdicts),
                allowed=self._tally.allows(check),
            )
        )


def words(verdict: Verdict) -> str:
    """Return a verdict in words: its status, and whether it is fatal."""
    if verdict.status is ArtifactStatus.PENDING:
        return "no verdict"
    return f"{verdict.status.value} (fatal)" if verdict.fatal else verdict.status.value


def _judged(item: RepositoryItem) -> ArtifactStatus:
    """Return what the guard said of an item: a superseded one was accepted."""
    return ArtifactStatus.ACCEPTED if item.status is ArtifactStatus.SUPERSEDED else item.status
