"""Views: weights, budgets, drops."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardlearn.errors import UsageError
from guardlearn.formatting import examples
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus, View
from training_samples import trace

BOTH = (View.FIRST_ATTEMPT, View.REPAIR)


def words(messages):
    return sum(len(message["content"].split()) for message in messages)


def shape(traces, views=BOTH, max_length=None):
    return examples(
        traces,
        Renderer(),
        views,
        count_tokens=words,
        count_completion=lambda text: len(text.split()) + 1,
        max_length=max_length,
    )


def test_a_first_attempt_shows_the_specification_and_a_repair_the_feedback_too():
    first, repair = shape([trace(1)]).examples
    assert first.prompt[-1]["content"] == trace(1).item.specification
    assert repair.prompt[-1]["content"].startswith(trace(1).item.specification)
    assert "House style" in repair.prompt[-1]["content"]
    assert first.prompt[0] == repair.prompt[0] == {"role": "system", "content": trace(1).item.constraints}
    assert first.completion == repair.completion == trace(1).item.artifact
    assert [first.id, repair.id] == ["item-001/first_attempt", "item-001/repair"]


@given(
    retries=st.lists(st.integers(0, 4), max_size=8),
    views=st.sampled_from([BOTH, BOTH[:1], BOTH[1:]]),
    limit=st.none() | st.integers(1, 80),
)
def test_every_applicable_row_is_there_or_listed_and_each_trace_weighs_one(retries, views, limit):
    traces = [trace(number, retries=count) for number, count in enumerate(retries)]
    formatted = shape(traces, views, limit)
    wanted = {f"{t.item.id}/{view}" for t in traces for view in views if view is View.FIRST_ATTEMPT or t.history}
    reported = {row for row, reason in formatted.left_out if "longer than" in reason}
    assert {row.id for row in formatted.examples} | reported == wanted
    assert len(formatted.examples) + len(reported) == len(wanted)
    assert sum(formatted.dropped.values()) == len(formatted.left_out)
    weights = {}
    for row in formatted.examples:
        weights[row.trace_id] = weights.get(row.trace_id, 0) + row.weight
        if limit is not None:
            assert words(row.prompt) + len(row.completion.split()) + 1 <= limit
    assert all(total == pytest.approx(1) for total in weights.values())


def test_the_oldest_feedback_goes_first_and_the_completion_is_whole():
    long = trace(1, retries=6)
    full = shape([long], (View.REPAIR,)).examples[0]
    tight = words(full.prompt) + len(full.completion.split()) + 1 - 10
    (row,) = shape([long], (View.REPAIR,), tight).examples
    text = row.prompt[-1]["content"]
    assert "(5)" in text and "(0)" not in text and "earlier feedback left out" in text
    assert row.completion == long.item.artifact


def test_a_dropped_view_leaves_its_trace_whole_weight_to_the_other():
    item = trace(1, retries=3)
    (first, _) = shape([item]).examples
    budget = words(first.prompt) + len(first.completion.split()) + 1
    formatted = shape([item], max_length=budget)
    assert [(row.view, row.weight) for row in formatted.examples] == [(View.FIRST_ATTEMPT, 1.0)]
    assert formatted.dropped == {f"repair row longer than {budget} tokens": 1}


def test_a_trace_without_history_has_no_repair():
    formatted = shape([trace(1, retries=0)], (View.REPAIR,))
    assert formatted.examples == []
    assert formatted.dropped == {"no history for the repair view": 1}


def test_a_rejected_artifact_is_never_imitated():
    good, bad = trace(1), trace(2)
    bad = msgspec.structs.replace(bad, item=msgspec.structs.replace(bad.item, status=ArtifactStatus.REJECTED))
    formatted = shape([bad, good])
    assert {row.trace_id for row in formatted.examples} == {good.item.id}
    assert formatted.left_out == [(bad.item.id, "not accepted: only an accepted artifact is worth imitating")]


@pytest.mark.parametrize("views", [(), ("repair", "repair"), ("first_attempt", "third")])
def test_wrong_views_are_refused_with_the_right_ones(views):
    with pytest.raises(UsageError, match="first_attempt, repair"):
        shape([trace(1)], views)


def test_a_budget_needs_counters():
    with pytest.raises(UsageError, match="count_tokens"):
        examples([trace(1)], Renderer(), max_length=10)
