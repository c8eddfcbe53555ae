"""Training that goes on from an adapter: where it starts, kill -9, and every parent that is not the job's."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from guardlearn.adapters import adapter_digest, publish, read_manifest
from guardlearn.digests import digest_text
from guardlearn.errors import JobError, ModelError
from guardlearn.jobs import TrainingConfig, rebuild_job, run_job, write_job
from guardlearn.traces import extract_traces
from guardlearn.training.job import train_job
from test_job_rebuild import ACCEPTED, PENDING, REJECTED, attempts, contents, fill
from training_samples import extraction, rewrite, sample_job, trace
from warm import kill

pytestmark = pytest.mark.slow

OLD = range(10)
NEW = [8, 9, 20, 21, 22, 23]
"""Traces of the second job: two that the parent learned, four that are new."""


@pytest.fixture(scope="module")
def parent(tiny_model, tmp_path_factory):
    """A finished adapter, published with what it learned from."""
    folder = tmp_path_factory.mktemp("parent")
    train_job(sample_job(folder / "job", tiny_model, max_steps=12, learning_rate=2e-3), tiny_model)
    return publish(folder / "job", folder / "adapter")


def continued(folder, model, parent, **settings):
    given = {"batch_size": 4, "max_steps": 6, "learning_rate": 1e-3, "save_steps": 2} | settings
    write_job(folder, extraction(*map(trace, NEW)), model, TrainingConfig(**given), parent=parent)
    return folder


@pytest.fixture
def job(tiny_model, parent, tmp_path):
    return continued(tmp_path / "job", tiny_model, parent)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def manifest_of(job):
    return json.loads((job / "manifest.json").read_text(encoding="utf-8"))


def farthest(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_it_starts_at_the_parents_weights_with_a_fresh_optimiser(tiny_model, parent, tmp_path):
    still = continued(tmp_path / "still", tiny_model, parent, max_steps=1, learning_rate=1e-9)
    train_job(still, tiny_model, parent=parent)
    assert farthest(weights(still / "adapter"), weights(parent)) < 1e-7
    base = continued(tmp_path / "base", tiny_model, None, max_steps=1, learning_rate=1e-9)
    train_job(base, tiny_model)
    assert farthest(weights(base / "adapter"), weights(parent)) > 1e-3
    assert losses(still)[0] < losses(base)[0] - 0.01  # the same rows; the parent knows their kind
    result = json.loads((still / "result.json").read_text(encoding="utf-8"))
    assert result["parent_adapter"] == adapter_digest(parent)
    assert json.loads((base / "result.json").read_text(encoding="utf-8"))["parent_adapter"] is None


def test_it_learns_on_and_the_same_job_gives_the_same_adapter(job, tiny_model, parent, tmp_path):
    twin = shutil.copytree(job, tmp_path / "twin")
    before = adapter_digest(parent)
    for folder in (job, twin):
        train_job(folder, tiny_model, parent=parent)
    assert farthest(weights(job / "adapter"), weights(twin / "adapter")) == 0
    assert farthest(weights(job / "adapter"), weights(parent)) > 1e-4
    assert losses(job)[-1] < losses(job)[0]
    assert adapter_digest(parent) == before
    train_job(job, tiny_model)  # finished: nobody is asked for the parent any more


def test_killed_it_continues_from_its_own_checkpoint_and_not_from_the_parent(
    job, tiny_model, parent, tmp_path, warm, warm_starts
):
    unbroken = shutil.copytree(job, tmp_path / "unbroken")
    train_job(unbroken, tiny_model, parent=parent)
    command = [warm.python, "-m", "guardlearn.training", str(job), "--model", str(tiny_model), "--parent", str(parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if json.loads(line)["step"] >= 4:
            kill(process)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (job / "adapter").exists()
    finished = run_job(job, tiny_model, parent=parent)
    assert 2 <= finished.result["resumed_at_step"] < 6
    assert losses(job) == pytest.approx(losses(unbroken), rel=1e-5)
    assert farthest(weights(job / "adapter"), weights(unbroken / "adapter")) < 1e-6


# What the trainer refuses


def test_a_parent_is_missing_superfluous_or_another_one(job, tiny_model, parent, tmp_path, warm_starts):
    with pytest.raises(JobError, match=f"goes on from the adapter of digest {adapter_digest(parent)}; give its folder"):
        run_job(job, tiny_model)
    plain = sample_job(tmp_path / "plain", tiny_model)
    with pytest.raises(JobError, match="starts from the base model; leave --parent"):
        train_job(plain, tiny_model, parent=parent)
    with pytest.raises(ModelError, match="is no adapter folder"):
        train_job(job, tiny_model, parent=tmp_path)
    other = shutil.copytree(parent, tmp_path / "other")
    raw = (other / "adapter_model.safetensors").read_bytes()
    (other / "adapter_model.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    command = [sys.executable, "-m", "guardlearn.training", str(job), "--model", str(tiny_model)]
    done = subprocess.run([*command, "--parent", str(other)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"digest is {adapter_digest(other)}, the manifest says {adapter_digest(parent)}" in done.stderr
    assert not (job / ".training").exists()


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("r", 8, "has r 8, .* trains with 16"),
        ("lora_alpha", 32, "has lora_alpha 32, .* trains with 16"),
        ("use_rslora", True, "has use_rslora True"),
        ("alpha_pattern", {"q_proj": 4}, "has alpha_pattern"),
        ("peft_type", "LOHA", "has peft_type 'LOHA'"),
    ],
)
def test_a_parent_of_another_rank_or_scale_is_refused(job, tiny_model, parent, tmp_path, setting, value, match):
    other = shutil.copytree(parent, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text(encoding="utf-8"))
    (other / "adapter_config.json").write_text(json.dumps(config | {setting: value}), encoding="utf-8")
    with pytest.raises(ModelError, match=match) as error:
        train_job(job, tiny_model, parent=other)
    assert "\n" not in str(error.value)


def test_a_parent_of_other_target_modules_is_refused(job, tiny_model, parent, tmp_path):
    from safetensors.torch import save_file

    other = shutil.copytree(parent, tmp_path / "other")
    fewer = {name: weight for name, weight in weights(parent).items() if "q_proj" not in name}
    save_file(fewer, other / "adapter_model.safetensors")
    manifest = manifest_of(job) | {"parent_adapter": adapter_digest(other)}
    (job / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ModelError, match=r"does not fit this job: .*24 tensors .* model's 28: .* target modules"):
        train_job(job, tiny_model, parent=other)
    assert not (job / "adapter").exists()


def test_an_adapter_config_that_is_no_json_is_one_line(job, tiny_model, parent, tmp_path):
    other = shutil.copytree(parent, tmp_path / "other")
    for text, match in (("{", "is no JSON"), ("[]", "holds no settings")):
        (other / "adapter_config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=match):
            train_job(job, tiny_model, parent=other)


# What the job says


def test_the_manifest_names_the_parent_and_what_it_learned(job, tiny_model, parent):
    manifest = manifest_of(job)
    assert manifest["parent_adapter"] == adapter_digest(parent)
    assert manifest["item_ids"] == [f"item-{n:03}" for n in NEW]
    assert manifest["inherited_item_ids"] == [f"item-{n:03}" for n in OLD if n not in NEW]
    learned = {digest_text(trace(n).item.specification) for n in {*OLD, *NEW}}
    assert manifest["specification_digests"] == sorted(learned)  # else the parent's could be measured on
    assert manifest["groups"] == sorted({*(f"family-{n % 3}" for n in NEW), *read_manifest(parent)["groups"]})


def test_what_a_grandparent_learned_is_not_forgotten(job, tiny_model, parent, tmp_path):
    train_job(job, tiny_model, parent=parent)
    child = publish(job, tmp_path / "child")
    write_job(tmp_path / "next", extraction(trace(30), trace(0)), tiny_model, TrainingConfig(), parent=child)
    inherited = manifest_of(tmp_path / "next")["inherited_item_ids"]
    assert set(inherited) == {f"item-{n:03}" for n in {*OLD, *NEW} - {0}}
    assert len(set(inherited)) == len(inherited)


def test_a_job_goes_on_only_from_a_finished_adapter_of_its_own_kind(tiny_model, parent, tmp_path):
    def refused(match, parent, **settings):
        with pytest.raises(ModelError, match=match) as error:
            continued(tmp_path / "job", tiny_model, parent, **settings)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "job").exists()

    refused("has lora_r 16, the job 4", parent, lora_r=4)
    refused("has lora_alpha 16, the job 32", parent, lora_alpha=32)
    refused("is no finished adapter to go on from", tmp_path)
    edited = shutil.copytree(parent, tmp_path / "edited")
    with (edited / "adapter_model.safetensors").open("ab") as file:
        file.write(b"\0")
    refused(f"was edited: .* its training left {adapter_digest(parent)}", edited)
    told = json.loads((parent / "guardlearn.json").read_text(encoding="utf-8"))
    told["manifest"]["base_model_digest"] = "0" * 64
    elsewhere = shutil.copytree(parent, tmp_path / "elsewhere")
    (elsewhere / "guardlearn.json").write_text(json.dumps(told), encoding="utf-8")
    refused("is of another base model", elsewhere)


def test_an_adapter_of_which_nothing_is_known_can_be_gone_on_from(tiny_model, parent, tmp_path):
    bare = shutil.copytree(parent, tmp_path / "bare")
    (bare / "guardlearn.json").unlink()
    job = continued(tmp_path / "job", tiny_model, bare, max_steps=1)
    assert manifest_of(job)["inherited_item_ids"] == []
    rewrite(job, "job.toml", (job / "job.toml").read_text(encoding="utf-8"))
    train_job(job, tiny_model, parent=bare)
    assert (job / "adapter").is_dir()


def test_a_job_with_a_parent_is_made_again_without_it(databases, tiny_model, parent, tmp_path):
    with databases.repository() as dag:
        fill(dag, attempts("one", REJECTED, ACCEPTED), attempts("two", REJECTED, PENDING, ACCEPTED))
        write_job(tmp_path / "job", extract_traces(dag), tiny_model, TrainingConfig(), parent=parent)
        dag.append_many(attempts("three", REJECTED, ACCEPTED))
        dag.append_event("two1", "status", value="rejected")
        rebuild_job(dag, manifest_of(tmp_path / "job"), tmp_path / "again", tiny_model)
    assert contents(tmp_path / "again") == contents(tmp_path / "job")
