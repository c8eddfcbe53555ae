"""Training through its real process: the loss curve, kill -9, refusals; and the batches it really sees."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

from guardlearn.errors import JobError, ModelError
from guardlearn.jobs import run_job
from guardlearn.training.rows import plan
from training_samples import rewrite, sample_job
from warm import kill

STEPS = 25  # 17 rows, batches of 4: 5 steps a pass, 5 passes


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A tiny model is fastest on one thread, above all where other tests want the cores too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def job(tiny_model, tmp_path_factory):
    """A job folder, not yet trained."""
    return sample_job(tmp_path_factory.mktemp("jobs") / "job", tiny_model, epochs=5.0, save_steps=4)


@pytest.fixture(scope="module")
def unbroken(job, tiny_model):
    """A copy of the job, trained in one go; with its progress."""
    folder = shutil.copytree(job, job.with_name("unbroken"))
    progress = []
    result = run_job(folder, tiny_model, on_progress=lambda *event: progress.append(event))
    return folder, result, progress


def start(python, folder, model):
    command = [python, "-m", "guardlearn.training", str(folder), "--model", str(model)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refused(python, folder, model):
    """Run the trainer's command; return its one line of error."""
    process = start(python, folder, model)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert out == ""
    assert err.count("\n") == 1
    assert not (folder / "adapter").exists()
    return err


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_every_pass_trains_every_row_once_and_the_loss_falls(job, unbroken):
    folder, finished, progress = unbroken
    ids = {json.loads(line)["id"] for line in (job / "train.jsonl").read_text(encoding="utf-8").splitlines()}
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for first in range(0, STEPS, 5):
        assert sorted(row for line in lines[first : first + 5] for row in line["rows"]) == sorted(ids)
    assert lines[-1]["loss"] < lines[0]["loss"]
    losses = finished.result["validation_loss"]
    assert losses["trained"] < losses["base"]
    assert [event[:2] for event in progress] == [(step, STEPS) for step in [*range(STEPS + 1), STEPS]]
    assert finished.result["rows"] == len(ids) == 17


def test_what_is_left_is_an_adapter_metrics_and_an_account_and_no_noise(job, unbroken):
    folder, finished, _ = unbroken
    left = {path.name for path in folder.iterdir()} - {path.name for path in job.iterdir()}
    assert left == {"adapter", "metrics.jsonl", "result.json", "train.log", ".lock"}
    config = json.loads((finished.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny"
    wanted = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert sorted(name.rsplit(".")[-1] for name in config["target_modules"]) == sorted(wanted * 2)  # both layers
    assert set(finished.result) >= {"versions", "host", "seconds", "steps", "loss", "tokens_per_second"}


def test_a_finished_job_returns_at_once(unbroken, tiny_model):
    folder, finished, _ = unbroken
    before = (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_job(folder, tiny_model) == finished
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_continues_with_the_same_losses(
    job, unbroken, tiny_model, warm, warm_starts
):
    folder = shutil.copytree(job, job.with_name("killed"))
    process = start(warm.python, folder, tiny_model)
    for line in process.stdout:
        if json.loads(line)["step"] >= 10:
            kill(process)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    assert not (folder / "adapter").exists()
    assert not (folder / "result.json").exists()
    finished = run_job(folder, tiny_model)
    assert 8 <= finished.result["resumed_at_step"] < STEPS
    assert [(line["step"], line["rows"]) for line in metrics(folder)] == [
        (line["step"], line["rows"]) for line in metrics(unbroken[0])
    ]
    losses = [line["loss"] for line in metrics(folder)]
    assert losses == pytest.approx([line["loss"] for line in metrics(unbroken[0])], rel=1e-5)
    assert finished.result["validation_loss"] == pytest.approx(unbroken[1].result["validation_loss"], rel=1e-5)


def test_killed_between_the_last_moves_it_is_finished_without_training_again(job, unbroken, tiny_model, warm_starts):
    folder, finished, _ = unbroken
    torn = shutil.copytree(folder, folder.with_name("torn"))
    work = torn / ".training" / "finished"
    work.mkdir(parents=True)
    (torn / "adapter").rename(work / "adapter")  # as after a kill between the moves: the adapter comes last
    assert run_job(torn, tiny_model).result == finished.result
    assert not (torn / ".training").exists()


def test_a_half_written_checkpoint_is_never_resumed_from(tmp_path):
    from guardlearn.training.trl import last_checkpoint

    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors").write_bytes(b"")
    assert last_checkpoint(tmp_path) is None
    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
    for step in (4, 8):
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert not (tmp_path / "checkpoint-12").exists()


def test_two_processes_never_train_one_job(job, tiny_model, monkeypatch):
    import fcntl

    from guardlearn.training import job as training_job

    folder = shutil.copytree(job, job.with_name("locked"))
    monkeypatch.setattr(training_job, "_LOCK_SECONDS", 0.0)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(JobError, match="being trained by another process"):
            training_job.train_job(folder, tiny_model)


def test_the_trainer_ends_with_the_process_that_started_it(job, tiny_model, warm):
    folder = shutil.copytree(job, job.with_name("orphan"))
    command = [warm.python, "-m", "guardlearn.training", str(folder), "--model", str(tiny_model), "--attached"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    process.stdin.close()
    assert process.wait(timeout=600) == 1
    assert not (folder / "adapter").exists()


# What is refused: one line, exit code 1


def test_an_altered_job_is_refused_with_the_digest(job, tiny_model, warm_starts):
    folder = shutil.copytree(job, job.with_name("altered"))
    text = (folder / "train.jsonl").read_text(encoding="utf-8")
    (folder / "train.jsonl").write_text(text.replace("Return a sum", "Return the sum", 1), encoding="utf-8")
    written = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]["train.jsonl"]
    line = refused(sys.executable, folder, tiny_model)
    assert "train.jsonl was altered" in line
    assert written in line
    with pytest.raises(JobError, match=r"train\.jsonl was altered"):
        run_job(folder, tiny_model)


def rewritten(job, name, change):
    folder = shutil.copytree(job, job.with_name(name))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    rewrite(folder, "train.jsonl", "".join(json.dumps(row | change(row)) + "\n" for row in rows))
    return folder


def test_every_label_masked_is_refused(job, tiny_model, warm):
    folder = rewritten(job, "masked", lambda row: {"completion": ""})
    assert "every label is masked: none of the 17 rows" in refused(warm.python, folder, tiny_model)


def test_a_row_too_long_is_refused_by_name_and_never_cut(job, tiny_model, warm):
    long = {"completion": "x = 1\n" * 900}
    folder = rewritten(job, "long", lambda row: long if row["id"] == "item-004/repair" else {})
    line = refused(warm.python, folder, tiny_model)
    assert "row item-004/repair has" in line
    assert "more than max_length 1024" in line


def test_a_model_without_weights_or_another_model_is_refused(job, tiny_model, tmp_path, warm):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="not the base model the job was written for"):
        from guardlearn.training.job import train_job

        train_job(job, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert "holds no weights" in refused(warm.python, job, tmp_path / "model")


def test_no_job_folder_is_one_line(tmp_path, tiny_model):
    assert "is no job folder" in refused(sys.executable, tmp_path, tiny_model)


# The batches


def test_the_plan_is_seeded_even_and_whole():
    lengths = [number * 7 % 50 + 5 for number in range(46)]
    batches = plan(lengths, 8, epochs=3.0, max_steps=None, seed=3)
    assert batches == plan(lengths, 8, epochs=3.0, max_steps=None, seed=3)
    assert batches != plan(lengths, 8, epochs=3.0, max_steps=None, seed=4)
    assert len(batches) == 18
    for first in range(0, 18, 6):
        assert Counter(row for batch in batches[first : first + 6] for row in batch) == Counter(range(46))
    assert {len(batch) for batch in batches} == {7, 8}
    assert plan(lengths, 8, epochs=3.0, max_steps=4, seed=3) == batches[:4]
    assert len(plan(lengths, 8, epochs=0.5, max_steps=None, seed=3)) == 3


def test_padding_is_what_grouping_by_length_saves():
    lengths = [number * 37 % 200 + 20 for number in range(64)]
    batches = plan(lengths, 8, epochs=1.0, max_steps=None, seed=0)
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    plain = sum(8 * max(lengths[first : first + 8]) for first in range(0, 64, 8))
    assert padded < plain
