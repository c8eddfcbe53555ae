"""What an audit makes to be rejected: degenerate artifacts, and artifacts under specifications they cannot meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from guardlearn import predicates
from guardlearn.audit.degenerate import degenerates, impossible
from guardlearn.audit.settings import AuditConfig
from guardlearn.audit.versions import Ages, sampled
from guardlearn.contexts import KnownSpecifications
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.batching import batches
from guardlearn.dag.sides import placements
from guardlearn.types import ArtifactStatus, Guard, GuardContext, RepositoryItem, Specification

__all__ = ["Subject", "subjects"]

_TRIES = 20
"""Accepted items looked at for each specification wanted: many answer the same one."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact, and the context that it must be rejected in."""

    check: str
    kind: str = ""
    item_id: str = ""
    """The accepted item it was made from, or is the artifact of."""
    artifact: str
    context: GuardContext


def subjects(
    dag: ArtifactDAG,
    guard: Guard,
    found: Ages,
    known: KnownSpecifications,
    given: Sequence[Specification],
    config: AuditConfig,
) -> list[Subject]:
    """Return what no honest guard accepts, made from accepted artifacts of as many specifications as configured.

    Args:
        dag: ℛ; it is only read.
        guard: whose items are looked at.
        found: its items, by age.
        known: the specification file.
        given: its lines: where nothing was accepted, degenerate artifacts are tried on these.
        config: how many, and further ones.
    """
    if config.specifications == 0:
        return []
    accepted = _accepted(dag, guard, found, config)
    made = [
        Subject(
            check="degenerate",
            kind=each.kind,
            item_id=item.id,
            artifact=each.artifact,
            context=_context(known.of(item)),
        )
        for item in accepted
        for each in degenerates(item.specification, item.artifact, config.degenerate)
    ]
    if not accepted:
        lines = {line.id: line for line in given}
        made += [
            Subject(check="degenerate", kind=each.kind, artifact=each.artifact, context=_context(lines[name]))
            for name in sampled(lines, config.specifications, config.seed)
            for each in degenerates(lines[name].specification, None, config.degenerate)
        ]
    return [*made, *_crossed(dag, accepted, known), *_impossible(accepted, known, config)]


def _accepted(dag: ArtifactDAG, guard: Guard, found: Ages, config: AuditConfig) -> list[RepositoryItem]:
    """Return accepted items of distinct specifications; of the present version where it accepted any."""
    passed = set(dag.ids(predicates.guard(guard.name) & predicates.status(ArtifactStatus.ACCEPTED)))
    chosen = passed.intersection(found.current) or passed.intersection(found.stale)
    by_text: dict[str, RepositoryItem] = {}
    for some in batches(sampled(chosen, config.specifications * _TRIES, config.seed), 100):
        for item in dag.extract(predicates.item(*some), order_by="seq"):
            by_text.setdefault(item.specification, item)
        if len(by_text) >= config.specifications:
            break
    return list(by_text.values())[: config.specifications]


def _crossed(dag: ArtifactDAG, accepted: Sequence[RepositoryItem], known: KnownSpecifications) -> Iterator[Subject]:
    """Yield each accepted artifact under the next specification that is none of its group or near-duplicates."""
    roots = [item.facts.root_id if item.facts else item.id for item in accepted]
    with dag.reading() as connection:
        places = placements(connection, sorted(set(roots)))
    for number, item in enumerate(accepted):
        for step in range(1, len(accepted)):
            place = (number + step) % len(accepted)
            other = accepted[place]
            apart = places[roots[number]].cluster != places[roots[place]].cluster
            if apart and other.artifact != item.artifact and other.action_pair_id == item.action_pair_id:
                context = _context(known.of(other))
                yield Subject(check="cross", item_id=item.id, artifact=item.artifact, context=context)
                break


def _impossible(
    accepted: Sequence[RepositoryItem], known: KnownSpecifications, config: AuditConfig
) -> Iterator[Subject]:
    for item in accepted:
        specification = impossible(known.of(item))
        if specification is not None:
            yield Subject(check="impossible", item_id=item.id, artifact=item.artifact, context=_context(specification))
    for canary in config.canaries:
        context = _context(canary)
        yield Subject(check="impossible", artifact="", context=context)
        for item in accepted:
            yield Subject(check="impossible", item_id=item.id, artifact=item.artifact, context=context)


def _context(specification: Specification) -> GuardContext:
    return GuardContext(specification=specification)
