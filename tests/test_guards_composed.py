"""guards/composed.py: the policies against their truth tables, the laws of composition, nesting, feedback."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn import ArtifactStatus, GuardContext, Specification, Verdict, all_of, any_of, load_guard, majority
from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import ComposedGuard, as_guard

YES, NO, NONE = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING
CONTEXT = GuardContext(specification=Specification(id="s", specification="say yes"))
POLICIES = {"all_of": all_of, "any_of": any_of, "majority": majority}


class Says:
    """A part that always says the same, after a pause, and notes that it ran."""

    version, constraints = "1", ""

    def __init__(self, status, feedback="", *, fatal=False, name="part", log=None, pause=0.0):
        self.name, self.log, self.pause = name, log, pause
        cause = "" if status is YES else f"{name}'s cause"
        self.verdict = Verdict(status=status, feedback=feedback, cause=cause, fatal=fatal)

    def __call__(self, artifact, context):
        time.sleep(self.pause)
        if self.log is not None:
            self.log.append(self.name)
        return self.verdict


def expected(policy, statuses):
    """The truth table of docs/guards.md, counted out."""
    yes, no, parts = statuses.count(YES), statuses.count(NO), len(statuses)
    if policy == "all_of":
        return YES if yes == parts else NO if no else NONE
    if policy == "any_of":
        return YES if yes else NO if no == parts else NONE
    return YES if yes > parts / 2 else NO if no >= parts / 2 else NONE


statuses = st.lists(st.sampled_from([YES, NO, NONE]), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.sampled_from(sorted(POLICIES)), statuses, st.booleans())
def test_the_status_is_the_truth_tables(policy, given_statuses, parallel):
    parts = [Says(status) for status in given_statuses]
    assert POLICIES[policy](*parts, parallel=parallel)("x", CONTEXT).status is expected(policy, given_statuses)


@settings(deadline=None)
@given(st.sampled_from(sorted(POLICIES)), statuses, st.booleans(), st.randoms())
def test_the_status_does_not_depend_on_the_order(policy, given_statuses, parallel, random):
    shuffled = random.sample(given_statuses, len(given_statuses))
    first, second = (
        POLICIES[policy](*[Says(status) for status in each], parallel=parallel)("x", CONTEXT)
        for each in (given_statuses, shuffled)
    )
    assert first.status is second.status


@settings(deadline=None)
@given(st.sampled_from(sorted(POLICIES)), statuses)
def test_in_order_it_stops_where_nothing_could_change_the_status(policy, given_statuses):
    log: list[int] = []
    parts = [Says(status, name=str(place), log=log) for place, status in enumerate(given_statuses)]
    verdict = POLICIES[policy](*parts)("x", CONTEXT)
    ran = len(log)
    assert [each.guard for each in verdict.verdicts] == [str(place) for place in range(ran)]
    reachable = [
        {expected(policy, given_statuses[:shown] + [rest] * (len(given_statuses) - shown)) for rest in (YES, NO, NONE)}
        for shown in range(len(given_statuses) + 1)
    ]
    assert len(reachable[ran]) == 1  # decided now
    assert all(len(each) > 1 for each in reachable[1:ran])  # and not before


@settings(deadline=None)
@given(statuses, statuses)
def test_nesting_is_flattening(left, right):
    """Definition 42: all_of(all_of(a), all_of(b)) says what all_of(a, b) says; any_of likewise."""
    for compose in (all_of, any_of):
        nested = compose(compose(*map(Says, left)), compose(*map(Says, right)))
        flat = compose(*map(Says, left + right))
        assert nested("x", CONTEXT).status is flat("x", CONTEXT).status


@settings(deadline=None)
@given(statuses)
def test_de_morgan(given_statuses):
    opposite = {YES: NO, NO: YES, NONE: NONE}
    all_say = all_of(*map(Says, given_statuses))("x", CONTEXT).status
    any_says = any_of(*[Says(opposite[status]) for status in given_statuses])("x", CONTEXT).status
    assert all_say is opposite[any_says]


def test_parts_that_run_side_by_side_are_heard_in_their_order():
    slow = Says(NO, "slow says no", name="slow", pause=0.2)
    quick = Says(NO, "quick says no", name="quick")
    verdicts = [all_of(slow, quick, Says(YES, "fine"), parallel=True)("x", CONTEXT) for _ in range(3)]
    assert {verdict.feedback for verdict in verdicts} == {"slow:\nslow says no\n\nquick:\nquick says no"}
    assert {verdict.cause for verdict in verdicts} == {"slow's cause"}
    assert [each.guard for each in verdicts[0].verdicts] == ["slow", "quick", "part"]
    assert all(each.seconds > 0 and each.guard_version for each in verdicts[0].verdicts)


def test_parts_really_run_at_once():
    barrier = threading.Barrier(3, timeout=30)  # each waits for the other two

    def check(artifact):
        barrier.wait()
        return True

    assert all_of(check, check, check, parallel=True)("x", CONTEXT).passed


def test_one_speaker_needs_no_name_and_those_who_disagree_are_not_heard():
    verdict = any_of(Says(NO, "not so"), Says(YES, "so"))("x", CONTEXT)
    assert (verdict.status, verdict.feedback) == (YES, "so")
    verdict = majority(Says(NO, "a"), Says(NONE, "b"), Says(NO, "a"), parallel=True)("x", CONTEXT)
    assert (verdict.status, verdict.feedback) == (NO, "a")
    verdict = all_of(Says(YES, "fine"), Says(NONE, "broken"))("x", CONTEXT)
    assert (verdict.status, verdict.feedback, verdict.cause) == (NONE, "broken", "guard failed")


def test_a_fatal_rejection_of_a_part_is_the_wholes():
    fatal = Says(NO, "never", fatal=True)
    for guard in (all_of(Says(YES), fatal), any_of(Says(NO), fatal), majority(Says(YES), fatal, Says(NO))):
        verdict = guard("x", CONTEXT)
        assert (verdict.status, verdict.fatal) == (NO, True)
    assert all_of(Says(NO), fatal, parallel=True)("x", CONTEXT).fatal
    assert not all_of(Says(NO), Says(NO))("x", CONTEXT).fatal
    assert not any_of(Says(YES), fatal, parallel=True)("x", CONTEXT).fatal


def test_a_part_that_raises_gives_none_and_one_that_answers_nonsense_is_named():
    raising = as_guard(lambda artifact: 1 / 0, "raising")
    verdict = all_of(Says(YES), raising)("x", CONTEXT)
    assert (verdict.status, verdict.verdicts[1].cause) == (NONE, "guard failed")
    assert "ZeroDivisionError" in verdict.feedback
    assert any_of(raising, Says(YES))("x", CONTEXT).passed
    for parallel in (False, True):
        with pytest.raises(GuardError, match="guard 'nonsense' returned '7'"):
            all_of(Says(YES), as_guard(lambda artifact: 7, "nonsense"), parallel=parallel)("x", CONTEXT)


def test_the_version_is_that_of_the_parts_and_how_they_are_joined():
    a, b = as_guard(lambda artifact: True, "a"), as_guard(lambda artifact: False, "b")
    guards = [all_of(a, b), all_of(b, a), any_of(a, b), all_of(a, b, parallel=True), all_of(a), all_of(a, all_of(b))]
    assert len({guard.version for guard in guards}) == len(guards)
    assert all_of(a, b).version == all_of(a, b, name="other").version
    assert all_of(a, b).name == "all_of(a, b)"


def test_constraints_are_the_parts_own_once_each():
    def part(constraints):
        guard = as_guard(lambda artifact: True, "p")
        guard.constraints = constraints
        return guard

    assert all_of(part("A"), part(""), part("B"), part("A")).constraints == "A\nB"
    assert all_of(part("A"), constraints="").constraints == ""


def test_what_cannot_be_composed_is_refused():
    with pytest.raises(UsageError, match="at least one guard"):
        all_of()
    with pytest.raises(UsageError, match="all_of, any_of, majority"):
        ComposedGuard("most_of", [load_guard("python")])
    with pytest.raises(GuardError, match="cannot be called"):
        any_of(load_guard("python"), 3)
