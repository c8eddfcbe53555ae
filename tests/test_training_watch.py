"""What a training does about losses that are no numbers or run away, and about the validation loss; bad input."""

import json
import math
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardlearn.errors import BackendUnavailable, JobError, ModelError, UsageError
from guardlearn.jobs import run_job
from guardlearn.training.failures import TrainingStopped
from guardlearn.training.job import train_job
from guardlearn.training.watching import Divergence, Looks
from staged import agree, farthest, metrics, overfitting, result, staged_job, weights
from training_samples import sample_job

# Losses


@given(st.lists(st.floats(0.0, 4.0), min_size=1, max_size=60), st.integers(1, 60))
def test_losses_that_stay_within_two_of_the_start_never_stop_a_training(losses, steps):
    watch = Divergence(steps)
    for step, loss in enumerate(losses, start=1):
        watch.add(2.0 + loss / 2, step)
        assert not watch.suspicious


@given(st.floats(0.1, 5.0), st.integers(0, 20), st.integers(16, 200))
def test_losses_that_run_away_stop_it_after_a_window_above_the_limit(start, calm, steps):
    watch = Divergence(steps)
    for step in range(1, watch.window + calm + 1):
        watch.add(start, step)
        assert not watch.suspicious
    high = 100 * start + 100
    with pytest.raises(TrainingStopped, match="the loss diverged: its mean over") as caught:
        for step in range(watch.window + calm + 1, 1000):
            watch.add(high, step)
            assert watch.suspicious
    assert caught.value.step == 2 * watch.window + calm
    assert watch.window == min(8, max(4, steps // 5))


@given(st.floats(0.1, 5.0), st.integers(1, 7))
def test_a_few_high_losses_between_others_stop_nothing(start, high):
    watch = Divergence(100)
    for step in range(1, 9):
        watch.add(start, step)
    watch.add(1e6, 9)
    seen = []
    for step in range(10, 18):
        seen.append(watch.suspicious)
        if step < 9 + high:
            watch.add(start, step)
    assert all(seen)  # one such loss is in every mean of 8
    with pytest.raises(TrainingStopped, match="the loss is nan"):
        watch.add(math.nan, 18)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 4))
def test_looks_know_the_first_lowest_loss_and_when_patience_is_at_an_end(losses, patience):
    looks, best, since = Looks(patience), None, 0
    for step, loss in enumerate(losses, start=1):
        looks.add(10 * step, float(loss))
        if best is None or loss < best[0]:
            best, since = (loss, 10 * step), 0
        else:
            since += 1
        assert looks.best == best[1]
        assert looks.exhausted == (patience > 0 and since >= patience)
    with pytest.raises(TrainingStopped, match="the validation loss is inf"):
        looks.add(1000, math.inf)


# Trainings that come to nothing


@pytest.fixture(scope="module")
def knowing(tiny_model, tmp_path_factory):
    """A model that has learned the job's rows: from there a loss can run away, from chance it cannot."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("knowing") / "tiny")
    job = sample_job(folder.with_name("job"), folder)
    rows = [json.loads(line) for line in (job / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in rows]
    pairs = zip(texts, rows, strict=True)
    batch = tokenizer(
        [text + row["completion"] + "<|im_end|>" for text, row in pairs], padding=True, return_tensors="pt"
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def refused(python, folder, model):
    """Run the trainer's command; return its one line of error."""
    command = [python, "-m", "guardlearn.training", str(folder), "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert not (folder / "adapter").exists() and not (folder / "result.json").exists()
    return done.stderr.removeprefix("error: ").removesuffix("\n")


def failure(folder):
    return json.loads((folder / "failure.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_it_and_the_same_command_does_not_go_on(tiny_model, tmp_path, warm, warm_starts):
    job = sample_job(tmp_path / "job", tiny_model, max_steps=12, learning_rate=1e30, save_steps=1, warmup_ratio=0.5)
    line = refused(warm.python, job, tiny_model)
    told = failure(job)
    assert line == told["reason"]
    assert line.startswith(f"training stopped at step {told['step']} of 12: the loss is nan; ")
    assert (told["stage"], told["kind"]) == ("sft", "TrainingStopped")
    good = job / ".training" / "stage-1" / f"checkpoint-{told['step'] - 2}"
    assert f"the last good weights are in {good}; write the job with a learning_rate below 1e+30" in line
    assert f"starts over once {job / '.training'} is removed" in line
    kept = weights(good)
    assert all(weight.isfinite().all() for weight in kept.values())
    steps = len((job / ".training" / "stage-1" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert steps == told["step"] - 1
    log = (job / "train.log").read_text(encoding="utf-8")
    assert refused(warm.python, job, tiny_model) == line  # and no model was loaded for it
    with pytest.raises(JobError) as caught:
        run_job(job, tiny_model)
    assert str(caught.value) == line
    assert failure(job) | {"at": None} == told | {"at": None}
    assert farthest(weights(good), kept) == 0
    assert (job / "train.log").read_text(encoding="utf-8") == log
    shutil.rmtree(job / ".training")
    assert refused(warm.python, job, tiny_model) == line  # it started over, and came to the same end


@pytest.mark.slow
def test_losses_that_run_away_stop_it_with_the_weights_from_before_they_did(knowing, tmp_path):
    job = sample_job(tmp_path / "job", knowing, max_steps=40, learning_rate=1.0, save_steps=1, warmup_ratio=0.5)
    with pytest.raises(JobError, match=r"step \d+ of 40: the loss diverged: its mean over 8 steps is .*; the last "):
        train_job(job, knowing)
    told = failure(job)
    losses = [json.loads(line)["loss"] for line in (job / ".training/stage-1/metrics.jsonl").read_text().splitlines()]
    first = min(losses[0], sum(losses[:8]) / 8)
    means = [sum(losses[max(0, at - 7) : at + 1]) / min(8, at + 1) for at in range(len(losses))]
    above = [at + 1 for at, mean in enumerate(means) if at >= 7 and mean > max(3 * first, first + 2)]
    kept = max(int(path.name.removeprefix("checkpoint-")) for path in (job / ".training/stage-1").glob("checkpoint-*"))
    assert kept == above[0] - 1  # none was saved while the losses were suspicious
    assert told["step"] == above[0] + 7
    assert not (job / "adapter").exists()


def test_a_later_success_takes_the_reason_away(tiny_model, tmp_path):
    job = sample_job(tmp_path / "job", tiny_model, max_steps=1)
    with pytest.raises(ModelError):
        train_job(job, tmp_path / "no-model")
    told = failure(job)
    assert told["step"] is None and "no-model" in told["reason"]
    train_job(job, tiny_model)
    assert not (job / "failure.json").exists()


def test_who_finds_the_job_locked_leaves_no_reason(tiny_model, tmp_path, monkeypatch):
    import fcntl

    from guardlearn.training import job as training_job

    job = sample_job(tmp_path / "job", tiny_model, max_steps=1)
    monkeypatch.setattr(training_job, "_LOCK_SECONDS", 0.0)
    with (job / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="being trained by another process"):
            train_job(job, tiny_model)
    assert not (job / "failure.json").exists()  # the other one's is to come


# The validation loss


@pytest.fixture(scope="module")
def overfitted(tiny_model, tmp_path_factory):
    """A job that looks at its validation loss and trains on to the end."""
    job = overfitting(tmp_path_factory.mktemp("looks") / "job", tiny_model)
    train_job(job, tiny_model)
    return job


@pytest.mark.slow
def test_the_validation_loss_is_looked_at_every_few_steps_and_changes_nothing(overfitted, tiny_model, tmp_path):
    told = result(overfitted)
    looked = {line["step"]: line["validation_loss"] for line in metrics(overfitted) if "validation_loss" in line}
    assert list(looked) == list(range(2, 25, 2))
    assert told["evaluations"] == {str(step): loss for step, loss in looked.items()}
    assert looked[24] == pytest.approx(told["validation_loss"]["trained"], rel=1e-6)
    assert (told["kept_step"], told["stopped_early"]) == (24, False)
    blind = sample_job(tmp_path / "blind", tiny_model, max_steps=24, learning_rate=5e-3, batch_size=4)
    train_job(blind, tiny_model)
    assert farthest(weights(blind / "adapter"), weights(overfitted / "adapter")) == 0
    assert result(blind)["evaluations"] == {}


@pytest.mark.slow
def test_keeping_the_best_publishes_the_weights_of_the_lowest_validation_loss(overfitted, tiny_model, tmp_path):
    losses = {int(step): loss for step, loss in result(overfitted)["evaluations"].items()}
    lowest = min(losses, key=losses.get)
    assert lowest < 24 and losses[24] > losses[lowest] + 1e-3, losses
    job = overfitting(tmp_path / "job", tiny_model, keep="best")
    train_job(job, tiny_model)
    told = result(job)
    assert (told["kept_step"], told["steps"]) == (lowest, 24)
    assert told["validation_loss"]["trained"] == pytest.approx(losses[lowest], rel=1e-6)
    assert farthest(weights(job / "adapter"), weights(overfitted / "adapter")) > 1e-4


def test_it_stops_early_once_so_many_looks_saw_nothing_better(overfitted, tiny_model, tmp_path):
    losses = {int(step): loss for step, loss in result(overfitted)["evaluations"].items()}
    seen = list(losses.values())
    end = next(step for at, step in enumerate(losses) if at - seen.index(min(seen[: at + 1])) >= 2)
    assert end < 24
    job = overfitting(tmp_path / "job", tiny_model, early_stopping=2, keep="best")
    train_job(job, tiny_model)
    told = result(job)
    assert (told["steps"], told["planned_steps"], told["stopped_early"]) == (end, 24, True)
    assert told["kept_step"] == end - 4
    assert metrics(job) == metrics(overfitted)[:end]


@pytest.mark.parametrize("settings", [{"keep": "best"}, {"early_stopping": 1}, {"eval_steps": 1}])
def test_who_asks_for_the_validation_loss_needs_validation_rows(tiny_model, tmp_path, settings):
    job = staged_job(tmp_path / "job", tiny_model, "sft", max_steps=1, **settings)
    (job / "validation.jsonl").write_text("", encoding="utf-8")
    agree(job)
    with pytest.raises(JobError, match=f"{next(iter(settings))} ask.* and sft has no validation row"):
        train_job(job, tiny_model)
    assert not (job / ".training").exists()


# Trackers


def test_a_tracker_is_never_required_and_named_where_it_lacks(tiny_model, tmp_path, monkeypatch):
    from guardlearn.training import progress

    job = sample_job(tmp_path / "job", tiny_model, max_steps=1)
    with pytest.raises(UsageError, match="--log-to 'wandb' is unknown; choose tensorboard or trackio"):
        train_job(job, tiny_model, log_to="wandb")
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"--log-to trackio needs trackio; run: pip install trackio"):
        train_job(job, tiny_model, log_to="trackio")
    assert not (job / ".training").exists()
    train_job(job, tiny_model)


def test_tensorboard_gets_every_step(tiny_model, tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job = staged_job(tmp_path / "job", tiny_model, "sft", max_steps=3, eval_steps=2)
    train_job(job, tiny_model, log_to="tensorboard")
    events = loading.EventAccumulator(str(job / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in metrics(job)
    ]
    assert [event.step for event in events.Scalars("train/validation_loss")] == [2, 3]


# Bad input


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def with_template(model, template):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    return model


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
LAST_FIRST = "{% for m in messages | reverse %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
FUSSY = "{{ raise_exception('Only user and assistant roles are supported!') }}"


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (
            THINKS,
            "cannot be masked: of item-000/first_attempt, it writes '<think>' where a prompt stands alone",
        ),
        (LAST_FIRST, "cannot be masked: of item-000/first_attempt"),
        (FUSSY, "cannot write item-000/first_attempt .*Only user and assistant roles are supported!"),
    ],
)
def test_a_chat_template_that_cannot_be_masked_is_refused(model, tmp_path, warm, template, match):
    job = sample_job(tmp_path / "job", model, max_steps=1)
    with_template(model, template)
    written = json.loads((job / "manifest.json").read_text(encoding="utf-8"))
    from guardlearn.prompts import PromptConfig, Renderer, template_digest
    from guardlearn.training.model import load_tokenizer

    renderer = Renderer(config=PromptConfig(**written["prompts"]))
    written["template_digest"] = template_digest(load_tokenizer(str(model), 1024), renderer)
    (job / "manifest.json").write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(JobError, match=match) as caught:
        train_job(job, model)
    assert "\n" not in str(caught.value)
    assert not (job / ".training").exists()


def test_rows_longer_than_the_models_positions_are_refused_under_every_backend(model, tmp_path):
    job = sample_job(tmp_path / "job", model, max_steps=1, max_length=2049)
    for backend in ("auto", "trl"):
        with pytest.raises(ModelError, match=r"max_length is 2049, .* has 2048 positions .* max_length 2048 at most"):
            train_job(job, model, backend=backend)
    assert not (job / ".training").exists()
    shutil.rmtree(job)
    train_job(sample_job(job, model, max_steps=1, max_length=2048), model)


def test_a_model_without_a_layer_to_adapt_is_refused(model, tmp_path):
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(AutoConfig.from_pretrained(model, num_hidden_layers=0)).save_pretrained(model)
    job = sample_job(tmp_path / "job", model, max_steps=1)
    with pytest.raises(ModelError, match="has no layer for the adapters to sit on") as caught:
        train_job(job, model)
    assert "\n" not in str(caught.value)
    assert not (job / ".training").exists()


def test_a_parent_of_another_base_is_refused_even_where_it_would_fit(tiny_model, tmp_path):
    from guardlearn.adapters import adapter_digest, publish

    train_job(sample_job(tmp_path / "before", tiny_model, max_steps=1), tiny_model)
    parent = publish(tmp_path / "before", tmp_path / "parent")
    job = sample_job(tmp_path / "job", tiny_model, max_steps=1)
    manifest = json.loads((job / "manifest.json").read_text(encoding="utf-8"))
    manifest["parent_adapter"] = adapter_digest(parent)
    (job / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    told = json.loads((parent / "guardlearn.json").read_text(encoding="utf-8"))
    told["manifest"]["base_model_digest"] = "0" * 64
    (parent / "guardlearn.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ModelError, match=f"is of another base model .digest {'0' * 64}. than "):
        train_job(job, tiny_model, parent=parent)
    assert not (job / ".training").exists()
