"""The predicate law, on random repositories: what SQL selects is what `matches` selects, and facts are what they say.

Repositories have trees, missing and late parents, circles, all statuses, events and redactions. The expected facts come
from a naive walk written here, not from the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st

from databases import Files, Server, law
from guardlearn import predicates as words
from guardlearn.dag import ArtifactDAG
from guardlearn.predicates import Predicate, and_, or_
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side, Source
from test_predicates import predicates as vocabulary_predicates

EXAMPLES = 30
START = datetime(2026, 1, 1, tzinfo=UTC)
IDS = [f"i{n}" for n in range(9)] + ["Ψ", "'; --"]
NAMES = ["", "a", "b", "Ψ'\"", "{}"]
TEXTS = ["", "x", "a\0b", "\ud800", "Ψ😀"]

names = st.sampled_from(NAMES)
texts = st.sampled_from(TEXTS)
statuses = st.sampled_from(list(ArtifactStatus))


@st.composite
def items(draw: st.DrawFn) -> RepositoryItem:
    return RepositoryItem(
        id=draw(st.sampled_from(IDS)),
        parent_id=draw(st.none() | st.sampled_from(IDS)),
        artifact=draw(texts),
        specification=draw(texts),
        constraints=draw(texts),
        status=draw(statuses),
        feedback=draw(texts),
        source=draw(st.sampled_from(list(Source))),
        action_pair_id=draw(names),
        workflow_id=draw(names),
        workflow_ref=draw(names),
        guard=draw(names),
        guard_version=draw(names),
        model=draw(names),
        adapter=draw(names),
        group=draw(st.sampled_from([None, "a", "b"])),
        created_at=START + timedelta(seconds=draw(st.integers(0, 3))),
        seen_history=draw(st.none() | st.just((FeedbackEntry(artifact="x", feedback="y", item_id="i1"),))),
        metadata=draw(st.sampled_from([{}, {"key": [1, "\ud800"]}])),
    )


events = st.tuples(
    st.sampled_from(["status", "exclude", "include", "review", "stale", "redact"]), st.sampled_from(IDS), statuses
)
steps = st.lists(items() | events, min_size=1, max_size=22)


@contextmanager
def repository(
    databases: Files | Server, history: list[Any]
) -> Iterator[tuple[ArtifactDAG, list[RepositoryItem], list[Any]]]:
    """Build ℛ step by step; yields it with what was stored: items, and events with the items stored before each."""
    stored: dict[str, RepositoryItem] = {}
    noted = []
    with databases.repository() as dag:
        for step in history:
            if isinstance(step, RepositoryItem):
                if step.id not in stored:
                    stored[step.id] = step
                    dag.append(step)
            elif step[1] in stored:
                kind, item_id, status = step
                dag.append_event(item_id, kind, value=status if kind == "status" else "")
                noted.append((*step, len(stored)))
        yield dag, list(stored.values()), noted


# the words of test_predicates, and others that hit what these repositories hold
hits = st.one_of(
    *(
        st.lists(names, min_size=1, max_size=2).map(lambda given, word=word: words.VOCABULARY[word](*given))
        for word in "action_pair workflow workflow_ref model adapter".split()
    ),
    st.sampled_from(["refinement", "excluded", "reviewed", "fresh", "redacted", "broken"]).map(
        lambda word: words.VOCABULARY[word]()
    ),
    st.lists(statuses, min_size=1, max_size=2).map(lambda given: words.status(*given)),
    st.builds(words.source, st.sampled_from(list(Source))),
    st.builds(words.side, st.sampled_from(list(Side))),
    st.builds(words.group, st.sampled_from(["a", "b"])),
    st.builds(words.guard, names, st.none() | names),
    st.builds(words.item, st.sampled_from(IDS)),
    st.builds(words.retries, at_least=st.integers(0, 3), at_most=st.none() | st.integers(0, 3)),
    st.builds(words.created_after, st.integers(0, 3).map(lambda n: START + timedelta(seconds=n))),
    st.builds(words.created_before, st.integers(0, 3).map(lambda n: START + timedelta(seconds=n))),
    st.builds(words.after, st.integers(0, 20)),
    st.builds(words.up_to, st.integers(0, 20)),
    st.sampled_from(["x", "a\0b"]).map(lambda text: words.satisfies(lambda item: item.artifact == text)),
)
predicates = st.recursive(
    hits | vocabulary_predicates,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: p[0] & p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] | p[1]),
        inner.map(lambda p: ~p),
    ),
    max_leaves=6,
)


@pytest.mark.slow
@law(steps, st.lists(predicates, min_size=2, max_size=6), examples=EXAMPLES)
def test_sql_and_matches_select_the_same_items(
    databases: Files | Server, history: list[Any], chosen: list[Predicate]
) -> None:
    with repository(databases, history) as (dag, stored, _):
        everything = list(dag.extract())
        assert sorted(item.id for item in everything) == sorted(item.id for item in stored)
        for predicate in (each.resolve(START + timedelta(seconds=2)) for each in chosen):  # "recent" is absolute
            expected = [item.id for item in everything if predicate.matches(item)]
            assert [item.id for item in dag.extract(predicate)] == expected
            assert dag.count(predicate) == len(expected)
            assert [item.id for item in dag.extract(predicate, limit=2)] == expected[:2]
            assert [item.id for item in dag.extract(predicate, descending=True)] == expected[::-1]
            assert [item.id for item in dag.extract(predicate.matches)] == expected  # as a plain function
            assert dag.count_by(predicate, "status") == _counts(i.status for i in everything if predicate.matches(i))
            reasons = [predicate.rejection(item) for item in everything]
            assert dag.explain_drops(predicate) == _counts(reason for reason in reasons if reason)


@pytest.mark.slow
@law(steps, predicates, predicates, examples=EXAMPLES)
def test_de_morgan(databases: Files | Server, history: list[Any], p: Predicate, q: Predicate) -> None:
    with repository(databases, history) as (dag, _, _):

        def ids(predicate: Predicate) -> set[str]:
            return {item.id for item in dag.extract(predicate)}

        everything = ids(words.everything())
        assert ids(~(p & q)) == ids(~p | ~q) == everything - (ids(p) & ids(q))
        assert ids(~(p | q)) == ids(~p & ~q) == everything - (ids(p) | ids(q))
        assert ids(~~p) == ids(p) == ids(and_(p, p)) == ids(or_(p, p))


@pytest.mark.slow
@law(steps, examples=EXAMPLES)
def test_facts_and_histories_follow_from_items_and_events(databases: Files | Server, history: list[Any]) -> None:
    with repository(databases, history) as (dag, stored, noted):
        expected = _naive(stored, noted)
        for item in dag.extract(order_by="seq"):
            assert {name: getattr(item.facts, name) for name in expected[item.id]["facts"]} == expected[item.id][
                "facts"
            ]
            path = expected[item.id]["path"]
            assert [each.id for each in dag.provenance(item.id)] == path
            blank = {item_id for kind, item_id, *_ in noted if kind == "redact"}
            if item.seen_history is None:
                assert [entry.item_id for entry in item.history] == expected[item.id]["rejected"]
                texts_of = {each.id: "" if each.id in blank else each.artifact for each in stored}
                assert [e.artifact for e in item.history] == [texts_of[i] for i in expected[item.id]["rejected"]]
            else:
                assert item.history == item.seen_history
        before = {item.id: item for item in dag.extract()}
        assert dag.verify().problems == []
        assert dag.rebuild_facts() == len(stored)
        assert {item.id: item for item in dag.extract()} == before
        assert dag.verify().problems == []


@pytest.mark.slow
@law(st.lists(items(), max_size=20, unique_by=lambda item: item.id), st.integers(0, 20), examples=EXAMPLES // 2)
def test_appending_many_is_appending_one_by_one(
    databases: Files | Server, given_items: list[RepositoryItem], cut: int
) -> None:
    with repository(databases, []) as (one, _, _), repository(databases, []) as (many, _, _):
        for item in given_items:
            one.append(item)
        assert many.append_many(given_items[:cut]) + many.append_many(given_items[cut:]) == len(given_items)
        assert [_sideless(item) for item in one.extract()] == [_sideless(item) for item in many.extract()]
        assert one.last_seq == many.last_seq
        assert many.append_many(given_items) == 0  # again: nothing new, nothing changed
        assert one.last_seq == many.last_seq
        assert many.verify().problems == []


def _sideless(item: RepositoryItem) -> Any:
    return {name: getattr(item, name) for name in item.__struct_fields__ if name != "side"}


def _counts(values: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[str(value)] = found.get(str(value), 0) + 1
    return found


def _naive(stored: list[RepositoryItem], noted: list[Any]) -> dict[str, Any]:
    """Facts by definition: the latest status of each item, then a walk along its parents."""
    by_id = {item.id: item for item in stored}
    order = {item.id: n for n, item in enumerate(stored)}
    status = {item.id: item.status for item in stored}
    marks: dict[str, set[str]] = {item.id: set() for item in stored}
    for kind, item_id, value, _ in noted:
        if kind == "status":
            status[item_id] = value
            marks[item_id].discard("stale")
        elif kind == "include":
            marks[item_id].discard("exclude")
        else:
            marks[item_id].add(kind)
    for kind, item_id, _, before in noted:  # a redacted item's text goes from the histories stored by then too
        if kind == "redact":
            for other in stored[:before]:
                shown = [(e.item_id, e.artifact) for e in other.seen_history or ()]
                if other.id != item_id and any(i == item_id or (a and a == by_id[item_id].artifact) for i, a in shown):
                    marks[other.id].add("redact")
    parent = {item.id: item.parent_id for item in stored}
    cut = {_last_of_circle(item.id, parent, order) for item in stored} - {None}
    result = {}
    for item in stored:
        path = [item.id]
        while path[0] not in cut and parent[path[0]] in by_id:
            path.insert(0, parent[path[0]])
        rejected = [i for i in path[:-1] if status[i] is ArtifactStatus.REJECTED]
        result[item.id] = {
            "path": path,
            "rejected": rejected,
            "facts": {
                "status": status[item.id],
                "root_id": path[0],
                "attempt": len(path),
                "rejected_ancestors": len(rejected),
                "excluded": "exclude" in marks[item.id],
                "reviewed": "review" in marks[item.id],
                "stale": "stale" in marks[item.id],
                "redacted": "redact" in marks[item.id],
                "broken": path[0] in cut or parent[path[0]] is not None,
            },
        }
    return result


def _last_of_circle(item_id: str, parent: dict[str, Any], order: dict[str, int]) -> str | None:
    """Return the item that closed the circle `item_id` lies on, None where it lies on none."""
    seen, at = [item_id], parent[item_id]
    while at in parent and at not in seen:
        seen.append(at)
        at = parent[at]
    return max(seen, key=order.__getitem__) if at == item_id else None
