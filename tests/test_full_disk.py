"""A disk that fills while something is saved: one line says so, nothing half-written is left, and again it succeeds.

The failures are the system's own. Most come from a limit on the size of a file (RLIMIT_FSIZE), which a write meets as
it meets a full disk; /dev/full gives the real one, and small disks are mounted where that is allowed.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from guardlearn import add_lora_adapters, load_model_for_training, merge_adapter, save_trained_model
from guardlearn.adapters import adapter_digest, publish, read_manifest
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import JobError, ModelError, write_failure
from guardlearn.jobs import run_job
from training_samples import sample_job

REASON = "File too large"
LIMIT_BYTES = 60_000
"""Above the tiny model's tokenizer and below its adapters' weights."""


@contextlib.contextmanager
def files_up_to(size):
    """Let no file of this process, or of one it starts, grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(kind, size, call):
    """Call under the limit; return the error's one line."""
    with files_up_to(size), pytest.raises(kind) as caught:
        call()
    line = str(caught.value)
    assert REASON in line and "make room" in line
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def model(tiny_model):
    """A model with fresh adapters whose weights are above the limit, and its tokenizer."""
    network, tokenizer = load_model_for_training(str(tiny_model), load_in_4bit=False)
    network = add_lora_adapters(network, r=16, seed=1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return network, tokenizer


@pytest.fixture
def adapter(model, tmp_path):
    """A saved adapter."""
    save_trained_model(*model, str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_saving_an_adapter(model, tmp_path):
    folder = tmp_path / "saved"
    assert str(folder) in refused(ModelError, LIMIT_BYTES, lambda: save_trained_model(*model, str(folder)))
    assert names(tmp_path) == []
    save_trained_model(*model, str(folder))
    digest = adapter_digest(folder)
    refused(ModelError, 1_000, lambda: save_trained_model(*model, str(folder)))  # the tokenizer does not fit either
    assert names(tmp_path) == ["saved"]
    assert adapter_digest(folder) == digest


def test_publishing_an_adapter(adapter, tmp_path):
    job, to = tmp_path / "job", tmp_path / "published"
    shutil.copytree(adapter, job / "adapter")
    for name in ("manifest", "result"):
        (job / f"{name}.json").write_text(json.dumps({"name": name}))
    refused(ModelError, LIMIT_BYTES, lambda: publish(job, to))
    assert names(tmp_path) == ["adapter", "job"]
    publish(job, to)
    digest = adapter_digest(to)
    (job / "manifest.json").write_text(json.dumps({"name": "another"}))
    refused(ModelError, LIMIT_BYTES, lambda: publish(job, to))
    assert (adapter_digest(to), read_manifest(to)) == (digest, {"name": "manifest"})
    assert names(tmp_path) == ["adapter", "job", "published"]


def test_merging(tiny_model, adapter, tmp_path):
    def merge():
        return merge_adapter(tiny_model, adapter, tmp_path / "merged", prompts=["Write a function."])

    refused(ModelError, LIMIT_BYTES, merge)
    refused(ModelError, 100, merge)  # not even config.json
    assert names(tmp_path) == ["adapter"]
    assert merge().agreement.prompts == 1


@pytest.mark.slow
def test_training_stops_with_one_line_and_the_same_command_continues(tiny_model, tmp_path, warm_starts):
    job = sample_job(tmp_path / "job", tiny_model, max_steps=2)
    before = names(job)
    line = refused(JobError, LIMIT_BYTES, lambda: run_job(job, tiny_model))
    assert line.startswith(f"{job} cannot be written ({REASON}; ") and "the same command continues" in line
    assert set(names(job)) - set(before) == {".lock", ".training", "failure.json", "train.log"}
    finished = run_job(job, tiny_model)
    assert finished.result["steps"] == 2
    assert not (job / ".training").exists()
    assert adapter_digest(job / "adapter") == finished.result["adapter_digest"]


# Commands


LOG = [
    {"prompt": f"Add {n}", "answer": f"x + {n} {'-' * 3000} {passed}", "passed": passed, "error": "no !",
     "session": f"c{n}", "at": 10 * n + passed}
    for n in range(40) for passed in (False, True)
]  # fmt: skip
MAPPING = "spec=prompt,artifact=answer,accepted=passed,feedback=error,chain=session,time=at,group=prompt"


def guardlearn(*arguments, limit=None, stdout=subprocess.PIPE):
    """Run a command, no file of it beyond `limit` bytes."""
    script = (
        "import resource, runpy, sys\n"
        f"limit = {limit}\n"
        "if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "runpy.run_module('guardlearn', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def one_line(done, *parts):
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("guardlearn: ")]
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LOG))
    return path


@pytest.fixture(scope="module")
def db(log):
    path = log.with_name("runs.db")
    assert guardlearn("import", log, "--into", path, "--map", MAPPING).returncode == 0
    return path


@pytest.mark.usefixtures("commands_start_warm")
def test_appending_to_the_repository_is_all_or_nothing(log, tmp_path):
    path, first = tmp_path / "runs.db", tmp_path / "first.jsonl"
    first.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    command = ["import", first, "--into", path, "--map", MAPPING]
    assert guardlearn(*command).returncode == 0
    command[1] = log
    one_line(guardlearn(*command, limit=100_000), str(path), "disk")
    with ArtifactDAG.load(path) as dag:
        assert dag.verify().problems == []
        assert dag.last_seq == 4
    assert json.loads(guardlearn(*command, "--json").stdout)["new"] == len(LOG) - 4


ON_SMALL_DISKS = """
import subprocess, sys
from pathlib import Path
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import RepositoryError

disk = Path(sys.argv[1])
for size in range(200, 2000, 100):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
    try:
        ArtifactDAG.create(disk / "runs.db").close()
    except RepositoryError as error:
        assert "runs.db" in str(error) and "make room" in str(error), error
        assert list(disk.iterdir()) == []
        print("refused")
    else:
        with ArtifactDAG.load(disk / "runs.db") as dag:
            assert dag.verify().problems == []
        print("whole")
    subprocess.run(["umount", disk], check=True)
"""


@pytest.mark.slow
def test_a_new_repository_is_whole_or_not_there(tmp_path):
    """A disk may have room for its tables, and none for noting in the file how others write to it."""
    spaces = (["unshare", "--mount"], ["unshare", "--mount", "--user", "--map-root-user"])
    mount = ["mount", "-t", "tmpfs", "tmpfs", tmp_path]
    able = [space for space in spaces if shutil.which("unshare") and not _fails([*space, *mount])]
    if not able:
        pytest.skip("a small disk cannot be mounted here")
    command = [*able[0], sys.executable, "-c", ON_SMALL_DISKS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert found == sorted(found)  # refused up to some size, whole from there on
    assert set(found) == {"refused", "whole"}


def _fails(command):
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.slow
@pytest.mark.usefixtures("commands_start_warm")
def test_extracting_rows(db, tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text("older\n")
    one_line(guardlearn("extract", db, "-o", out, limit=40_000), str(out), REASON)
    assert names(tmp_path) == ["rows.jsonl"]
    assert out.read_text() == "older\n"
    assert guardlearn("extract", db, "-o", out).returncode == 0
    assert len(out.read_text().splitlines()) > 10


def test_a_full_disk_behind_stdout(db):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        one_line(guardlearn("stats", db, "--json", stdout=full), "No space left on device", "make room")


# The words for it


def test_every_librarys_failed_write_is_recognised_and_a_failed_read_is_not(tiny_model, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tensor = torch.zeros(100, 100)

    def handle():
        with (tmp_path / "handle.pt").open("wb") as file:
            torch.save(tensor, file)

    writes = {
        "safetensors": lambda: save_file({"a": tensor}, tmp_path / "a.safetensors"),
        "torch": lambda: torch.save(tensor, tmp_path / "a.pt"),
        "torch, a file object": handle,
        "tokenizers": lambda: tokenizer.save(str(tmp_path / "tokenizer.json")),
        "shutil": lambda: shutil.copytree(tiny_model, tmp_path / "copy"),
        "Python": lambda: (tmp_path / "text").write_text("x" * 40_000),
    }
    found = {}
    with files_up_to(5_000):
        for name, write in writes.items():
            with pytest.raises(Exception) as caught:
                write()
            found[name] = write_failure(caught.value)
    assert found == dict.fromkeys(writes, REASON) | {"torch": "torch could not write a whole file"}
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(RuntimeError) as caught:
        torch.load(tmp_path / "broken.pt")
    assert write_failure(caught.value) is None
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "missing").read_text()
    assert write_failure(caught.value) is None
