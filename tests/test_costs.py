"""What an accepted artifact costs, and after how many tasks a round has paid."""

from __future__ import annotations

import json
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidences import attempts, evidence_of, spec
from guardlearn import report
from guardlearn.comparing import compare, cost, measured, pays_after, tasks_until_paid
from guardlearn.evidence import GroupCost, Performance, Spent, summarise
from guardlearn.report import words

BASE = {"a.1": [["fail", "pass"]], "a.2": [["fail"] * 4], "b.1": [["fail", "fail", "pass"]], "b.2": [["fatal"]]}
CANDIDATE = {"a.1": [["pass"]], "a.2": [["fail", "pass"]], "b.1": [["pass"]], "b.2": [["fatal"]]}


def test_everything_is_paid_for_what_is_accepted():
    """10 attempts of the base for 2 accepted artifacts, 5 of the candidate for 3, each 20 tokens and 1.5 s."""
    evidence = evidence_of(BASE, CANDIDATE, cost=(20, 1.5))
    before, after = cost(evidence.base), cost(evidence.candidate)
    assert (before.accepted, before.completion_tokens, before.prompt_tokens, before.seconds) == (2, 100.0, 50.0, 7.5)
    assert (after.accepted, after.completion_tokens) == (3, pytest.approx(100 / 3))
    assert (after.prompt_tokens, after.seconds) == (pytest.approx(50 / 3), 2.5)
    assert evidence.base.seconds == 15.0 and evidence.candidate.prompt_tokens == 50
    compared = compare(measured(evidence, "base"), measured(evidence))
    assert (compared.a.cost, compared.b.cost) == (before, after)


def test_nothing_accepted_has_no_price():
    found = cost(evidence_of({"a": [["fail"] * 4], "b": [["fatal"]]}, cost=(20, 1.5)).base)
    assert (found.accepted, found.completion_tokens, found.prompt_tokens, found.seconds) == (0, None, None, None)


def test_what_was_not_measured_is_not_known():
    evidence = evidence_of(BASE, CANDIDATE, cost=(20, 0.0))
    assert evidence.base.seconds is None and cost(evidence.base).seconds is None
    paid = pays_after(evidence.costs, spent_seconds=10.0)
    assert (paid.seconds, paid.tokens) == (None, None)
    assert "not known" in words.payback(paid)
    assert pays_after([], spent_seconds=1.0).seconds is None
    assert pays_after(evidence_of(BASE, cost=(20, 1.0)).costs, spent_seconds=1.0).seconds is None  # no candidate


def test_tokens_that_a_server_does_not_count_are_not_known():
    specs = [spec("a"), spec("b")]
    tried = attempts(specs, {"a": [["pass"]], "b": [["pass"]]}, 0, 2.0)
    silent = [
        msgspec.structs.replace(each, generation=msgspec.structs.replace(each.generation, tokens_known=n > 0))
        for n, each in enumerate(tried)
    ]
    about = {
        name: getattr(evidence_of(BASE), name)
        for name in "model adapter pairing leakage sampling guard guard_version digests versions".split()
    }
    evidence = summarise(specs, silent, tried, r_max=4, samples=1, seed=0, about=about)
    assert evidence.base.prompt_tokens is None and cost(evidence.base).completion_tokens is None
    paid = pays_after(evidence.costs, spent_seconds=1.0, spent_tokens=1.0)
    assert paid.tokens is None and paid.seconds is not None


def test_costs_stand_by_group_and_leave_the_pairs_free_of_clock_time():
    slow, fast = (evidence_of(BASE, CANDIDATE, cost=(20, seconds)) for seconds in (1.5, 0.5))
    assert slow.per_spec == fast.per_spec
    assert [(one.group, one.chains) for one in slow.costs] == [("a", 2), ("b", 2)]
    a, b = slow.costs
    assert (a.base.completion_tokens, a.base.seconds, a.candidate.seconds) == (6 * 20, 9.0, 4.5)
    assert (b.base.prompt_tokens, b.base.seconds, b.candidate.seconds) == (40, 6.0, 3.0)
    assert sum(one.base.seconds for one in slow.costs) == slow.base.seconds


def test_a_round_has_paid_after_so_many_tasks():
    """Group a saves 4.5 s on 2 tasks, group b 3 s on 2: 1.875 s a task."""
    evidence = evidence_of(BASE, CANDIDATE, cost=(20, 1.5))
    paid = pays_after(evidence.costs, spent_seconds=60.0, spent_tokens=5000)
    assert (paid.seconds.per_task, paid.seconds.tasks) == (1.875, 32)
    assert paid.seconds.low < 0 < paid.seconds.high  # two groups say little
    assert paid.seconds.tasks_high is None and paid.seconds.tasks_low < 32
    assert (paid.tokens.per_task, paid.tokens.tasks) == (1.25 * 30, 134)  # 1.25 attempts fewer a task, 30 tokens each
    line = words.payback(paid)
    assert line.startswith("The round has paid in seconds after 32 tasks (") and "to never; 1.88 seconds saved" in line
    assert "tokens after 134 tasks" in line and "\n" not in line


def test_a_candidate_that_costs_more_never_pays():
    back = pays_after(evidence_of(CANDIDATE, BASE, cost=(20, 1.5)).costs, spent_seconds=60.0)
    assert (back.seconds.per_task, back.seconds.tasks) == (-1.875, None)
    assert "never in seconds (1.88 seconds more a task)" in words.payback(back)


def test_the_interval_of_tasks_is_that_of_the_saving_turned_around():
    costs = [GroupCost(group=str(n), chains=4, base=spent(40 + n % 3), candidate=spent(20 + n % 2)) for n in range(30)]
    saving = pays_after(costs, spent_seconds=1000.0).seconds
    assert 0 < saving.low < saving.per_task < saving.high
    assert saving.tasks_low <= saving.tasks <= saving.tasks_high
    assert saving.tasks_high == tasks_until_paid(1000.0, saving.low)
    one = pays_after(costs[:1], spent_seconds=1000.0).seconds
    assert (one.per_task, one.tasks, one.low, one.tasks_low, one.tasks_high) == (5.0, 200, None, None, None)
    assert "no interval: one group" in words.payback(pays_after(costs[:1], spent_seconds=1000.0))


def spent(seconds):
    return Spent(prompt_tokens=None, completion_tokens=None, seconds=float(seconds))


AMOUNTS = st.floats(-1e6, 1e9, allow_nan=False)


@given(AMOUNTS, AMOUNTS)
@settings(max_examples=300)
def test_paid_after_n_tasks_exactly_where_n_savings_reach_what_was_spent(spent_, saved):
    tasks = tasks_until_paid(spent_, saved)
    needed, each = Fraction(spent_), Fraction(saved)
    if tasks is None:
        assert each <= 0 < needed
    else:
        assert tasks >= 0 and tasks * each >= needed
        assert tasks == 0 or (tasks - 1) * each < needed


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_saving_that_divides_what_was_spent_pays_on_the_dot(tasks, saved):
    assert tasks_until_paid(float(tasks * saved), float(saved)) == tasks
    assert tasks_until_paid(float(tasks * saved) + 0.5, float(saved)) == tasks + 1


def test_older_evidence_files_still_load(tmp_path):
    told = json.loads(report.to_json(evidence_of(BASE, CANDIDATE, cost=(20, 1.5))))
    del told["costs"]
    for side in ("base", "candidate"):
        del told[side]["seconds"], told[side]["prompt_tokens"]
    for pair in told["per_spec"]:
        del pair["digest"]
    for row in told["by_action_pair"]:
        del row["p_value"], row["adjusted_p_value"]
    (tmp_path / "evidence.json").write_text(json.dumps(told))
    evidence = report.load(tmp_path / "evidence.json")
    assert (cost(evidence.base).completion_tokens, cost(evidence.base).seconds, evidence.costs) == (100.0, None, [])
    assert {field for field in Performance.__struct_fields__} >= {"seconds", "prompt_tokens"}


def test_the_price_stands_in_the_table_that_every_rendering_shows(capsys):
    evidence = evidence_of(BASE, CANDIDATE, cost=(20, 1.5))
    (row,) = [row for row in words.figures(evidence) if row[0] == "paid for each accepted artifact"]
    assert row[1:] == ("100 tokens written, 50 read, 7.50 s", "33 tokens written, 17 read, 2.50 s")
    report.terminal(evidence)
    assert "100 tokens" in capsys.readouterr().out
