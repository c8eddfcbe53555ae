"""Guards as rewards: the shapes TRL hands over, "no verdict" as None, many at once, and two real steps of GRPO."""

import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn import guard_reward
from guardlearn.demo import house_style
from guardlearn.errors import DataError, GuardError, UsageError
from guardlearn.guards import judge
from guardlearn.types import ArtifactStatus, GuardContext, Specification, Verdict
from rules import guard, specification

REWARDS = {"crash": None, "forbidden": -1.0, "no": -1.0}


def metadata(count):
    return [specification(n).metadata for n in range(count)]


def test_accepted_rejected_and_no_verdict():
    reward = guard_reward(guard)
    answers = ["w0", "no", "crash", "forbidden", "so w4 it is"]
    assert reward(["p"] * 5, answers, metadata=metadata(5)) == [1.0, -1.0, None, -1.0, 1.0]
    assert reward.no_verdicts == 1
    assert reward.__name__ == "word"
    reward.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["right", "no", "crash", "forbidden"]), max_size=8), st.integers(1, 3))
def test_each_answer_gets_its_own_guards_verdict_in_order_whatever_the_shape(said, workers):
    texts = [f"w{n}" if each == "right" else each for n, each in enumerate(said)]
    want = [1.0 if each == "right" else REWARDS[each] for each in said]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    in_parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    asked = [[{"role": "system", "content": "s"}, {"role": "user", "content": f"Task {n}"}] for n in range(len(texts))]
    reward = guard_reward(guard, workers=workers)
    for completions in (texts, messages, in_parts):
        assert reward(asked, completions, metadata=metadata(len(texts)), trainer_state=None) == want
    as_json = [json.dumps(each) for each in metadata(len(texts))]
    assert reward(asked, texts, metadata=as_json, completion_ids=[[1]] * len(texts)) == want
    reward.close()


class Seen:
    name, version, constraints = "seen", "1", ""

    def __init__(self):
        self.specifications = []

    def __call__(self, artifact, context):
        self.specifications.append(context.specification)
        return Verdict(status=ArtifactStatus.ACCEPTED)


def asked_of(prompts, **columns):
    seen = Seen()
    reward = guard_reward(seen, workers=1, **columns.pop("settings", {}))
    reward(prompts, ["a"] * len(prompts), **columns)
    reward.close()
    return seen.specifications


def test_what_was_asked_comes_from_the_columns_or_else_from_the_prompt():
    line = {"id": "s7", "specification": "Write f.", "group": "g", "metadata": {"word": "w7"}}
    chat = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "last"},
    ]
    assert [s.specification for s in asked_of(["plain text", chat])] == ["plain text", "last"]
    assert [s.specification for s in asked_of(["p"], specification=["Write f."])] == ["Write f."]
    for given_ in (line, json.dumps(line), line | {"constraints": None}):
        (told,) = asked_of(["p"], specification=[given_])
        assert (told.id, told.specification, told.group, told.metadata) == ("s7", "Write f.", "g", {"word": "w7"})
    (told,) = asked_of(["p"], specification=[line], metadata=[{"more": 1}])
    assert told.metadata == {"word": "w7", "more": 1}
    (told,) = asked_of(["p"], task=["Write g."], settings={"specification_column": "task"})
    assert told.specification == "Write g."
    (told,) = asked_of(["p"], specification=["{not json"])
    assert told.specification == "{not json"


@pytest.mark.parametrize(
    ("columns", "kind", "match"),
    [
        ({"metadata": [{"word": "w"}]}, DataError, "column 'metadata' has 1 values for 2 prompts"),
        ({"metadata": ["word", "word"]}, DataError, "row 0 has the metadata 'word'"),
        ({"specification": [7, 7]}, DataError, "row 0 has the specification 7"),
        ({"specification": ["a", {"specification": 7}]}, DataError, "row 1 has no usable specification"),
        ({"specification": ["a", {"specifications": "b"}]}, DataError, "row 1 has no usable specification"),
    ],
)
def test_a_column_that_says_nothing_usable_is_named(columns, kind, match):
    with pytest.raises(kind, match=match) as refused:
        guard_reward(guard)(["p", "p"], ["a", "a"], **columns)
    assert "\n" not in str(refused.value)


def test_what_is_no_guard_and_what_does_not_match_is_refused():
    with pytest.raises(GuardError, match="cannot be called"):
        guard_reward(7)
    with pytest.raises(UsageError, match="guard_workers is 0"):
        guard_reward(guard, workers=0)
    with pytest.raises(UsageError, match="2 prompts and 1 completions"):
        guard_reward(guard)(["p", "p"], ["a"])
    with pytest.raises(GuardError):
        guard_reward(lambda artifact: "well")(["p"], ["a"])


def test_guards_run_at_once():
    together = threading.Barrier(3, timeout=20)

    def waits(artifact):
        together.wait()  # breaks unless three are in here at a time
        return True

    assert guard_reward(waits, workers=3)(["p"] * 3, ["a"] * 3) == [1.0] * 3


@pytest.mark.slow
def test_verdicts_are_those_of_the_loop_sandbox_and_limits_included():
    code = 'def f(x: int) -> int:\n    """Return a sum."""\n    {}\n'
    told = {"signature": "f(x: int) -> int", "cases": [[[1], 2]]}
    texts = [
        code.format(body) for body in ("return x + 1", "return x", "while True: pass", "__import__('os')._exit(0)")
    ]
    context = GuardContext(specification=Specification(id="s", specification="Write f.", metadata=told))
    want = [judge(house_style, text, context) for text in texts]
    got = guard_reward(house_style)(["Write f."] * 4, texts, metadata=[told] * 4)
    assert got == [1.0, -1.0, -1.0, -1.0]
    assert [verdict.passed for verdict in want] == [reward == 1.0 for reward in got]


def test_two_real_steps_of_grpo(tiny_model, tmp_path):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    calls = []

    def vowels(artifact, context):
        calls.append(context.specification)
        if len(calls) % 5 == 0:
            raise RuntimeError("the checker broke")
        return (ord(artifact[-1]) % 2 == 0, "even, please") if artifact else (False, "say something")

    reward = guard_reward(vowels, workers=1)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Task {n}"}],
            "specification": f"Task {n}",
            "metadata": {"word": f"w{n}"},
        }
        for n in range(4)
    ]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    config = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=12, learning_rate=1e-3, beta=0.0, bf16=False, use_cpu=True, report_to="none",
        save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 2
    assert len(calls) >= 8
    assert {spec.metadata["word"] for spec in calls} <= {f"w{n}" for n in range(4)}
    assert all(spec.specification.startswith("Task ") for spec in calls)
    logged = [line for line in trainer.state.log_history if f"rewards/{reward.__name__}/mean" in line]
    assert len(logged) == 2
    assert all(-1.0 <= line[f"rewards/{reward.__name__}/mean"] <= 1.0 for line in logged)
    assert reward.no_verdicts == len(calls) // 5
    assert any(not torch.equal(before[name], weight) for name, weight in model.named_parameters())
