"""Rows of kto and dpo: what is refused, batches, class weights, and whose completion a row is compared with."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.errors import JobError
from guardlearn.training.kto import class_weights
from guardlearn.training.methods import objective_for, plan_for, rows_for
from guardlearn.training.model import load_tokenizer
from guardlearn.training.rows import TokenRow
from test_methods_loss import SETTINGS, VERDICTS


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model), 1024)


def token_row(number, length=3, weight=1.0, prompt=None):
    return TokenRow(id=f"r{number}", prompt=prompt or [number], completion=[9] * length, weight=weight)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 60), st.integers(2, 9), st.sampled_from([0.4, 1.0, 2.5]), st.integers(0, 5))
def test_kto_never_has_a_batch_of_one_row_and_takes_each_row_once_a_pass(count, batch_size, epochs, seed):
    rows = [token_row(n, 1 + n % 7) for n in range(count)]
    batches = plan_for("kto", rows, batch_size, epochs=epochs, max_steps=None, seed=seed)
    assert min(map(len, batches)) >= 2
    assert max(map(len, batches)) <= batch_size + 1
    if epochs == 1.0:
        assert sorted(row for batch in batches for row in batch) == list(range(count))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (5, 1)])
def test_kto_refuses_what_gives_batches_of_one_row(count, batch_size):
    rows = [token_row(n) for n in range(count)]
    with pytest.raises(JobError, match="too few") as refused:
        plan_for("kto", rows, batch_size, epochs=1.0, max_steps=None, seed=0)
    assert "\n" not in str(refused.value)
    assert plan_for("dpo", rows, batch_size, epochs=1.0, max_steps=None, seed=0)


@pytest.mark.parametrize(
    ("method", "row", "match"),
    [
        ("kto", {"id": "r", "prompt": "p", "completion": "c"}, "r has the label None"),
        ("kto", {"id": "r", "prompt": "p", "completion": "c", "label": 1}, "r has the label 1"),
        ("kto", {"id": "r", "prompt": "p", "label": True}, "r needs a prompt"),
        ("dpo", {"id": "r", "prompt": "p", "chosen": "c"}, "r needs a prompt"),
        ("dpo", {"id": "r", "prompt": "p", "chosen": "c", "rejected": "c"}, "pair r prefers a text to itself"),
        ("dpo", {"id": "r", "prompt": "p", "chosen": "c", "rejected": "c" * 600}, "more than max_length"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(tokenizer, method, row, match):
    with pytest.raises(JobError, match=match) as refused:
        rows_for(method, [row], tokenizer, 64)
    assert "\n" not in str(refused.value)


def test_one_verdict_alone_is_refused_in_one_line(tokenizer):
    rows = rows_for("kto", [row for row in VERDICTS if not row["label"]], tokenizer, None)
    with pytest.raises(JobError, match="none of the 5 rows was accepted"):
        objective_for("kto", SETTINGS, 0, rows)


def test_both_verdicts_weigh_the_same_in_total_and_none_is_made_smaller(tokenizer):
    rows = rows_for("kto", VERDICTS, tokenizer, None)
    good, bad = class_weights(rows)
    totals = [
        factor * sum(r.weight for r in rows if r.label is label) for label, factor in ((True, good), (False, bad))
    ]
    assert totals[0] == pytest.approx(totals[1])
    assert min(good, bad) == 1.0


def test_a_rows_other_completion_answers_another_prompt_where_there_is_one(tokenizer):
    rows = rows_for("kto", VERDICTS, tokenizer, None)
    for row in rows:
        owners = [other for other in rows if other.row.completion == row.mismatched]
        assert owners
        assert all(other.row.prompt != row.row.prompt for other in owners)
    same = rows_for("kto", [VERDICTS[0], VERDICTS[1]], tokenizer, None)
    assert [row.mismatched for row in same] == [same[1].row.completion, same[0].row.completion]
    (alone,) = rows_for("kto", VERDICTS[:1], tokenizer, None)
    assert alone.mismatched == alone.row.completion
