"""kill -9 of trainings at random steps: the same command goes on to the very bytes of a training that nobody killed."""

import random
import shutil

import pytest

from staged import overfitting, result, staged_job
from training_kills import MOMENTS, finish, kill_often, same_end, state

SETTINGS = {"max_steps": 12, "learning_rate": 2e-3, "second_learning_rate": 1e-3, "batch_size": 4, "save_steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings", "seed"),
    [
        ("sft", {}, 1),
        ("sft+dpo", {}, 2),
        ("sft+kto", {"keep": "best", "eval_steps": 1}, 3),
        ("overfitting", {"keep": "best", "early_stopping": 2, "save_steps": 2}, 4),
    ],
)
def test_killed_at_three_random_steps_it_ends_in_the_same_bytes(tiny_model, tmp_path, warm, method, settings, seed):
    if method == "overfitting":
        job = overfitting(tmp_path / "job", tiny_model, **settings)
    else:
        job = staged_job(tmp_path / "job", tiny_model, method, **SETTINGS | settings)
    unbroken = shutil.copytree(job, tmp_path / "unbroken")
    finish(warm.python, unbroken, tiny_model)
    steps = result(unbroken)["steps"]
    assert result(unbroken)["stopped_early"] is (method == "overfitting")
    seen = kill_often(warm.python, job, tiny_model, steps, random.Random(seed), [None] * 3)
    assert seen["killed"] == 3, seen
    same, far = same_end(job, unbroken)
    assert same, far
    kept = ("kept_step", "evaluations", "stopped_early", "validation_loss", "loss")
    told, expected = result(job), result(unbroken)
    assert [{name: stage[name] for name in kept} for stage in told["stages"]] == [
        {name: stage[name] for name in kept} for stage in expected["stages"]
    ]
    assert told["resumed_at_step"] > 0 == expected["resumed_at_step"]


@pytest.mark.slow
def test_killed_while_it_saves_between_the_stages_and_at_the_end(tiny_model, tmp_path, warm):
    job = staged_job(tmp_path / "job", tiny_model, "sft+dpo", **SETTINGS | {"max_steps": 3, "save_steps": 1})
    unbroken = shutil.copytree(job, tmp_path / "unbroken")
    finish(warm.python, unbroken, tiny_model)
    seen = kill_often(warm.python, job, tiny_model, 6, random.Random(5), list(MOMENTS))
    assert seen["killed"] >= 4, seen
    assert same_end(job, unbroken)[0]
    assert state(job) == "all of it"
