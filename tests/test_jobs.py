"""The job folder: its bytes, its manifest, what it refuses."""

import json
import shutil

import pytest

from guardlearn.digests import digest_file, digest_text
from guardlearn.errors import JobError, ModelError, NoTracesError, UsageError
from guardlearn.jobs import TrainingConfig, run_job, write_job
from guardlearn.training.settings import read_job
from guardlearn.types import Side
from training_samples import extraction, rewrite, sample_extraction, sample_job, trace

FILES = ("job.toml", "train.jsonl", "validation.jsonl", "manifest.json")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_extraction_gives_the_same_bytes(tiny_model, tmp_path):
    first, second = sample_job(tmp_path / "a", tiny_model), sample_job(tmp_path / "deep" / "b", tiny_model)
    assert contents(first) == contents(second)
    assert set(contents(first)) == set(FILES)
    assert not any(str(tmp_path).encode() in data for data in contents(first).values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "deep"]


def test_what_training_reads_is_what_it_has_always_been(tiny_model, tmp_path):
    written = {name: digest_file(sample_job(tmp_path / "job", tiny_model) / name)[:16] for name in FILES[:3]}
    assert written == {
        "job.toml": "464827904444f125",
        "train.jsonl": "cc0755c5355bcd70",
        "validation.jsonl": "5240f0c5f4544995",
    }


def test_writing_the_same_job_again_changes_nothing_and_keeps_what_training_left(tiny_model, tmp_path):
    job = sample_job(tmp_path / "job", tiny_model)
    (job / ".training").mkdir()
    before = (job / "train.jsonl").stat().st_mtime_ns
    sample_job(job, tiny_model)
    assert (job / ".training").is_dir()
    assert (job / "train.jsonl").stat().st_mtime_ns == before


def test_another_job_or_a_foreign_folder_is_not_overwritten(tiny_model, tmp_path):
    job = sample_job(tmp_path / "job", tiny_model)
    before = contents(job)
    with pytest.raises(JobError, match=r"holds another job \(job.toml differs\)"):
        sample_job(job, tiny_model, seed=1)
    assert contents(job) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(JobError, match="holds no job"):
        sample_job(tmp_path / "mine", tiny_model)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_the_manifest_says_what_was_trained_on_and_what_was_left_out(tiny_model, tmp_path):
    long = trace(50, artifact="x = 1\n" * 400)
    validation = trace(51, side=Side.VALIDATION)
    found = extraction(trace(1), trace(2, retries=0), long, validation)
    summary = write_job(tmp_path / "job", found, tiny_model, TrainingConfig(max_length=400))
    manifest = json.loads((tmp_path / "job" / "manifest.json").read_text(encoding="utf-8"))
    assert (summary.rows, summary.validation_rows) == (3, 2)
    assert manifest["item_ids"] == ["item-001", "item-002"]
    assert manifest["specification_digests"] == sorted(digest_text(trace(n).item.specification) for n in (1, 2))
    assert manifest["groups"] == ["family-1", "family-2"]
    assert manifest["left_out"] == [
        ["item-050/first_attempt", "first_attempt row longer than 400 tokens"],
        ["item-050/repair", "repair row longer than 400 tokens"],
    ]
    assert sum(summary.dropped.values()) == 2
    assert manifest["checkpoint"] == {"seq": 99, "item_id": "item-last"}


def test_the_training_process_reads_every_setting(tiny_model, tmp_path):
    job = read_job(sample_job(tmp_path / "job", tiny_model, seed=7, max_steps=3, save_steps=2))
    assert (job.settings.seed, job.settings.max_steps, job.settings.save_steps) == (7, 3, 2)
    assert job.settings.base_model == tiny_model.name
    assert len(job.train) == job.manifest["rows"]
    assert len(job.validation) == job.manifest["validation_rows"]


def test_a_row_may_hold_any_character(tiny_model, tmp_path):
    artifact = "s = '\u2028\u0085<|im_end|>é'\n"
    write_job(tmp_path / "job", extraction(trace(1, artifact=artifact)), tiny_model)
    assert {row["completion"] for row in read_job(tmp_path / "job").train} == {artifact}


@pytest.mark.parametrize("name", FILES[:3])
def test_an_altered_file_is_named_with_its_digest(tiny_model, tmp_path, name):
    job = sample_job(tmp_path / "job", tiny_model)
    written = json.loads((job / "manifest.json").read_text(encoding="utf-8"))["files"][name]
    (job / name).write_text((job / name).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(
        JobError, match=f"{name} was altered: its SHA-256 is [0-9a-f]{{64}}, the manifest says {written}"
    ):
        read_job(job)


def test_unknown_settings_and_formats_are_refused(tiny_model, tmp_path):
    job = sample_job(tmp_path / "job", tiny_model)
    rewrite(job, "job.toml", (job / "job.toml").read_text(encoding="utf-8") + "warp_speed = 9\n")
    with pytest.raises(JobError, match="warp_speed"):
        read_job(job)
    (job / "manifest.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(JobError, match="format 99, this trainer reads 2, 3 and 4"):
        read_job(job)


def test_nothing_to_train_on_says_why(tiny_model, tmp_path):
    with pytest.raises(NoTracesError, match=r"no training row remains of 1 traces .*longer than 20 tokens: 1"):
        write_job(tmp_path / "job", extraction(trace(1)), tiny_model, TrainingConfig(max_length=20))
    with pytest.raises(NoTracesError, match="no trace on that side"):
        write_job(tmp_path / "job", extraction(trace(1, side=Side.VALIDATION)), tiny_model)
    assert list(tmp_path.iterdir()) == []


def test_a_model_folder_without_weights_or_tokenizer_is_refused(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "elsewhere")
    with pytest.raises(ModelError, match=r"holds no weights \(\*.safetensors\)"):
        write_job(tmp_path / "job", sample_extraction(), tmp_path / "model")
    shutil.copytree(tiny_model, tmp_path / "other", ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json"])
    with pytest.raises(ModelError, match="no usable tokenizer"):
        write_job(tmp_path / "job", sample_extraction(), tmp_path / "other")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0.0),
        ("max_steps", 0),
        ("learning_rate", float("nan")),
        ("warmup_ratio", 1.0),
        ("retry", "both"),
        ("backend", "magic"),
        ("method", "ppo"),
        ("base_model", "/models/mine"),
    ],
)
def test_wrong_settings_are_refused_by_name(setting, value):
    with pytest.raises(UsageError, match=setting):
        TrainingConfig(**{setting: value})


def test_a_process_that_cannot_start_is_one_line(tiny_model, tmp_path):
    job = sample_job(tmp_path / "job", tiny_model)
    with pytest.raises(JobError, match="cannot start /no/such/python"):
        run_job(job, tiny_model, python="/no/such/python")
