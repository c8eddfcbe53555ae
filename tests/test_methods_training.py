"""Learning from rejections from end to end: each method trains, and a kill in the second stage changes nothing."""

import json
import signal
import subprocess
import sys

import pytest

from guardlearn.adapters import read_manifest
from guardlearn.cli import main
from guardlearn.dag import ArtifactDAG
from guardlearn.jobs import run_job
from guardlearn.loop import incremental_training_loop
from guardlearn.loop.checkpoint import adapter_of
from guardlearn.pipeline import train_from_repository
from guardlearn.training import add_lora_adapters, load_model_for_training
from guardlearn.training.settings import read_job
from rejections import METHODS, config, fill, write
from warm import kill


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("warm_starts")
def test_a_repository_becomes_an_adapter_by_each_method(tiny_model, tmp_path, method):
    with fill(ArtifactDAG.create(tmp_path / "runs.db")) as dag:
        settings = config(method, max_steps=3, learning_rate=1e-3, second_learning_rate=1e-3)
        result = train_from_repository(dag, str(tiny_model), tmp_path / "out", config=settings)
    stages = len(method.split("+"))
    assert result.result["steps"] == 3 * stages
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "out" / "job" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 3 * stages
    manifest = json.loads((tmp_path / "out" / "job" / "manifest.json").read_text(encoding="utf-8"))
    assert (result.rows, "once0" in manifest["item_ids"]) == (manifest["rows"], True)


def start(python, folder, model):
    command = [python, "-m", "guardlearn.training", str(folder), "--model", str(model)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft+kto", "sft+dpo"])
def test_killed_in_the_second_stage_it_goes_on_with_the_same_losses(tiny_model, tmp_path, method, warm, warm_starts):
    with fill(ArtifactDAG.create(tmp_path / "runs.db")) as dag:
        settings = {"max_steps": 10, "save_steps": 3, "learning_rate": 1e-3, "second_learning_rate": 1e-3}
        for name in ("killed", "unbroken"):
            write(dag, tmp_path / name, tiny_model, method, **settings)
    process = start(warm.python, tmp_path / "killed", tiny_model)
    for line in process.stdout:
        if json.loads(line)["step"] >= 15:
            kill(process)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    (kept,) = (tmp_path / "killed" / ".training").rglob("reference.safetensors")
    before = kept.stat().st_mtime_ns, kept.read_bytes()
    process = start(warm.python, tmp_path / "killed", tiny_model)
    first = json.loads(process.stdout.readline())
    assert first["step"] >= 10  # the first stage is not done again
    after = None
    for line in process.stdout:
        if json.loads(line).get("loss") is not None and after is None and kept.exists():
            after = kept.stat().st_mtime_ns, kept.read_bytes()
    assert process.wait() == 0
    process.stdout.close()
    assert after in (before, None)
    run_job(tmp_path / "unbroken", tiny_model)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text("utf-8").splitlines()]
        for name in ("killed", "unbroken")
    ]
    assert len(losses[0]) == 20
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_starts")
def test_the_command_takes_a_method(tiny_model, tmp_path, capsys, monkeypatch):
    fill(ArtifactDAG.create(tmp_path / "runs.db")).close()

    def run(folder, method):
        said = ["train", tmp_path / "runs.db", "--model", tiny_model, "--max-steps", 2, "--json", "-o", folder]
        monkeypatch.setattr(sys, "argv", ["guardlearn", *map(str, said), "--method", method])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr()

    code, said = run(tmp_path / "out", "dpo")
    assert (code, json.loads(said.out)["result"]["steps"]) == (0, 2)
    assert read_job(tmp_path / "out" / "job").settings.method == "dpo"
    code, said = run(tmp_path / "other", "ppo")
    assert code == 2
    assert "method 'ppo' is unknown" in said.err


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_incremental_loop_learns_from_rejections_too(tiny_model, tmp_path, method):
    model, tokenizer = load_model_for_training(str(tiny_model), 400, load_in_4bit=False)
    model = add_lora_adapters(model, r=4)
    told = []
    with fill(ArtifactDAG.create(tmp_path / "runs.db")) as dag:
        given = {"min_new_traces": 2, "epochs": 1.0, "learner": "me", "method": method, "batch_size": 4}
        result = incremental_training_loop(
            dag, model, tokenizer, output_dir=tmp_path / "out", on_progress=lambda *event: told.append(event), **given
        )
        again = incremental_training_loop(dag, model, tokenizer, output_dir=tmp_path / "out", **given)
    (checkpoint,) = result.checkpoints
    assert again.checkpoints == []
    manifest = read_manifest(adapter_of(checkpoint, tmp_path / "out"))
    assert {"twice0", "twice2", "once0", "once1"} <= set(manifest["item_ids"])
    assert manifest["training"]["method"] == method
    assert len([event for event in told if event[0] == 0]) == len(method.split("+"))
    assert any(weight.abs().sum() > 0 for name, weight in model.named_parameters() if "lora_B" in name)
