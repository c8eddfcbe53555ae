"""Pages, bounded counts and marks of ℛ, on both databases."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st

from databases import Files, Server, law
from guardlearn import ArtifactDAG, RepositoryItem, parse
from guardlearn.dag.page import ItemRow
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.predicates import Predicate, satisfies
from guardlearn.types import ArtifactStatus
from test_dag_law import predicates, repository, steps

EXAMPLES = 30
START = datetime(2026, 1, 1, tzinfo=UTC)
REJECTED, ACCEPTED = ArtifactStatus.REJECTED, ArtifactStatus.ACCEPTED


def paged(dag: ArtifactDAG, predicate: Predicate, limit: int, **order: Any) -> list[ItemRow]:
    """Every page, one behind the other."""
    rows: list[ItemRow] = []
    while found := dag.page(predicate, after=rows[-1].seq if rows else None, limit=limit, **order):
        assert len(found) <= limit and len(rows) % limit == 0  # only the last one may be short
        assert not {row.seq for row in found} & {row.seq for row in rows}
        rows += found
    return rows


@pytest.mark.slow
@law(steps, predicates, st.integers(1, 5), st.sampled_from(["created_at", "seq"]), st.booleans(), examples=EXAMPLES)
def test_pages_are_what_extract_yields_in_its_order(
    databases: Files | Server, history: list[Any], p: Predicate, limit: int, order_by: str, descending: bool
) -> None:
    with repository(databases, history) as (dag, _, _):
        chosen = p.resolve(START + timedelta(seconds=2))
        rows = paged(dag, chosen, limit, order_by=order_by, descending=descending)
        expected = list(dag.extract(chosen, order_by=order_by, descending=descending))
        assert [row.seq for row in rows] == [item.seq for item in expected]
        assert [said(row) for row in rows] == [said(item) for item in expected]
        for at_most in (1, limit, len(expected) + 1):
            assert dag.count(chosen, at_most=at_most) == min(at_most, len(expected))


def said(each: ItemRow | RepositoryItem) -> list[Any]:
    """What a row and its item must agree on."""
    facts = each.facts if isinstance(each, RepositoryItem) else each
    assert facts is not None
    own = "id source action_pair_id workflow_id guard guard_version cause model adapter side created_at".split()
    derived = "status attempt rejected_ancestors excluded reviewed stale redacted broken".split()
    return [getattr(each, name) for name in own] + [getattr(facts, name) for name in derived]


@pytest.fixture(scope="module")
def large(sqlite_files: Files) -> Any:
    """More items than a page looks at before it leaves a query to the database; every 700th is rare."""
    with sqlite_files.repository() as dag:
        dag.append_many(
            RepositoryItem(
                id=f"i{number:05}",
                artifact="x",
                specification=f"  \nTask {number % 9}: first line\nsecond",
                group="g" if number % 9 else None,
                action_pair_id="rare" if number % 700 == 0 else "common",
                status=ACCEPTED if number % 3 else REJECTED,
                created_at=START + timedelta(seconds=-number if number % 2 else number),
            )
            for number in range(4_600)
        )
        yield dag


@pytest.mark.slow
@pytest.mark.parametrize("order_by", ["created_at", "seq"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("text", ["everything()", 'action_pair("rare")', 'status("accepted") & action_pair("rare")'])
def test_what_is_far_away_is_found(large: ArtifactDAG, text: str, descending: bool, order_by: str) -> None:
    rows = paged(large, parse(text), 1_000 if text == "everything()" else 3, order_by=order_by, descending=descending)
    assert [row.id for row in rows] == [
        item.id for item in large.extract(parse(text), order_by=order_by, descending=descending)
    ]


def test_a_page_with_a_function_goes_on_until_it_is_full(large: ArtifactDAG) -> None:
    rare = satisfies(lambda item: item.action_pair_id == "rare")
    assert [row.id for row in paged(large, rare, 4)] == [f"i{number:05}" for number in range(0, 4_600, 700)]
    assert large.count(rare, at_most=5) == 5


def test_rows_say_how_a_specification_begins(large: ArtifactDAG) -> None:
    first, second = large.page(limit=2)
    assert (first.specification, first.group) == ("Task 0: first line", "")
    assert (second.specification, second.group) == ("Task 1: first line", "g")


def test_a_long_beginning_is_cut_between_letters(large: ArtifactDAG, sqlite_files: Files) -> None:
    with sqlite_files.repository() as dag:
        for number, text in enumerate(["é" * 300, "a" + "é" * 300, "\ud800" * 100, ""]):
            dag.append(RepositoryItem(id=str(number), artifact="x", specification=text, status=ACCEPTED))
        shown = [row.specification for row in dag.page()]
    assert shown[0] == "é" * 80 and shown[1] == "a" + "é" * 79 and shown[3] == ""
    assert "\ud800" not in shown[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"limit": 0}, "limit=0"),
        ({"limit": -1}, "limit=-1"),
        ({"after": 99_999}, "after=99999 is the seq of no item"),
        ({"order_by": "age"}, "order_by='age'"),
    ],
)
def test_bad_pages_are_refused(large: ArtifactDAG, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        large.page(**arguments)


def test_counting_to_nothing_is_refused(large: ArtifactDAG) -> None:
    with pytest.raises(UsageError, match="at_most=0"):
        large.count(at_most=0)


def test_pages_stay_what_they_were_while_a_repository_grows(databases: Files | Server) -> None:
    def item(number: int) -> RepositoryItem:
        return RepositoryItem(id=f"i{number:03}", artifact="x", specification="s", status=ACCEPTED)

    with databases.repository() as dag:
        for number in range(30):
            dag.append(item(number))
        seen, last = [], None
        for turn in itertools.count():
            rows = dag.page(after=last, limit=7, descending=True)
            if not rows:
                break
            seen += [row.id for row in rows]
            last = rows[-1].seq
            dag.append(item(100 + turn))  # newer than every page that is to come
    assert seen == [f"i{number:03}" for number in range(29, -1, -1)]


def chain(dag: ArtifactDAG, *, prefix: str = "", attempts: int = 3) -> list[str]:
    ids = [f"{prefix}a{number}" for number in range(attempts)]
    for number, item_id in enumerate(ids):
        status = ACCEPTED if number == attempts - 1 else REJECTED
        parent = ids[number - 1] if number else None
        dag.append(RepositoryItem(id=item_id, parent_id=parent, artifact="x", specification="s", status=status))
    return ids


def test_a_mark_is_events_that_predicates_see(databases: Files | Server) -> None:
    with databases.repository() as dag:
        chain(dag), chain(dag, prefix="other-")
        assert dag.events("a1") == []
        marked = dag.mark("a1", "exclude", actor="Ann Ö", reason="wrong 'guard'", whole_chain=True, seen=0)
        assert (marked.written, marked.missed) == (3, [])
        assert list(dag.ids(parse("excluded()"))) == ["a0", "a1", "a2"]
        found = dag.events("a2")
        assert [(event.item_id, event.kind, event.actor, event.reason) for event in found] == [
            (f"a{number}", "exclude", "Ann Ö", "wrong 'guard'") for number in range(3)
        ]
        assert [event.seq for event in found] == sorted(event.seq for event in found) and found[-1].seq == dag.last_seq
        assert abs((datetime.now(UTC) - found[0].created_at).total_seconds()) < 600
        dag.mark("a2", "include", actor="Ben", reason="after all")
        dag.mark("a0", "review", actor="Ben", reason="")
        assert list(dag.ids(parse("excluded()"))) == ["a0", "a1"]
        assert list(dag.ids(parse("reviewed()"))) == ["a0"]
        assert dag.verify().ok


def test_a_mark_on_what_moved_on_writes_nothing(databases: Files | Server) -> None:
    with databases.repository() as dag:
        chain(dag)
        dag.mark("a2", "review", actor="Ann", reason="fine", seen=0)
        seen, before = dag.events("a0")[-1].seq, dag.last_seq
        missed = dag.mark("a0", "exclude", actor="Ben", reason="no", whole_chain=True, seen=seen - 1)
        assert missed.written == 0 and [(event.actor, event.kind) for event in missed.missed] == [("Ann", "review")]
        assert dag.last_seq == before and dag.count(parse("excluded()")) == 0
        assert dag.mark("a0", "exclude", actor="Ben", reason="no", whole_chain=True, seen=seen).written == 3


def test_of_two_who_mark_at_once_one_is_told(databases: Files | Server) -> None:
    with databases.installed() as place, ArtifactDAG.load(place.target) as dag:
        chain(dag)
        gate, told = threading.Barrier(2), []

        def decide(name: str) -> None:
            with ArtifactDAG.load(place.target) as own:
                gate.wait()
                told.append(own.mark("a1", "exclude", actor=name, reason="r", whole_chain=True, seen=0))

        threads = [threading.Thread(target=decide, args=(name,)) for name in ("Ann", "Ben")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(each.written for each in told) == [0, 3]
        (missed,) = (each.missed for each in told if not each.written)
        assert {event.actor for event in missed} == {dag.events("a0")[0].actor} and len(missed) == 3


def test_what_cannot_be_marked(databases: Files | Server) -> None:
    with databases.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            chain(dag)
            before = dag.last_seq
            with pytest.raises(RepositoryError, match="no item 'nobody'"):
                dag.mark("nobody", "review", actor="Ann", reason="")
            with pytest.raises(UsageError, match="'status'"):
                dag.mark("a0", "status", actor="Ann", reason="")
            with pytest.raises(RepositoryError, match="actor"):
                dag.mark("a0", "review", actor="a\0b", reason="", whole_chain=True)
            assert dag.last_seq == before and not dag.read_only
        with ArtifactDAG.load(place.target, read_only=True) as dag:
            assert dag.read_only
            with pytest.raises(RepositoryError, match="read-only"):
                dag.mark("a0", "review", actor="Ann", reason="")
            with pytest.raises(RepositoryError, match="no item 'nobody'"):
                dag.events("nobody")
