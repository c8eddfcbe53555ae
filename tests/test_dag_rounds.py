"""Rounds and promotions in ℛ: the order of steps, the fence between two loops, and what is live; on both databases."""

from __future__ import annotations

import threading

import pytest

from databases import Place
from guardlearn import ArtifactDAG
from guardlearn.dag import rounds
from guardlearn.dag.rounds import State
from guardlearn.errors import RepositoryError, UsageError


def step(place: Place, round_: int, state: str, learner: str = "me", **details: object) -> rounds.RoundStep:
    with ArtifactDAG.load(place.target) as dag, dag.writing() as connection:
        return rounds.append(connection, learner, round_, State(state), details)


def steps(place: Place, learner: str | None = None) -> list[tuple[int, str]]:
    with ArtifactDAG.load(place.target) as dag, dag.reading() as connection:
        return [(each.round, each.state.value) for each in rounds.read(connection, learner)]


def promote(place: Place, digest: str, action: str = "promote", learner: str = "me") -> None:
    with ArtifactDAG.load(place.target) as dag, dag.writing() as connection:
        rounds.promote(
            connection, learner, action=action, adapter=digest and f"out/{digest}", adapter_digest=digest,
            actor="me", reason="",
        )  # fmt: skip


def live(place: Place, learner: str = "me") -> str:
    with ArtifactDAG.load(place.target) as dag, dag.reading() as connection:
        found = rounds.live(connection, learner)
        return found.adapter_digest if found else ""


def test_a_round_goes_through_its_steps_in_order(installed: Place) -> None:
    for round_ in (1, 2):
        for state in ("planned", "extracted", "trained", "measured", "promoted" if round_ == 1 else "refused"):
            step(installed, round_, state, told=state)
    assert len(steps(installed)) == 10
    with ArtifactDAG.load(installed.target) as dag, dag.reading() as connection:
        (second,) = rounds.read(connection, "me", 1)[1:2]
        assert (second.state, second.details) == (State.EXTRACTED, {"told": "extracted"})
        (last,) = rounds.read(connection, "me", last=True)
        assert (last.round, last.state.decided) == (2, True)
        assert dag.verify().problems == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "round_", "state"),
    [
        ([], 1, "extracted"),
        ([], 2, "planned"),
        ([], 1, "refused"),
        (["planned"], 1, "planned"),
        (["planned"], 1, "trained"),
        (["planned"], 1, "promoted"),
        (["planned"], 2, "planned"),
        (["planned", "extracted"], 1, "planned"),
        (["planned", "refused"], 1, "refused"),
        (["planned", "refused"], 1, "extracted"),
    ],
)
def test_what_does_not_follow_is_refused(installed: Place, before: list[str], round_: int, state: str) -> None:
    for each in before:
        step(installed, 1, each)
    with pytest.raises(RepositoryError, match=f"round {round_} cannot be {state} now"):
        step(installed, round_, state)
    assert steps(installed) == [(1, each) for each in before]


@pytest.mark.parametrize("reached", [["planned"], ["planned", "extracted", "trained"]])
def test_a_round_may_be_refused_after_any_step(installed: Place, reached: list[str]) -> None:
    for state in [*reached, "refused"]:
        step(installed, 1, state)
    assert steps(installed)[-1] == (1, "refused")


def test_two_that_decide_one_round_decide_it_once(installed: Place) -> None:
    for state in ("planned", "extracted", "trained", "measured"):
        step(installed, 1, state)
    failures: list[str] = []

    def decide(state: str) -> None:
        try:
            step(installed, 1, state)
        except RepositoryError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=decide, args=(state,)) for state in ("promoted", "refused", "refused")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 2 and all("another process was faster" in failure for failure in failures)
    assert len(steps(installed)) == 5


def test_the_database_itself_keeps_a_second_decision_out(installed: Place) -> None:
    """Behind the library's back: the unique index is what holds."""
    for state in ("planned", "extracted", "trained", "measured", "refused"):
        step(installed, 1, state)
    with (
        ArtifactDAG.load(installed.target) as dag,
        pytest.raises(RepositoryError),
        dag.writing() as connection,
    ):
        connection.exec_driver_sql(
            "INSERT INTO rounds (number, learner, round, step, state, details, created_at, digest) "
            "SELECT 99, learner, round, step, 'promoted', details, created_at, digest FROM rounds WHERE step = 5"
        )
    assert steps(installed)[-1] == (1, "refused")


def test_learners_do_not_see_each_other(installed: Place) -> None:
    step(installed, 1, "planned")
    step(installed, 1, "planned", learner="other")
    step(installed, 1, "refused", learner="other")
    assert steps(installed, "me") == [(1, "planned")]
    promote(installed, "aa")
    assert (live(installed), live(installed, "other")) == ("aa", "")


def test_the_last_promotion_is_live(installed: Place) -> None:
    assert live(installed) == ""
    promote(installed, "aa")
    promote(installed, "bb")
    assert live(installed) == "bb"
    promote(installed, "aa", "rollback")
    assert live(installed) == "aa"
    promote(installed, "", "rollback")
    assert live(installed) == ""
    with ArtifactDAG.load(installed.target) as dag, dag.reading() as connection:
        assert [each.action for each in rounds.read_promotions(connection)] == ["promote"] * 2 + ["rollback"] * 2
        assert dag.verify().problems == []


def test_what_cannot_be_stored_is_refused(installed: Place) -> None:
    for learner in ("", "a\0b", "\ud800"):
        with pytest.raises(UsageError, match=r"learner .* cannot be stored"):
            step(installed, 1, "planned", learner=learner)
    with pytest.raises(UsageError, match="action is 'demote'"):
        promote(installed, "aa", "demote")
    assert steps(installed) == []
