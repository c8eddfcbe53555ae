"""The stages of a job: each method alone, SFT and then KTO or DPO, and what the second begins at."""

import json
import math
import shutil

import pytest

from guardlearn.errors import JobError
from guardlearn.jobs import run_job
from guardlearn.training.job import train_job
from staged import agree, farthest, metrics, result, staged_job, weights
from training_samples import sample_job

pytestmark = pytest.mark.slow


def two_stages(folder, model, method, **settings):
    """Write a job of two stages of 6 steps each."""
    given = {"max_steps": 6, "learning_rate": 2e-3, "second_learning_rate": 1e-3, "batch_size": 4} | settings
    return staged_job(folder, model, method, **given)


@pytest.fixture(scope="module", params=["sft+dpo", "sft+kto"])
def trained(request, tiny_model, tmp_path_factory):
    """A finished job of two stages, with the events it said."""
    folder, events = tmp_path_factory.mktemp("stages") / "job", []
    two_stages(folder, tiny_model, request.param, sft_term=0.0)
    train_job(folder, tiny_model, say=events.append)
    return request.param, folder, events


def test_both_stages_are_trained_and_told_apart(trained):
    method, folder, events = trained
    lines, told = metrics(folder), result(folder)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["stage"] for line in lines] == [1] * 6 + [2] * 6
    assert [stage["method"] for stage in told["stages"]] == method.split("+")
    assert (told["method"], told["steps"], told["resumed_at_step"]) == (method, 12, 0)
    assert told["rows"] == sum(stage["rows"] for stage in told["stages"])
    assert not (folder / ".training").exists()
    steps = [event for event in events if "loss" in event]
    assert [(event["step"], event["steps"], event["stage"], event["stages"]) for event in steps] == [
        (step, 12, 1 + (step > 6), 2) for step in range(1, 13)
    ]
    assert steps[-1]["eta_seconds"] == 0 < steps[5]["eta_seconds"] < 600  # there is another stage after step 6
    ids = {line["id"] for line in map(json.loads, (folder / "train.second.jsonl").read_text().splitlines())}
    assert {row for line in lines[6:] for row in line["rows"]} <= ids


def test_the_second_begins_at_the_first_with_itself_as_the_reference_and_a_fresh_optimiser(trained):
    method, folder, _ = trained
    (first, second), lines = result(folder)["stages"], metrics(folder)
    assert first["validation_loss"]["trained"] < first["validation_loss"]["base"]
    # nothing has moved from the reference: the loss is what every margin of 0 gives
    unmoved = math.log(2) if method == "sft+dpo" else 0.5
    assert second["validation_loss"]["before"] == pytest.approx(unmoved, rel=1e-4)
    assert second["validation_loss"]["trained"] < second["validation_loss"]["before"]
    assert lines[6]["loss"] == pytest.approx(unmoved, rel=1e-4)
    assert lines[6]["learning_rate"] == pytest.approx(1e-3)
    assert lines[5]["learning_rate"] < 1e-3  # the first one's had fallen


def test_a_second_stage_that_learns_nothing_leaves_the_first_ones_weights(tiny_model, tmp_path):
    job = two_stages(tmp_path / "job", tiny_model, "sft+dpo", second_learning_rate=1e-12)
    train_job(job, tiny_model)
    alone = sample_job(tmp_path / "alone", tiny_model, max_steps=6, learning_rate=2e-3)
    train_job(alone, tiny_model)
    assert farthest(weights(job / "adapter"), weights(alone / "adapter")) < 1e-7
    assert [line["loss"] for line in metrics(job)][:6] == [line["loss"] for line in metrics(alone)]


@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_one_stage_of_another_method(tiny_model, tmp_path, method):
    job = staged_job(tmp_path / "job", tiny_model, method, max_steps=4, learning_rate=1e-3)
    train_job(job, tiny_model)
    told, lines = result(job), metrics(job)
    assert told["method"] == told["stages"][0]["method"] == method
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all("stage" not in line for line in lines)
    assert told["validation_loss"]["trained"] < told["validation_loss"]["base"]


def test_speed_share_of_the_ceiling_and_what_was_trained_are_told(trained):
    _, folder, events = trained
    told = result(folder)
    for name in ("tokens_per_second", "completion_tokens_per_second", "share_of_ceiling", "seconds_a_step"):
        assert told[name] > 0 and all(stage[name] > 0 for stage in told["stages"])
    assert told["share_of_ceiling"] < 1
    assert told["completion_tokens_per_second"] < told["tokens_per_second"]
    assert all(0 < event["share_of_ceiling"] < 1 for event in events if "loss" in event)
    assert (told["micro_batch_size"], told["notes"], told["processes"]) == (4, [], 1)


def test_people_are_told_the_stage_the_speed_and_the_share(tiny_model, tmp_path, warm_starts):
    job, said = two_stages(tmp_path / "job", tiny_model, "sft+dpo", max_steps=2), []
    run_job(job, tiny_model, on_progress=lambda *event: said.append(event))
    notes = [note for _, _, note in said]
    assert "stage 2 of 2, dpo: 17 rows" in notes
    assert any(
        note.startswith("stage 1 of 2, loss ") and note.endswith("% of this machine's ceiling)") for note in notes
    )
    assert {steps for _, steps, _ in said} == {4}


# What another version, or another hand, has left


def test_a_folder_begun_by_an_older_version_is_refused_and_stays(tiny_model, tmp_path):
    job = sample_job(tmp_path / "job", tiny_model, max_steps=2)
    (job / ".training" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(JobError, match=r"begun by an older guardlearn.* remove .*\.training to start over"):
        train_job(job, tiny_model)
    assert (job / ".training" / "checkpoint-1").is_dir()
    shutil.rmtree(job / ".training")
    train_job(job, tiny_model)
    assert result(job)["steps"] == 2
    assert not (job / "failure.json").exists()


def test_a_stage_goes_on_as_it_was_planned_and_never_with_other_rows(tiny_model, tmp_path):
    job = sample_job(tmp_path / "job", tiny_model, max_steps=2)
    from guardlearn.training import rows as planning

    planned = [[3, 1], [2]]  # what another version would have made of it
    stage = job / ".training" / "stage-1"
    stage.mkdir(parents=True)
    from guardlearn.training.model import load_tokenizer
    from guardlearn.training.stages import _rows_digest

    lines = [json.loads(line) for line in (job / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens = planning.tokenise(lines, load_tokenizer(str(tiny_model), 1024), 1024)
    (stage / "plan.json").write_text(json.dumps({"rows": _rows_digest(tokens), "batches": planned}))
    other = shutil.copytree(job, tmp_path / "other")
    train_job(job, tiny_model)
    assert [line["rows"] for line in metrics(job)] == [[lines[row]["id"] for row in batch] for batch in planned]
    (other / ".training" / "stage-1" / "plan.json").write_text(json.dumps({"rows": "0" * 64, "batches": planned}))
    with pytest.raises(JobError, match="stage-1 was begun with other rows"):
        train_job(other, tiny_model)
    assert not (other / "adapter").exists()


def test_a_missing_or_altered_second_file_is_named(tiny_model, tmp_path):
    job = two_stages(tmp_path / "job", tiny_model, "sft+dpo")
    kept = (job / "train.second.jsonl").read_bytes()
    (job / "train.second.jsonl").write_bytes(kept + b"{}\n")
    with pytest.raises(JobError, match=r"train\.second\.jsonl was altered: its SHA-256 is"):
        train_job(job, tiny_model)
    (job / "train.second.jsonl").unlink()
    with pytest.raises(JobError, match=r"holds no readable train\.second\.jsonl"):
        train_job(job, tiny_model)
    assert not (job / ".training").exists()


def test_rows_of_the_second_stage_are_looked_at_before_the_first_is_trained(tiny_model, tmp_path):
    job = two_stages(tmp_path / "job", tiny_model, "sft+dpo")
    rows = [json.loads(line) for line in (job / "train.second.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[3]["rejected"] = "x = 1\n" * 900
    (job / "train.second.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    agree(job)
    with pytest.raises(JobError, match=f"{rows[3]['id']} has .* more than max_length 1024"):
        train_job(job, tiny_model)
    assert not (job / ".training").exists()
