"""Whether a guard can be believed: ℛ is only as good as its verdicts.

    report = audit(dag, load_guard("guards:check"), specifications=read("specs.jsonl"))
    report.wrong    # [] or one line for each thing that is wrong

Stored artifacts are judged again (`again.py`), artifacts that nothing should accept are tried (`subjects.py`), and
verdicts of earlier versions of the guard are found, marked and replaced by events (`versions.py`). Theorem 6;
Definitions 6 and 13.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from guardlearn import predicates
from guardlearn.audit.again import Again, Tally, words
from guardlearn.audit.judging import Task, judgements
from guardlearn.audit.report import CHECKS, AuditReport, Check, Finding, StaleReport
from guardlearn.audit.settings import AuditConfig
from guardlearn.audit.subjects import Subject, subjects
from guardlearn.audit.versions import EventWriter, ages, mark_stale, said_reason, sampled
from guardlearn.contexts import KnownSpecifications
from guardlearn.dag import ArtifactDAG
from guardlearn.engines import Engine, LocalEngine
from guardlearn.errors import UsageError
from guardlearn.types import ArtifactStatus, Guard, OnProgress, RepositoryItem, Specification, Verdict

__all__ = ["CHECKS", "AuditConfig", "AuditReport", "Check", "Finding", "StaleReport", "audit"]

_EXCERPT = 200


def audit(
    dag: ArtifactDAG,
    guard: Guard,
    config: AuditConfig = AuditConfig(),
    *,
    where: predicates.Predicate | None = None,
    specifications: Sequence[Specification] = (),
    mark: bool = False,
    rejudge: bool = False,
    actor: str = "",
    engine: Engine | None = None,
    on_progress: OnProgress | None = None,
) -> AuditReport:
    """Judge a guard by what it says of artifacts whose verdict is known.

    Args:
        dag: ℛ; only `mark` and `rejudge` write to it, and only events.
        guard: G as it is now.
        config: how much is judged.
        where: audit these items only; None: all that this guard judged.
        specifications: lines of the specification file, for what the guard reads in their metadata.
        mark: mark every stale item, so that `fresh()` leaves it out.
        rejudge: store what the guard says of stale items today, where it says one thing: they are fresh then.
        actor: who asks, stored with events.
        engine: runs the guard; None: threads of this process.
        on_progress: called with (judgements done, judgements in all, note).

    Raises:
        UsageError: no item of ℛ was judged by this guard.
    """
    began = time.perf_counter()
    known = KnownSpecifications(specifications)
    found = ages(dag, guard, predicates.everything() if where is None else where)
    if not found.current and not found.stale:
        raise _nothing(dag, guard, where)
    made = subjects(dag, guard, found, known, specifications, config)
    current, stale = (sampled(ids, config.limit, config.seed) for ids in (found.current, found.stale))
    tally, tick = Tally(config), _Ticker(on_progress, config.repeat * (len(current) + len(stale)) + len(made))
    marked = mark_stale(dag, [name for name in found.stale if name not in found.marked], guard, actor) if mark else 0
    writer, stored = EventWriter(dag, actor), list[str]()

    def store(item: RepositoryItem, verdict: Verdict) -> None:
        same = (item.status is ArtifactStatus.SUPERSEDED and verdict.passed) or verdict.status is item.status
        status = item.status if same else verdict.status
        writer.add(item.id, "status", status.value, said_reason(guard, verdict))
        stored.append(item.id)

    with contextlib.ExitStack() as closing:
        closing.enter_context(writer)
        runs = engine or closing.enter_context(LocalEngine(None, guard, guard_workers=config.workers or None))
        again = Again(dag, runs, known, config, tally, found.noted, tick)
        again.current(current)
        again.stale(stale, store if rejudge else None)
        _try_subjects(runs, made, tally, tick)
    return AuditReport(
        guard=guard.name,
        guard_version=guard.version,
        items=len(found.current) + len(found.stale),
        repeat=config.repeat,
        seed=config.seed,
        checks=tuple(tally.check(name) for name in CHECKS),
        findings=tuple(tally.findings),
        stale=StaleReport(
            items=len(found.stale),
            unmarked=0 if mark else len(set(found.stale) - found.marked - set(stored)),
            marked=marked,
            judged=again.judged,
            changes=dict(sorted(again.changes.items())),
            changed=tuple(sorted(again.changed)),
            stored=len(stored),
        ),
        unknown_specifications=again.unknown,
        first_failure=tally.first_failure,
        seconds=time.perf_counter() - began,
    )


def _try_subjects(engine: Engine, made: Sequence[Subject], tally: Tally, tick: _Ticker) -> None:
    tasks = (Task(place, each.artifact, each.context) for place, each in enumerate(made))
    accepted: list[tuple[int, Verdict]] = []
    for place, verdict in judgements(engine, tasks):
        subject = made[place]
        tally.tried(subject.check)
        tick("degenerate artifacts and canaries")
        if verdict.status is ArtifactStatus.PENDING:
            tally.no_verdict(subject.check, verdict, f"{subject.check} {subject.kind}".strip())
        elif verdict.passed:
            accepted.append((place, verdict))
    for place, verdict in sorted(accepted, key=lambda pair: pair[0]):  # whatever order they were judged in
        subject = made[place]
        tally.wrong(
            Finding(
                check=subject.check,
                kind=subject.kind,
                item_id=subject.item_id,
                specification_id=subject.context.specification.id,
                verdicts=(words(verdict),),
                artifact=subject.artifact[:_EXCERPT],
                allowed=tally.allows(subject.check, subject.kind),
            )
        )


class _Ticker:
    """Counts judgements."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def __call__(self, note: str) -> None:
        self._done += 1
        if self._on_progress:
            self._on_progress(self._done, self._total, note)


def _nothing(dag: ArtifactDAG, guard: Guard, where: predicates.Predicate | None) -> UsageError:
    judged = dag.count_by(where, "guard")
    held = ", ".join(f"{name or '(unknown)'} {count}" for name, count in judged.items()) or "nothing"
    among = "" if where is None else " that the predicate selects"
    return UsageError(f"no item in {dag.target}{among} was judged by {guard.name!r}; items by guard: {held}")
