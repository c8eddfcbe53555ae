"""What ℛ shows of each adapter, beside the evidence it was promoted on; on both databases."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from typer.testing import CliRunner

from databases import Files, Place, Server, law
from guardlearn.cli import app
from guardlearn.comparing.promises import AdapterFigures, figures_of_adapters, promises
from guardlearn.dag import ArtifactDAG, rounds
from guardlearn.dag.breakdown import by_group
from guardlearn.dag.rounds import State
from guardlearn.errors import UsageError
from guardlearn.statistics import Chain, clustered_mean, expected_attempts
from guardlearn.types import ArtifactStatus, RepositoryItem

ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
ADAPTER = "a" * 64
WORDS = {"pass": ACCEPTED, "fail": REJECTED, "fatal": REJECTED, "silent": PENDING}


def chain(
    name: str, words: list[str], group: str, adapter: str, week: int = 0, by: str | None = None
) -> list[RepositoryItem]:
    """Return a chain's items; `by` is the adapter of the last one, where that is another."""
    return [
        RepositoryItem(
            id=f"{name}/{step}",
            parent_id=f"{name}/{step - 1}" if step else None,
            artifact=f"{name} {step}",
            specification=f"task {group}",
            group=group,
            status=WORDS[word],
            fatal=word == "fatal",
            adapter=by if by is not None and step == len(words) - 1 else adapter,
            created_at=MONDAY + timedelta(weeks=week, seconds=step),
        )
        for step, word in enumerate(words)
    ]


def figures(dag: ArtifactDAG, **given: Any) -> dict[tuple[str, str], AdapterFigures]:
    with dag.reading() as connection:
        return {(each.row.value, each.row.week): each for each in figures_of_adapters(connection, **given)}


def learn(dag: ArtifactDAG, *, rate: float, low: float | None, high: float | None, adapter: str = ADAPTER) -> None:
    """Leave what a round leaves that promoted an adapter on such evidence."""
    evidence = {"candidate": {"first_attempt": {"rate": rate, "low": low, "high": high}}}
    with dag.writing() as connection:
        number = len({step.round for step in rounds.read(connection, "me")}) + 1
        for state in (State.PLANNED, State.EXTRACTED, State.TRAINED, State.MEASURED, State.PROMOTED):
            details = {"evidence": evidence} if state is State.MEASURED else {}
            rounds.append(connection, "me", number, state, details)
        rounds.promote(
            connection, "me", action="promote", adapter=f"out/{number}", adapter_digest=adapter, actor="me",
            reason="", round_=number,
        )  # fmt: skip


@pytest.fixture
def dag(installed: Place):
    with ArtifactDAG.load(installed.target) as opened:
        yield opened


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["stats", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


# -- figures


CHAINS = st.lists(
    st.tuples(
        st.lists(st.just("fail"), max_size=3),
        st.sampled_from(["pass", "pass", "fatal", "silent", "fail"]),
        st.sampled_from("ghk"),
        st.sampled_from(["", ADAPTER]),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.slow
@law(CHAINS, examples=20)
def test_intervals_are_those_of_the_statistics_over_single_chains(
    databases: Files | Server, drawn: list[tuple[list[str], str, str, str, int]]
) -> None:
    items, firsts, counted = [], defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for number, (fails, end, group, adapter, week) in enumerate(drawn):
        items += chain(str(number), [*fails, end], group, adapter, week)
        verdicts = [word for word in [*fails, end] if word != "silent"]
        for key in ((adapter, ""), (adapter, (MONDAY + timedelta(weeks=week)).date().isoformat())):
            if verdicts:
                firsts[key][group].append(float(verdicts[0] == "pass"))
                counted[key].append((group, verdicts, end))
    with databases.repository() as dag:
        dag.append_many(items)
        found = figures(dag) | figures(dag, by_week=True)
        assert {key for key in found if not key[1]} == {(adapter, "") for *_, adapter, _ in drawn}
        for key, each in found.items():
            expected = clustered_mean(firsts[key])
            assert each.first_rate == pytest.approx(expected.rate)
            assert (each.first_low, each.first_high) == (pytest.approx(expected.low), pytest.approx(expected.high))
            assert each.groups == len(firsts[key])
            assert each.row.first_judged == sum(map(len, firsts[key].values()))
            assert (each.expected_attempts_low, each.expected_attempts_high) == interval(counted[key])


def interval(chains: list[tuple[str, list[str], str]]) -> Any:
    """Delete one group at a time from all chains pooled: pseudo-values, and their t interval within [1, R]."""
    if not chains:
        return None, None
    r_max = max(len(verdicts) for _, verdicts, _ in chains)

    def pooled(left_out: str | None) -> float:
        kept = [
            Chain(group="all", judged=len(verdicts), solved=end == "pass", cut=end not in ("pass", "fatal"))
            for group, verdicts, end in chains
            if group != left_out
        ]
        return expected_attempts(kept, r_max).expected_attempts.rate

    groups = sorted({group for group, _, _ in chains})
    if len(groups) < 2:
        return None, None
    pseudo = {g: [len(groups) * pooled(None) - (len(groups) - 1) * pooled(g)] for g in groups}
    found = clustered_mean(pseudo, (1.0, float(r_max)))
    return pytest.approx(found.low), pytest.approx(found.high)


def test_a_chain_belongs_to_the_adapter_of_its_first_attempt(dag: ArtifactDAG) -> None:
    dag.append_many(chain("c", ["fail", "fail", "pass"], "g", ADAPTER))
    dag.append_many(chain("d", ["fail", "pass"], "h", ADAPTER, by=""))
    found = figures(dag)
    own, nobody = found[ADAPTER, ""], found["", ""]
    assert (own.row.items, own.row.chains, own.row.first_judged) == (4, 2, 2)
    assert [(each.attempt, each.judged, each.accepted) for each in own.row.attempts] == [
        (1, 2, 0),
        (2, 2, 1),
        (3, 1, 1),
    ]
    assert (own.row.expected_attempts, own.groups) == (2.5, 2)
    assert (nobody.row.items, nobody.row.accepted, nobody.row.chains) == (1, 1, 0)
    assert (nobody.groups, nobody.first_rate, nobody.expected_attempts_low) == (0, None, None)


def test_groups_are_those_that_must_not_be_split(dag: ArtifactDAG) -> None:
    """Without a group, near-duplicates count as one."""
    text = "Write a function that returns the sum of all even numbers of a list of integers and raises on an empty one"
    loose = [
        RepositoryItem(id=f"l{n}", artifact=str(n), specification=f"{text}{'.' * n}", status=ACCEPTED, adapter=ADAPTER)
        for n in range(3)
    ]
    apart = RepositoryItem(id="apart", artifact="a", specification="Greet", status=ACCEPTED, adapter=ADAPTER)
    dag.append_many([*loose, apart, *chain("c", ["pass"], "g", ADAPTER)])
    with dag.reading() as connection:
        groups = list(by_group(connection, "adapter"))
    assert sorted(group.judged[1] for group in groups) == [1, 1, 3]
    assert {group.value for group in groups} == {ADAPTER}


def test_an_unknown_axis_names_the_known_ones(dag: ArtifactDAG) -> None:
    with dag.reading() as connection, pytest.raises(UsageError, match="'colour'; allowed are: action_pair; "):
        list(by_group(connection, "colour"))


def test_a_chain_is_in_the_group_it_began_in(dag: ArtifactDAG) -> None:
    first, last = chain("c", ["fail", "pass"], "g", ADAPTER)
    moved = chain("c", ["fail", "pass"], "h", ADAPTER)[1]  # its specification was amended into another family
    dag.append_many([first, moved, *chain("d", ["pass"], "k", ADAPTER)])
    assert last.id == moved.id
    with dag.reading() as connection:
        groups = list(by_group(connection, "adapter"))
    assert sorted((group.judged.get(1, 0), group.judged.get(2, 0)) for group in groups) == [(1, 0), (1, 1)]


def test_intervals_of_many_groups_are_those_of_single_chains(dag: ArtifactDAG) -> None:
    chance = random.Random(7)
    drawn = [
        (["fail"] * chance.randrange(3), chance.choice(["pass", "pass", "fatal", "silent", "fail"]), f"g{n % 20}")
        for n in range(90)
    ]
    items, counted, firsts = [], [], defaultdict(list)
    for number, (fails, end, group) in enumerate(drawn):
        items += chain(str(number), [*fails, end], group, ADAPTER)
        if verdicts := [word for word in [*fails, end] if word != "silent"]:
            counted.append((group, verdicts, end))
            firsts[group].append(float(verdicts[0] == "pass"))
    dag.append_many(items)
    each, expected = figures(dag)[ADAPTER, ""], clustered_mean(firsts)
    assert (each.expected_attempts_low, each.expected_attempts_high) == interval(counted)
    assert 1 < each.expected_attempts_low < each.row.expected_attempts < each.expected_attempts_high < 3
    assert (each.first_low, each.first_high) == (pytest.approx(expected.low), pytest.approx(expected.high))


# -- what was promised


def fill(dag: ArtifactDAG, passed: int, groups: int = 20, per_group: int = 5) -> None:
    """Append chains of the adapter: `passed` of `per_group` pass first time in each group, one more in the first."""
    items = []
    for group in range(groups):
        for n in range(per_group):
            first = n < passed + (group == 0)
            items += chain(f"{group}.{n}", ["pass"] if first else ["fail", "pass"], f"g{group}", ADAPTER)
    dag.append_many(items)


@pytest.mark.slow
def test_a_fall_below_the_evidence_is_a_warning(dag: ArtifactDAG, installed: Place) -> None:
    fill(dag, passed=3)
    learn(dag, rate=0.77, low=0.70, high=0.84)
    each = figures(dag)[ADAPTER, ""]
    assert each.promise is not None and (each.promise.learner, each.promise.round, each.promise.low) == ("me", 1, 0.7)
    assert each.first_high is not None and each.first_high < 0.7
    assert each.warning.startswith("adapter aaaaaaaaaaaa passes first time in 61 % of 100 chains (")
    assert "below what its evidence promised (70-84 %); the specifications may be another mix" in each.warning
    assert "\n" not in each.warning
    for arguments in ([], ["--by", "adapter"]):  # it is said whether or not one asks for it
        assert json.loads(run(installed.target, *arguments, "--json"))["warnings"] == [each.warning]
        assert f"warning: {each.warning}" in run(installed.target, *arguments)
    text = run(installed.target, "--by", "adapter")
    assert "aaaaaaaaaaaa" in text and "77 % (70 to 84)" in text and "61 %, 100 %" in text
    assert "warning" not in run(installed.target, "--by", "source")


@pytest.mark.parametrize(
    ("passed", "low", "high"),
    [(4, 0.70, 0.84), (3, 0.55, 0.70), (3, 0.65, 0.90), (3, None, None)],
    ids=["better", "within", "overlapping", "no interval"],
)
def test_what_may_be_as_good_as_promised_is_no_warning(
    dag: ArtifactDAG, passed: int, low: float | None, high: float | None
) -> None:
    fill(dag, passed=passed)
    learn(dag, rate=0.77, low=low, high=high)
    each = figures(dag)[ADAPTER, ""]
    assert each.promise is not None and each.warning == ""


def test_one_group_or_no_verdict_says_too_little_for_a_warning(dag: ArtifactDAG) -> None:
    learn(dag, rate=0.9, low=0.8, high=0.95)
    for n in range(6):
        dag.append_many(chain(f"c{n}", ["fail", "pass"], "g", ADAPTER))
    assert figures(dag)[ADAPTER, ""].warning == ""
    learn(dag, rate=0.9, low=0.8, high=0.95, adapter="b" * 64)
    dag.append_many(chain("s", ["silent"], "g", "b" * 64))
    each = figures(dag)["b" * 64, ""]
    assert (each.first_rate, each.warning) == (None, "") and each.promise is not None


def test_a_promotion_by_hand_promises_nothing_and_a_return_keeps_its_promise(dag: ArtifactDAG) -> None:
    learn(dag, rate=0.9, low=0.8, high=0.95)
    learn(dag, rate=0.6, low=0.5, high=0.7, adapter="b" * 64)
    with dag.writing() as connection:
        for action, digest in (("rollback", ADAPTER), ("promote", "c" * 64), ("rollback", "")):
            rounds.promote(
                connection, "me", action=action, adapter=digest and "out", adapter_digest=digest, actor="me", reason=""
            )
        found = promises(connection)
    assert {digest[0]: (each.round, each.rate) for digest, each in found.items()} == {"a": (1, 0.9), "b": (2, 0.6)}


def test_a_round_that_says_nothing_of_first_attempts_promises_nothing(dag: ArtifactDAG) -> None:
    for details in ({}, {"evidence": None}, {"evidence": {"candidate": None}}):
        with dag.writing() as connection:
            number = len({step.round for step in rounds.read(connection, "me")}) + 1
            for state in (State.PLANNED, State.EXTRACTED, State.TRAINED, State.MEASURED, State.PROMOTED):
                rounds.append(connection, "me", number, state, details if state is State.MEASURED else {})
            rounds.promote(
                connection, "me", action="promote", adapter="out", adapter_digest=str(number), actor="me", reason="",
                round_=number,
            )  # fmt: skip
            assert promises(connection) == {}


# -- the command


@pytest.mark.slow
def test_by_one_axis_shows_all_its_rows(dag: ArtifactDAG, installed: Place) -> None:
    for week in range(9):
        dag.append_many(chain(f"w{week}", ["fail", "pass"], f"g{week}", ADAPTER if week > 4 else "", week))
    found = json.loads(run(installed.target, "--by", "week", "--json"))
    assert list(found["breakdown"]) == ["week"] and len(found["breakdown"]["week"]) == 9
    assert (found["by_source"], found["items"], found["adapters"]) == ({"generator": 18}, 18, [])
    text = run(installed.target, "--by", "week")
    assert "2026-01-05" in text and "2026-03-02" in text and "--json" not in text
    over_time = json.loads(run(installed.target, "--by", "adapter,week", "--json"))
    rows = over_time["breakdown"]["adapter,week"]
    assert [(row["value"], row["week"]) for row in rows][4:6] == [("", "2026-02-02"), (ADAPTER, "2026-02-09")]
    assert [each["row"] for each in over_time["adapters"]] == rows
    text = run(installed.target, "--by", "adapter,week")
    assert "(no adapter)" in text and "2026-02-09" in text and "aaaaaaaaaaaa" in text


@pytest.mark.slow
def test_plain_stats_names_adapters_where_there_are_any(dag: ArtifactDAG, installed: Place) -> None:
    dag.append_many(chain("c", ["pass"], "g", ""))
    assert "by adapter" not in run(installed.target)
    dag.append_many(chain("d", ["pass"], "g", ADAPTER))
    text = run(installed.target)
    assert "by adapter" in text and "(no adapter)" in text and "aaaaaaaaaaaa" in text
    assert json.loads(run(installed.target, "--json"))["warnings"] == []


def test_an_unknown_axis_is_refused(installed: Place) -> None:
    with pytest.raises(UsageError, match=r"--by is 'colour'; allowed: action_pair \| source"):
        run(installed.target, "--by", "colour")
