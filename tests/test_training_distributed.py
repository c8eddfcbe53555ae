"""Two processes train one job, as `accelerate launch` starts them, with gloo on the CPU: they learn what one learns."""

import json
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from guardlearn.jobs import run_job
from training_samples import sample_job
from warm import kill

pytestmark = pytest.mark.slow

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def job(tiny_model, tmp_path_factory):
    """A job folder: 17 rows, 3 or 4 a step."""
    return sample_job(tmp_path_factory.mktemp("distributed") / "job", tiny_model, epochs=2.0, save_steps=2)


@pytest.fixture(scope="module")
def alone(job, tiny_model):
    """The job, trained by one process."""
    folder = shutil.copytree(job, job.with_name("alone"))
    run_job(folder, tiny_model)
    return folder


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def started(python, folder, model, monkeypatch):
    """Start two trainers of one job, with the environment that a launcher gives them."""
    port, processes = free_port(), []
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("MASTER_PORT", port)):
                patch.setenv(name, str(value))
            patch.setenv("MASTER_ADDR", "127.0.0.1")
            command = [python, "-m", "guardlearn.training", str(folder), "--model", str(model)]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return processes


def trained(python, folder, model, monkeypatch):
    """Train with two processes; return what each wrote to stdout."""
    said = [process.communicate(timeout=600) for process in started(python, folder, model, monkeypatch)]
    assert [err for _, err in said] == ["", ""]
    assert (folder / "adapter").is_dir(), (folder / "train.log").read_text(encoding="utf-8")[-3000:]
    return [[json.loads(line) for line in out.splitlines()] for out, _ in said]


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


def furthest(one, other):
    """Return the largest distance between two adapters' tensors, relative to their size."""
    assert one.keys() == other.keys()
    return max(((one[name] - other[name]).norm() / other[name].norm()).item() for name in one)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def assert_learned_the_same(folder, alone):
    assert [(line["step"], line["rows"], line["tokens"]) for line in lines(folder)] == [
        (line["step"], line["rows"], line["tokens"]) for line in lines(alone)
    ]
    want = [line["loss"] for line in lines(alone)]
    assert [line["loss"] for line in lines(folder)] == pytest.approx(want, rel=1e-5)
    assert result(folder)["validation_loss"] == pytest.approx(result(alone)["validation_loss"], rel=1e-5)
    assert furthest(adapter(folder), adapter(alone)) < 1e-5


def test_accelerate_launch_trains_the_same_adapter_and_one_process_writes(job, alone, tiny_model):
    folder = shutil.copytree(job, job.with_name("launched"))
    command = [sys.executable, *LAUNCH, "-m", "guardlearn.training", str(folder), "--model", str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert_learned_the_same(folder, alone)
    steps = [event["step"] for event in map(json.loads, done.stdout.splitlines()) if "loss" in event]
    assert steps == [line["step"] for line in lines(folder)]  # each is said once
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}


def test_a_batch_smaller_than_the_processes_are_many(tiny_model, tmp_path, warm, monkeypatch):
    one = sample_job(tmp_path / "one", tiny_model, batch_size=1, max_steps=3)
    two = shutil.copytree(one, tmp_path / "two")
    run_job(one, tiny_model)
    said = trained(warm.python, two, tiny_model, monkeypatch)
    assert_learned_the_same(two, one)
    assert said[1] == []


def test_both_killed_they_continue_to_the_same_adapter(job, alone, tiny_model, warm, monkeypatch):
    folder = shutil.copytree(job, job.with_name("killed"))
    main, other = started(warm.python, folder, tiny_model, monkeypatch)
    for line in main.stdout:
        if json.loads(line)["step"] >= 6:
            kill(main)
            break
    assert main.wait() == -signal.SIGKILL
    assert other.wait(timeout=60) != 0  # left alone, it ends
    for stream in (main.stdout, main.stderr, other.stdout, other.stderr):
        stream.close()
    assert not (folder / "adapter").exists()
    assert not (folder / "metrics.jsonl").exists()
    trained(warm.python, folder, tiny_model, monkeypatch)
    assert 4 <= result(folder)["resumed_at_step"] < len(lines(alone))
    assert_learned_the_same(folder, alone)


def test_what_one_process_began_two_go_on_with(job, alone, tiny_model, warm, monkeypatch):
    folder = shutil.copytree(job, job.with_name("widened"))
    command = [warm.python, "-m", "guardlearn.training", str(folder), "--model", str(tiny_model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if json.loads(line)["step"] >= 5:
            kill(process)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    trained(warm.python, folder, tiny_model, monkeypatch)
    assert result(folder)["resumed_at_step"] >= 4
    assert_learned_the_same(folder, alone)


def test_a_refusal_ends_every_process_and_is_said_once(job, tiny_model, warm, monkeypatch):
    folder = shutil.copytree(job, job.with_name("altered"))
    (folder / "train.jsonl").write_text("{}\n", encoding="utf-8")
    processes = started(warm.python, folder, tiny_model, monkeypatch)
    (_, first), (_, second) = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "train.jsonl was altered" in first
    assert first.count("\n") == 1
    assert second == ""


def test_one_process_needs_no_group(monkeypatch):
    from guardlearn.training import processes

    monkeypatch.setenv("WORLD_SIZE", "4")  # clusters set it, and start one process
    assert (processes.count(), processes.number(), processes.is_main()) == (1, 0, True)
    processes.wait()
    assert processes.from_main("here") == "here"
    assert processes.share(5) == (0, 5)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("rows", [0, 1, 2, 8, 13])
def test_shares_are_alike_and_leave_nothing_out(monkeypatch, count, rows):
    from guardlearn.training import processes

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(count))
    shares = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(processes.share(rows))
    assert [row for first, last in shares for row in range(first, last)] == list(range(rows))
    assert max(last - first for first, last in shares) - min(last - first for first, last in shares) <= 1
