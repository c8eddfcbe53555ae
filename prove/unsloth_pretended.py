"""A job trained by Unsloth's own Python and Triton code, on a CPU with a pretended GPU and interpreted kernels, has the
losses of the same job trained by transformers and PEFT (within 0.002 at every step and in validation), and killed half
way it continues to the same adapter. Float32 and a tiny random model; the fused LoRA kernels, 16 and 4 bit, offloaded
checkpointing and every speed are not covered."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from guardlearn.demo.model import demo_model
from guardlearn.jobs import TrainingConfig, run_job, write_job
from guardlearn.traces import Checkpoint, Extraction
from guardlearn.types import ArtifactStatus, RepositoryItem, Side, TrainingTrace

ROOT = Path(__file__).parents[1]
TRITON = "3.6.0"  # the one that torch 2.11.0 brings
STEPS = 4
CLOSE = 0.002  # what bfloat16 autocast leaves


def run(work):
    packages = installed(work / "site")
    model = tiny_model(work / "tiny")
    plain, by_unsloth, killed = (job(work / name, model) for name in ("plain", "unsloth", "killed"))
    run_job(plain, model)
    train(by_unsloth, model, packages)
    train(killed, model, packages, kill_after=2)
    train(killed, model, packages)
    results = [json.loads((folder / "result.json").read_text()) for folder in (plain, by_unsloth, killed)]
    losses = [[line["loss"] for line in metrics(folder)] for folder in (plain, by_unsloth)]
    result = {
        "unsloth": results[1]["versions"]["unsloth"],
        "steps": STEPS,
        "losses": {"trl": losses[0], "unsloth": losses[1]},
        "validation_losses": {"trl": results[0]["validation_loss"], "unsloth": results[1]["validation_loss"]},
        "optimizers": {"trl": results[0]["optimizer"], "unsloth": results[1]["optimizer"]},
        "resumed_at_step": results[2]["resumed_at_step"],
        "same_adapter_after_a_kill": results[2]["adapter_digest"] == results[1]["adapter_digest"],
    }
    validation = [result["validation_losses"][name][key] for key in ("base", "trained") for name in ("trl", "unsloth")]
    differences = [abs(a - b) for a, b in [*zip(*losses, strict=True), validation[:2], validation[2:]]]
    result["largest_difference"] = max(differences)
    fell = validation[3] < validation[1] - 10 * CLOSE
    holds = max(differences) < CLOSE and fell and result["same_adapter_after_a_kill"] and result["resumed_at_step"] > 0
    return result, holds


def installed(folder):
    """Install what constraints-cuda.txt pins and this environment lacks, beside it, and Triton."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-cuda.txt").read_text(), re.MULTILINE)
    wanted = [f"{name}=={version}" for name, version in [*pins, ("triton", TRITON)] if here(name) != version]
    if not folder.is_dir():
        staged = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(staged, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", staged, *wanted]
        subprocess.run(command, check=True)
        staged.rename(folder)
    return folder


def here(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tiny_model(folder):
    """Write a random two-layer Llama with the demo model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def job(folder, model):
    """Write a job of three short rows of different lengths, and one for validation."""
    shutil.rmtree(folder, ignore_errors=True)
    answers = ["x = 1\n", "def f(x: int) -> int:\n    return x + 2\n", "pass\n", "y = 3\n"]
    traces = [
        TrainingTrace(
            item=RepositoryItem(
                id=f"item-{number}", artifact=answer, specification=f"Write {number}.", status=ArtifactStatus.ACCEPTED
            ),
            history=(),
            group=f"family-{number}",
            side=Side.VALIDATION if number == 3 else Side.TRAIN,
        )
        for number, answer in enumerate(answers)
    ]
    found = Extraction(
        traces=traces, dropped={}, selected=4, predicate="made up", checkpoint=Checkpoint(seq=0, item_id=""),
        sides_digest="",
    )  # fmt: skip
    config = TrainingConfig(
        views=("first_attempt",), batch_size=2, max_steps=STEPS, learning_rate=5e-3, warmup_ratio=0.0, save_steps=1
    )
    write_job(folder, found, model, config)
    return folder


def train(folder, model, packages, kill_after=None):
    """Train by Unsloth in a process of its own, which finds the packages; kill it after a step if so asked."""
    environment = os.environ | {"PYTHONPATH": str(packages)}
    command = [sys.executable, ROOT / "prove" / "pretend_gpu.py", folder, model]
    with (folder / "train.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        for line in process.stdout:
            log.write(line)
            if kill_after and line.startswith(f"{{'step': {kill_after},"):
                process.send_signal(signal.SIGKILL)
        if process.wait() != (-signal.SIGKILL if kill_after else 0):
            raise SystemExit(f"{folder}/train.log says what went wrong")


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
