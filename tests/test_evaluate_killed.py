"""`guardlearn evaluate`, killed in the middle: the same command continues and says what an unbroken run says."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from guardlearn.training import add_lora_adapters, load_model_for_training, save_trained_model
from warm import kill

SPECS = [{"id": f"s{n}", "specification": f"Say something about {n}", "group": f"g{n // 3}"} for n in range(36)]
RULE = """
import time, zlib
from guardlearn import ArtifactStatus, Verdict

def rule(artifact, context):
    time.sleep(0.02)
    accepted = zlib.crc32(artifact.encode()) % 3 == 0
    status = ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED
    return Verdict(status=status, feedback="again", cause="checksum")
"""


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("killed")
    (folder / "rule.py").write_text(RULE)
    (folder / "specs.jsonl").write_text("".join(json.dumps(spec) + "\n" for spec in SPECS))
    model, tokenizer = load_model_for_training(str(tiny_model), load_in_4bit=False)
    model = add_lora_adapters(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    save_trained_model(model, tokenizer, str(folder / "adapter"))
    return folder


def start(python, folder, model, out):
    command = [
        python, "-m", "guardlearn", "evaluate", "specs.jsonl", "--model", str(model), "--adapter", "adapter",
        "--guard", "rule:rule", "--rmax", "3", "--max-new-tokens", "12", "--temperature", "1.0", "-o", out,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def attempts(folder, out):
    path = folder / out / "attempts.jsonl"
    return path.read_bytes().count(b"\n") - 1 if path.is_file() else 0


def untimed(path):
    """Return the evidence without the seconds that writing took."""
    evidence = json.loads(path.read_text())
    for side in ("base", "candidate"):
        for spent in (evidence[side], *(group[side] for group in evidence["costs"])):
            assert spent.pop("seconds") > 0
    return evidence


@pytest.mark.slow
def test_killed_twice_the_evidence_is_that_of_an_unbroken_run(folder, tiny_model, warm):
    process = start(warm.python, folder, tiny_model, "whole")
    assert process.communicate(timeout=600) and process.returncode == 0
    whole = attempts(folder, "whole")
    for share in (0.2, 0.8):  # while the candidate answers, then while the base does
        process = start(warm.python, folder, tiny_model, "killed")
        while attempts(folder, "killed") < share * whole and process.poll() is None:
            time.sleep(0.005)
        kill(process)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
        assert share * whole <= attempts(folder, "killed") < whole
        assert not (folder / "killed" / "evidence.json").exists()
    process = start(sys.executable, folder, tiny_model, "killed")
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert attempts(folder, "killed") == whole
    found, expected = (untimed(folder / out / "evidence.json") for out in ("killed", "whole"))
    assert found == expected
