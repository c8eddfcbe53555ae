"""Figures by axis, the account of a selection, and a chain as people read it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import strategies as st
from typer.testing import CliRunner

from databases import Files, Place, Server, law
from guardlearn import predicates as words
from guardlearn.cli import app
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.breakdown import AXES, BreakdownRow
from guardlearn.errors import NoTracesError, UsageError
from guardlearn.predicates import POLICIES, Predicate, everything, refinement, satisfies, status
from guardlearn.statistics import Chain, expected_attempts
from guardlearn.traces import explain_selection, extract_traces
from guardlearn.types import ArtifactStatus, RepositoryItem, Side, Source
from test_dag_law import events, items, predicates, repository

ACCEPTED, REJECTED = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED
PENDING, SUPERSEDED = ArtifactStatus.PENDING, ArtifactStatus.SUPERSEDED
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
EXAMPLES = 15


class Notebook:
    """Appends chains on the train side, with as little writing as possible."""

    def __init__(self, dag: ArtifactDAG) -> None:
        self.dag = dag
        self.count = 0
        dag.assign_side("g", Side.TRAIN)

    def chain(self, *statuses: ArtifactStatus, parent: str | None = None, **given: Any) -> list[str]:
        ids, before = list[str](), parent
        for each in statuses:
            self.count += 1
            fields = {
                "id": f"i{self.count}",
                "artifact": f"answer {self.count}",
                "specification": "task",
                "group": "g",
                "parent_id": before,
                "created_at": MONDAY + timedelta(seconds=self.count),
            }
            item = RepositoryItem(**fields | {"status": each} | given)
            self.dag.append(item)
            before = item.id
            ids.append(before)
        return ids


@pytest.fixture
def path(installed: Place) -> str:
    return installed.target


@pytest.fixture
def book(path: str):
    with ArtifactDAG.load(path) as dag:
        yield Notebook(dag)


def run(*arguments: object, colour: bool = False) -> str:
    env = {"FORCE_COLOR": "1", "COLUMNS": "80"} if colour else {"FORCE_COLOR": None, "COLUMNS": "80"}
    done = CliRunner().invoke(app, [str(each) for each in arguments], env=env, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def as_json(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json"))


# -- figures by axis


def naive(paths: list[list[RepositoryItem]], by: str | None, predicate: Predicate) -> dict[tuple[str, str, str], Any]:
    """Every figure of every row, counted one item at a time from the path to each."""
    heirs = {item.parent_id for *before, item in paths if before}
    rows: dict[tuple[str, str, str], Any] = defaultdict(lambda: {"own": Counter(), "chains": 0, "tried": []})
    for *before, item in paths:
        if not predicate.matches(item):
            continue
        own = rows[key(by, item)]["own"]
        own["items"] += 1
        own["accepted"] += item.status is ACCEPTED
        own["refinements"] += item.status is ACCEPTED and any(each.status is REJECTED for each in before)
        own["no_verdict"] += item.status is PENDING
        own["broken"] += item.facts.broken
        if item.facts.broken:
            continue
        attempt = item.status is not PENDING and not any(each.status in (ACCEPTED, SUPERSEDED) for each in before)
        if before and not attempt:
            continue
        chain = rows[key(by, before[0] if before else item)]
        chain["chains"] += not before
        if attempt:
            number = 1 + sum(each.status is REJECTED for each in before)
            final = item.status is REJECTED and item.fatal and item.id not in heirs
            chain["tried"].append((number, item.status is not REJECTED, final))
    return rows


def key(by: str | None, item: RepositoryItem) -> tuple[str, str, str]:
    day = item.created_at.date()
    week = (day - timedelta(days=day.weekday())).isoformat()
    return {
        None: ("", "", ""),
        "action_pair": (item.action_pair_id, "", ""),
        "source": (item.source.value, "", ""),
        "guard": (item.guard, item.guard_version, ""),
        "week": (week, "", ""),
        "adapter": (item.adapter, "", ""),
        "adapter,week": (item.adapter, "", week),
    }[by]


def kaplan_meier(tried: list[tuple[int, bool, bool]]) -> tuple[float, float] | None:
    """Σ S(k) over k < R, and 1 - S(R), from the definition: S(k) is the product of 1 - d_j / n_j over j up to k."""
    if not tried:
        return None
    survival = [1.0]
    for k in range(1, max(number for number, *_ in tried) + 1):
        at_risk = sum(number == k or (final and number < k) for number, _, final in tried)
        solved = sum(number == k and passed for number, passed, _ in tried)
        survival.append(survival[-1] * (1 - (solved / at_risk if at_risk else 0)))
    return sum(survival[:-1]), 1 - survival[-1]


def check_row(row: BreakdownRow, expected: dict[str, Any]) -> None:
    own, tried = expected["own"], expected["tried"]
    assert (row.items, row.accepted, row.refinements, row.no_verdict, row.broken, row.chains) == (
        own["items"], own["accepted"], own["refinements"], own["no_verdict"], own["broken"], expected["chains"]
    )  # fmt: skip
    judged = Counter(number for number, *_ in tried)
    accepted = Counter(number for number, passed, _ in tried if passed)
    assert [(each.attempt, each.judged, each.accepted) for each in row.attempts] == [
        (number, judged[number], accepted[number]) for number in sorted(judged)
    ]
    assert all(each.rate == each.accepted / each.judged for each in row.attempts)
    assert (row.first_judged, row.first_accepted) == (judged[1], accepted[1])
    assert row.first_rate == (accepted[1] / judged[1] if judged[1] else None)
    assert row.largest_attempt == max(judged, default=0)
    if (survival := kaplan_meier(tried)) is None:
        assert row.expected_attempts is row.expected_retries is row.solved is None
    else:
        assert (row.expected_attempts, row.solved) == pytest.approx(survival)
        assert row.expected_retries == pytest.approx(survival[0] - 1)


@st.composite
def linked(draw: st.DrawFn) -> list[Any]:
    """Items mostly in chains and trees, some late, missing or circular; then events that change what they count as."""
    count = draw(st.integers(1, 14))
    stored = []
    for place in range(count):
        before = st.integers(max(0, place - 2), place - 1) if place else st.none()
        parent = draw(st.one_of(before, before, before, st.none(), st.integers(0, count)))
        stored.append(
            RepositoryItem(
                id=f"i{place}",
                parent_id=None if parent is None else f"i{parent}",
                artifact="a",
                specification="s",
                status=draw(st.sampled_from([REJECTED, REJECTED, REJECTED, ACCEPTED, PENDING, SUPERSEDED])),
                fatal=draw(st.booleans()),
                source=draw(st.sampled_from([Source.GENERATOR, Source.HUMAN])),
                action_pair_id=draw(st.sampled_from(["a", "b"])),
                guard=draw(st.sampled_from(["", "g"])),
                guard_version=draw(st.sampled_from(["1", "2"])),
                adapter=draw(st.sampled_from(["", "a1"])),
                created_at=MONDAY + timedelta(hours=draw(st.sampled_from([-300, -1, 0, 1, 167, 168]))),
            )
        )
    return stored + draw(st.lists(events, max_size=4))


@pytest.mark.slow
@law(linked(), predicates, examples=EXAMPLES)
def test_rows_are_what_a_count_of_single_items_gives(
    databases: Files | Server, history: list[Any], predicate: Predicate
) -> None:
    with repository(databases, history) as (dag, stored, _):
        paths = [dag.provenance(item.id) for item in stored]
        for by in (None, *AXES):
            for chosen in (everything(), predicate, satisfies(predicate.matches)):
                rows, expected = dag.breakdown(by, chosen), naive(paths, by, chosen)
                assert len(rows) == len(expected)
                for row in rows:
                    check_row(row, expected[row.value, row.guard_version, row.week])


@pytest.mark.slow
@law(linked(), examples=EXAMPLES)
def test_the_rows_of_each_axis_sum_to_the_total(databases: Files | Server, history: list[Any]) -> None:
    with repository(databases, history) as (dag, stored, _):
        total = dag.breakdown(None)
        assert sum(row.items for row in total) == dag.count() == len(stored)
        for by in AXES:
            rows = dag.breakdown(by)
            for name in "items accepted refinements no_verdict broken chains first_judged first_accepted".split():
                assert sum(getattr(row, name) for row in rows) == sum(getattr(row, name) for row in total)
            assert sum((judged(row) for row in rows), Counter()) == sum((judged(row) for row in total), Counter())
        for name in ("accepted", "refinements"):
            predicate = refinement() if name == "refinements" else status("accepted")
            assert sum(getattr(row, name) for row in total) == dag.count(predicate)


def judged(row: BreakdownRow) -> Counter:
    return Counter({each.attempt: each.judged for each in row.attempts})


endings = st.sampled_from(["accepted", "cut", "fatal", "silent"])


@pytest.mark.slow
@law(st.lists(st.tuples(st.integers(0, 4), endings, st.booleans()), min_size=1, max_size=12), examples=EXAMPLES)
def test_expected_attempts_are_those_of_the_evaluation(
    databases: Files | Server, plans: list[tuple[int, str, bool]]
) -> None:
    """The figures of ℛ and of an evaluation are one quantity: chains as survival data give the same."""
    chains, history = [], []
    for place, (rejections, ending, silence) in enumerate(plans):
        verdicts = [REJECTED] * rejections
        verdicts += {"accepted": [ACCEPTED], "fatal": [REJECTED], "silent": [PENDING], "cut": []}[ending]
        judged_ = sum(verdict is not PENDING for verdict in verdicts)
        verdicts = [PENDING, *verdicts] if silence else verdicts  # no verdict at first counts for nothing
        for step, verdict in enumerate(verdicts):
            history.append(
                RepositoryItem(
                    id=f"c{place}/{step}",
                    parent_id=f"c{place}/{step - 1}" if step else None,
                    artifact="a",
                    specification="s",
                    status=verdict,
                    fatal=ending == "fatal" and step == len(verdicts) - 1,
                )
            )
        chains.append(Chain(group=place, judged=judged_, solved=ending == "accepted", cut=ending in ("cut", "silent")))
    with databases.repository() as dag:
        dag.append_many(history)
        (row,) = dag.breakdown(None) or [None]
        survival = expected_attempts(chains, max(chain.judged for chain in chains) or 1)
        if row is None or row.expected_attempts is None:
            assert all(chain.judged == 0 for chain in chains)
        else:
            assert row.expected_attempts == pytest.approx(survival.expected_attempts.rate)
            assert row.solved == pytest.approx(survival.solved_by_attempt[-1])


def test_errata_3_to_5_only_rejected_attempts_are_retries(book: Notebook) -> None:
    book.chain(SUPERSEDED, ACCEPTED)  # an amendment of what was accepted: no refinement, no retry
    book.chain(PENDING, ACCEPTED)  # nobody rejected the first
    book.chain(REJECTED, PENDING, ACCEPTED)
    (row,) = book.dag.breakdown(None)
    assert (row.items, row.chains, row.accepted, row.refinements, row.no_verdict) == (7, 3, 3, 1, 2)
    assert [(each.attempt, each.judged, each.accepted) for each in row.attempts] == [(1, 3, 2), (2, 1, 1)]
    assert (row.expected_attempts, row.expected_retries) == (pytest.approx(4 / 3), pytest.approx(1 / 3))


def test_what_follows_an_accepted_item_is_no_attempt(book: Notebook) -> None:
    book.chain(ACCEPTED, REJECTED, REJECTED, ACCEPTED)
    (row,) = book.dag.breakdown(None)
    assert (row.chains, row.first_rate, row.expected_attempts, row.largest_attempt) == (1, 1.0, 1.0, 1)


def test_a_fatal_verdict_is_unsolved_and_a_chain_cut_early_is_not_counted_further(book: Notebook) -> None:
    book.chain(REJECTED, ACCEPTED)
    book.chain(REJECTED)
    (row,) = book.dag.breakdown(None)
    assert (row.expected_attempts, row.solved) == (2.0, 1.0)
    book.chain(REJECTED, fatal=True)
    (row,) = book.dag.breakdown(None)
    assert (row.expected_attempts, row.solved) == (2.0, 0.5)
    assert [each.at_risk for each in row.attempts] == [3, 2]


def test_chains_are_counted_where_they_begin_and_items_where_they_are(book: Notebook) -> None:
    root, _ = book.chain(REJECTED, REJECTED)
    book.chain(ACCEPTED, parent=root, source=Source.HUMAN)
    generator, human = book.dag.breakdown("source")
    assert (generator.value, generator.items, generator.accepted, generator.chains) == ("generator", 2, 0, 1)
    assert [(each.attempt, each.accepted) for each in generator.attempts] == [(1, 0), (2, 1)]
    assert (human.value, human.items, human.refinements, human.chains) == ("human", 1, 1, 0)
    assert (human.attempts, human.first_rate, human.expected_attempts, human.solved) == ((), None, None, None)


def test_a_chain_without_its_beginning_has_no_attempt_numbers(book: Notebook) -> None:
    book.chain(REJECTED, ACCEPTED, parent="never stored")
    (row,) = book.dag.breakdown(None)
    assert (row.items, row.broken, row.chains, row.accepted, row.refinements) == (2, 2, 0, 1, 1)
    assert (row.attempts, row.expected_attempts) == ((), None)
    book.chain(ACCEPTED)
    assert book.dag.breakdown(None)[0].expected_attempts == 1.0


def test_weeks_begin_on_monday_in_utc(book: Notebook) -> None:
    moments = [
        MONDAY - timedelta(microseconds=1),  # Sunday
        MONDAY,
        datetime(2026, 1, 11, 23, 59, 59, 999999),  # Sunday; a naive time is UTC
        datetime(2026, 1, 12, 0, 30, tzinfo=timezone(timedelta(hours=2))),  # Sunday in UTC
        datetime(2026, 1, 11, 23, 30, tzinfo=timezone(timedelta(hours=-2))),  # Monday in UTC
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 28, 23, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ]
    for moment in moments:
        book.chain(ACCEPTED, created_at=moment)
    assert {row.value: row.items for row in book.dag.breakdown("week")} == {
        "0001-01-01": 1, "1969-12-22": 1, "1969-12-29": 1, "2025-12-29": 1, "2026-01-05": 3, "2026-01-12": 1,
        "9999-12-27": 1,
    }  # fmt: skip
    assert [row.value for row in book.dag.breakdown("week")] == sorted(row.value for row in book.dag.breakdown("week"))


def test_an_unknown_axis_names_the_known_ones(book: Notebook) -> None:
    with pytest.raises(
        UsageError, match="'colour'; allowed are: action_pair; source; guard; week; adapter; adapter,week"
    ):
        book.dag.breakdown("colour")


# -- why a predicate selects what it does


@pytest.mark.slow
@law(
    st.lists(items() | events, min_size=1, max_size=22), st.lists(predicates, min_size=1, max_size=4), examples=EXAMPLES
)
def test_every_item_is_selected_or_turned_away_and_every_selected_one_a_trace_or_dropped(
    databases: Files | Server, history: list[Any], chosen: list[Predicate]
) -> None:
    with repository(databases, history) as (dag, stored, _):
        for predicate in (*chosen, lambda item: item.status is ACCEPTED):
            report = explain_selection(dag, predicate)
            assert report.items == len(stored) == report.selected + sum(report.turned_away.values())
            assert report.selected == dag.count(predicate) == sum(report.traces.values()) + sum(report.dropped.values())
            assert all(count > 0 for count in (*report.turned_away.values(), *report.dropped.values()))
            if not report.refusal and report.traces.get(Side.TRAIN):
                extraction = extract_traces(dag, predicate)
                assert report.dropped == extraction.dropped
                assert report.traces == Counter(trace.side for trace in extraction.traces)


def test_the_account_goes_down_to_single_conditions(book: Notebook) -> None:
    book.chain(REJECTED, REJECTED, ACCEPTED)
    book.chain(ACCEPTED)
    book.chain(PENDING)
    book.chain(SUPERSEDED)
    report = explain_selection(book.dag, "human")
    assert report.turned_away == {
        "rejected": 2,
        "no verdict yet": 1,
        "superseded by a later artifact": 1,
        "accepted, but no rejected attempt before it": 1,
        "written by source generator": 1,
    }
    assert (report.items, report.selected, report.traces) == (6, 0, {})
    assert report.policies == {name: book.dag.count(POLICIES[name]()) for name in POLICIES}


T = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("predicate", "reason"),
    [
        (words.status("rejected"), "accepted"),
        (words.action_pair("sql", "code"), "another action pair than 'sql' or 'code'"),
        (words.workflow("a", "b", "c", "d"), "another workflow than 'a' or 'b' or 'c' or 1 more"),
        (words.guard("style", version="2"), "guard 'style', but another guard version than '2'"),
        (words.retries(at_least=2), "fewer than 2 rejected attempts before it"),
        (words.retries(at_most=0), "a rejected attempt before it"),
        (words.created_after(T + timedelta(days=9)), "created at or before 2026-01-14T00:00:00+00:00"),
        (words.created_before(T), "created at or after 2026-01-05T00:00:00+00:00"),
        (words.after(9), "committed up to seq 9"),
        (words.up_to(1), "committed after seq 1"),
        (words.side("held_out"), "on the side train"),
        (words.excluded(), "not excluded from training"),
        (words.broken(), "in a whole chain"),
        (~words.fresh(), "its guard has not changed since"),
        (~words.source("generator"), "written by source generator"),
        (~(words.refinement() & words.fresh()), "selected by refinement() & fresh()"),
        (words.redacted() | words.source("human"), 'not selected by redacted() | source("human")'),
        (~everything(), "selected by everything()"),
    ],
)
def test_each_word_says_why_it_turns_an_item_away(book: Notebook, predicate: Predicate, reason: str) -> None:
    _, last = book.chain(REJECTED, ACCEPTED, guard="style", guard_version="1")
    assert predicate.rejection(book.dag.get_item(last)) == reason
    assert explain_selection(book.dag, words.item(last) & predicate).turned_away[reason] == 1


def test_a_function_is_named_and_sees_only_what_came_as_far_as_it(book: Notebook) -> None:
    book.chain(REJECTED, ACCEPTED)
    seen = []

    def short(item: RepositoryItem) -> bool:
        seen.append(item.id)
        return len(item.artifact) < 3

    report = explain_selection(book.dag, refinement() & satisfies(short))
    name = "test_a_function_is_named_and_sees_only_what_came_as_far_as_it.<locals>.short"
    assert report.turned_away == {"rejected": 1, f"not selected by satisfies({name})": 1}
    assert set(seen) == {"i2"}


def test_an_extraction_that_finds_nothing_gives_the_same_account(book: Notebook) -> None:
    book.chain(REJECTED, ACCEPTED)
    book.chain(PENDING)
    with pytest.raises(NoTracesError) as caught:
        extract_traces(book.dag, "high_value")
    message = str(caught.value)
    for reason, count in explain_selection(book.dag, "high_value").turned_away.items():
        assert f"{count} {reason}" in message
    assert "fewer than 3 rejected attempts before it" in message and "\n" not in message
    assert "the policies select: refinement 1, all 1, generator 1" in message


def test_sides_that_cannot_measure_are_part_of_the_account(path: str) -> None:
    with ArtifactDAG.load(path) as dag:
        for number in range(12):
            dag.append(
                RepositoryItem(
                    id=f"i{number}", artifact=f"a{number}", specification=f"t{number}", group="one", status=ACCEPTED
                )
            )
        report = explain_selection(dag, "all")
    assert "group 'one'" in report.refusal
    assert report.selected == 12 == sum(report.traces.values()) + sum(report.dropped.values())


# -- stats


@pytest.mark.slow
def test_stats_shows_every_axis_and_says_what_it_leaves_out(book: Notebook, path: str) -> None:
    for number in range(9):
        book.chain(
            REJECTED, ACCEPTED, action_pair_id=f"ap{number}", created_at=MONDAY + timedelta(weeks=number),
            guard="style", guard_version=f"{number % 2}",
        )  # fmt: skip
    found = as_json("stats", path)
    assert {axis: len(rows) for axis, rows in found["breakdown"].items()} == {
        "action_pair": 9, "source": 1, "guard": 2, "week": 9, "adapter": 1
    }  # fmt: skip
    assert found["by_action_pair"] == {f"ap{number}": 2 for number in range(9)}
    assert (found["expected_attempts"], found["expected_retries"], found["by_source"]) == (2.0, 1.0, {"generator": 18})
    week = found["breakdown"]["week"][0]
    assert (week["value"], week["expected_retries"], week["attempts"][1]["accepted"]) == ("2026-01-05", 1.0, 1)
    assert "selection" not in found
    text = run("stats", path)
    assert "(3 more: --json)" in text and "2026-03-02" in text and "2026-01-05" not in text
    assert "expected attempts within 2: 2.00, so E[retries] is 1.00; solved by then: 100%" in text


@pytest.mark.slow
def test_stats_of_an_empty_repository_and_of_one_without_verdicts(book: Notebook, path: str) -> None:
    assert as_json("stats", path)["expected_attempts"] is None
    assert "0 items" in run("stats", path)
    book.chain(PENDING)
    assert as_json("stats", path)["breakdown"]["source"][0]["first_rate"] is None
    assert "E[retries] is" not in run("stats", path)


def test_stats_explains_a_selection(book: Notebook, path: str) -> None:
    book.chain(REJECTED, ACCEPTED)
    (excluded,) = book.chain(ACCEPTED, parent="i1")
    book.dag.append_event(excluded, "exclude", actor="test")
    found = as_json("stats", path, "--policy", "refinement")["selection"]
    assert (found["items"], found["selected"], found["traces"]) == (3, 2, {"train": 1})
    assert (found["turned_away"], found["dropped"]) == ({"rejected": 1}, {"excluded": 1})
    text = run("stats", path, "--where", 'refinement() & source("human")')
    assert 'refinement() & source("human")' in text and "written by source generator" in text


@pytest.mark.slow
def test_stats_shows_progress_only_when_it_takes_long(
    book: Notebook, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.chain(REJECTED, ACCEPTED)
    command = ["stats", str(path), "--json", "--policy", "all"]
    monkeypatch.setattr("guardlearn.cli.console._QUIET_SECONDS", 600)  # however busy the machine is
    assert CliRunner().invoke(app, command).stderr == ""
    monkeypatch.setattr("guardlearn.cli.console._QUIET_SECONDS", -1)
    done = CliRunner().invoke(app, command)
    assert "stats: 5/5" in done.stderr or "stats: 1/5" in done.stderr
    assert json.loads(done.stdout)["selection"]["selected"] == 1


def test_names_cannot_command_the_terminal_in_a_table(book: Notebook, path: str) -> None:
    book.chain(ACCEPTED, action_pair_id="\x1b[2Jred[bold]")
    text = run("stats", path)
    assert "\x1b" not in text and "\\x1b[2Jred[bold]" in text


# -- show


def test_show_gives_the_differences_and_the_feedback_between(book: Notebook, path: str) -> None:
    given = {"guard": "style", "guard_version": "abcdef0123456789", "model": "m", "sampling": {"temperature": 0.5}}
    (first,) = book.chain(
        REJECTED, artifact="def f():\n    return 1\n", feedback="two\nlines", cause="cases", constraints="Ω",
        metadata={"completion_tokens": 7}, **given,
    )  # fmt: skip
    (last,) = book.chain(ACCEPTED, parent=first, artifact="def f():\n    return 2", constraints="Ω", **given)
    difference = (
        "--- attempt 1\n+++ attempt 2\n@@ -1,2 +1,2 @@\n def f():\n"
        "-    return 1\n+    return 2\n\\ No newline at end of file\n"
    )
    found = as_json("show", path, last)
    assert found["differences"] == [difference]
    assert (found["item"]["id"], [item["id"] for item in found["chain"]]) == (last, [first, last])
    assert (found["children"], found["siblings"], found["broken"]) == ([], [], None)
    assert run("show", path, last).splitlines() == [
        "action pair default, group g, side train",
        "specification:", "    task", "constraints:", "    Ω", "",
        "attempt 1: rejected (cases)  i1",
        "2026-01-05T00:00:01+00:00, source generator, guard style abcdef012345",
        "model m, temperature 0.5",
        "completion_tokens 7",
        "    def f():", "        return 1",
        "feedback: two", "          lines", "",
        "attempt 2: accepted  i2",
        "2026-01-05T00:00:02+00:00, source generator, guard style abcdef012345",
        *(f"    {line}" for line in difference.splitlines()),
    ]  # fmt: skip
    assert "    def f():\n        return 2\n" in run("show", path, last, "--full")


def test_show_tells_how_a_chain_went_on_and_what_stood_beside_it(book: Notebook, path: str) -> None:
    root, middle, below, end = book.chain(REJECTED, REJECTED, REJECTED, ACCEPTED)
    (beside,) = book.chain(ACCEPTED, parent=root)
    found = as_json("show", path, middle)
    assert [child["id"] for child in found["children"]] == [below]
    assert found["siblings"] == [{"id": beside, "parent_id": root, "attempt": 2, "status": "accepted"}]
    text = run("show", path, middle)
    assert f"beside it: attempt 2: accepted  {beside}" in text
    assert text.splitlines()[-2:] == [
        f"went on: attempt 3: rejected  {below}", f"and then: attempt 4: accepted  {end}"
    ]  # fmt: skip


def test_show_says_that_a_chain_is_broken_and_how(book: Notebook, path: str) -> None:
    (orphan,) = book.chain(ACCEPTED, parent_id="gone")
    assert as_json("show", path, orphan)["broken"] == (
        f"the attempt before {orphan!r} is missing: 'gone' is not in this repository"
    )
    for here, there in (("c1", "c2"), ("c2", "c1")):
        book.dag.append(RepositoryItem(id=here, parent_id=there, artifact="a", specification="s", status=REJECTED))
    text = run("show", path, "c1")
    assert text.startswith("broken chain: the links run in a circle: 'c2' names 'c1' as the attempt before it")
    assert "attempt 1: rejected  c2" in text and "attempt 2: rejected  c1" in text
    book.dag.append(RepositoryItem(id="me", parent_id="me", artifact="a", specification="s", status=REJECTED))
    assert "'me' names itself as the attempt before it" in run("show", path, "me")


def test_show_writes_control_characters_out(book: Notebook, path: str) -> None:
    book.chain(
        REJECTED, id="i\nattempt 9: accepted", artifact="\x1b[2J\r\x07\x9b31m\u202e\ud800 é \t.",
        feedback="\x1b]0;title\x07", cause="\x1b[31m",
    )  # fmt: skip
    shown = run("show", path, "i\nattempt 9: accepted")
    assert not any(char in shown for char in "\x1b\r\x07\x9b\u202e\ud800")
    assert "\\x1b[2J\\r\\x07\\x9b31m\\u202e\\ud800 é \t." in shown
    assert "\nattempt 9" not in shown
    coloured = run("show", path, "i\nattempt 9: accepted", colour=True)
    assert "\x1b[1;31m" in coloured and "\x1b[2J" not in coloured and "\x1b]0" not in coloured
    assert as_json("show", path, "i\nattempt 9: accepted")["item"]["artifact"].endswith("\u202e\ud800 é \t.")


def test_show_marks_what_was_done_to_items(book: Notebook, path: str) -> None:
    first, second, third = book.chain(REJECTED, REJECTED, ACCEPTED, feedback="private")
    book.dag.redact(second, "test", "private")
    book.dag.append_event(third, "exclude", actor="test")
    book.dag.append_event(first, "stale", actor="test")
    text = run("show", path, third)
    assert f"{first}  [stale]" in text and f"{second}  [redacted]" in text and f"{third}  [excluded]" in text
    assert "    its texts were redacted\n" in text and "    answer 3\n" in text  # whole: nothing to compare it with


def test_show_names_an_amendment_and_an_unchanged_artifact(book: Notebook, path: str) -> None:
    (first,) = book.chain(REJECTED, artifact="same")
    (last,) = book.chain(ACCEPTED, parent=first, artifact="same", specification="another task")
    text = run("show", path, last)
    assert "specification amended:\n    --- before\n    +++ after\n    @@ -1 +1 @@\n    -task\n    +another" in text
    assert "    the same artifact as before\n" in text
