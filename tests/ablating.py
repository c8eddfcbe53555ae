"""A small ablation to test with: ℛ with chains, specifications of all sides, and a trainer whose steps take a set time.

The trainer stands in for `python -m guardlearn.training JOB --model M`: it is called the same way, in a process of its
own, and leaves what that leaves, the adapter last. A step takes TRAINER_SECONDS for each view and twice that for each
stage that is not sft; its weights follow from job.toml and the rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

import looping
from guardlearn import ArtifactDAG
from guardlearn.ablation import AblationConfig, AblationSettings, plan_ablation
from guardlearn.ablation.keeping import Allotment, write_kept
from guardlearn.generators import ReplayGenerator
from guardlearn.jobs import TrainingConfig
from guardlearn.loop.config import LoopConfig
from guardlearn.loop.rounds import Bench
from guardlearn.types import GenerationRequest, OnProgress, RepositoryItem, Specification
from rivals import WordGuard

GROUPS = {"train": 8, "validation": 10, "held_out": 4}
GOOD, BAD = "good", "bad"

TRAINER = """#!{python}
import hashlib, json, math, os, shutil, struct, sys, threading, time, tomllib
from pathlib import Path

job = Path(sys.argv[3])
def with_parent():
    sys.stdin.read()
    os._exit(1)
threading.Thread(target=with_parent, daemon=True).start()
settings = tomllib.loads((job / "job.toml").read_text())
methods, views = settings["method"].split("+"), len(settings["views"])
if os.environ.get("TRAINER_FAILS") == settings["views"][0]:
    print("error: out of luck", file=sys.stderr)
    sys.exit(1)
names = ("train.jsonl", "train.second.jsonl")[:len(methods)]
rows = [len((job / name).read_text().splitlines()) for name in names]
epochs = (settings["epochs"], settings.get("second_epochs", 1.0))
def count(stage):
    a_pass = math.ceil(rows[stage] / settings["batch_size"])
    return settings.get("max_steps") or max(1, math.ceil(round(epochs[stage] * a_pass, 6)))
steps = [count(stage) for stage in range(len(methods))]
if not (job / "adapter").is_dir():
    step = 0
    print(json.dumps({{"step": 0, "steps": sum(steps), "note": "begins"}}), flush=True)
    for method, of in zip(methods, steps):
        for _ in range(of):
            time.sleep(float(os.environ.get("TRAINER_SECONDS", "0")) * views * (1 if method == "sft" else 2))
            step += 1
            event = {{"step": step, "steps": sum(steps), "loss": 1.0 / step, "tokens_per_second": 1.0}}
            print(json.dumps(event), flush=True)
    content = b"".join((job / name).read_bytes() for name in ("job.toml", *names))
    head = json.dumps({{"w": {{"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}}}}).encode()
    staged = job / ".training" / "adapter"
    shutil.rmtree(staged.parent, ignore_errors=True)
    staged.mkdir(parents=True)
    (staged / "adapter_config.json").write_text(json.dumps({{"peft_type": "LORA", "r": 16, "lora_alpha": 16}}))
    weights = struct.pack("<Q", len(head)) + head + hashlib.sha256(content).digest()
    (staged / "adapter_model.safetensors").write_bytes(weights)
    lines = []
    for name, of in zip(names, steps):
        ids = [json.loads(line)["id"] for line in (job / name).read_text().splitlines()]
        size = settings["batch_size"]
        batches = [[ids[(at * size + n) % len(ids)] for n in range(size)] for at in range(of)]
        lines += [json.dumps({{"rows": rows}}) + "\\n" for rows in batches]
    (job / "metrics.jsonl").write_text("".join(lines))
    (job / "result.json").write_text(json.dumps({{
        "backend": "fake", "steps": sum(steps), "loss": {{"first": 1.0, "last": 1.0 / step}}, "versions": {{}}}}))
    staged.replace(job / "adapter")
    shutil.rmtree(staged.parent)
"""


def write_trainer(folder: Path) -> Path:
    """Write the trainer's program; `--python` takes it."""
    return looping.write_trainer(folder, TRAINER)


def specifications(side: str) -> list[Specification]:
    """Return two specifications of every group of a side."""
    return looping.specifications(side, GROUPS)


def everything() -> list[Specification]:
    """Return the specifications of all sides."""
    return [spec for side in GROUPS for spec in specifications(side)]


def found(target: str | Path) -> None:
    """Make ℛ, give every specification its side, and collect two chains of each that is trained on."""
    looping.found(target, GROUPS)
    with ArtifactDAG.load(target) as dag:
        for number, spec in enumerate(specifications("train")):
            for chain in range(2):
                dag.append_many(refinements(spec, f"{spec.id}/{chain}", retries=1 + (number + chain) % 3))


def refinements(spec: Specification, name: str, retries: int) -> list[RepositoryItem]:
    """Return a chain that was rejected `retries` times and then accepted by the word guard."""
    return looping.refinements(spec, name, retries, answers=(GOOD, BAD), guard=("word", "good 1"))


class ByArm(ReplayGenerator):
    """Passes with the share of its arm, decided by the request's key alone, as common random numbers give."""

    def __init__(self, shares: Mapping[str, float], asked: list[str]) -> None:
        """Answer from shares by arm, "" for the untrained model; note the key of every request in `asked`."""
        super().__init__(self._chosen, model="by arm")
        self._shares, self._asked = shares, asked
        self._answers: Callable[[GenerationRequest], str] = self._chosen

    def _chosen(self, request: GenerationRequest) -> str:
        self._asked.append(request.key)
        arm = "" if self._adapter is None else Path(self._adapter).parents[1].name.rsplit("-", 1)[0]
        number = int(hashlib.sha256(request.key.encode()).hexdigest()[:8], 16) / 2**32
        return GOOD if number < self._shares[arm] else BAD


def bench(model: Path, trainer: Path | None, shares: Mapping[str, float], **given: Any) -> tuple[Bench, list[str]]:
    """Return what an ablation is done with, and the list that gets the key of every request."""
    asked: list[str] = []
    made = {
        "model_folder": model,
        "guard": WordGuard(),
        "specs": everything(),
        "open_generator": lambda config, manifest: (ByArm(shares, asked), None),
        "python": None if trainer is None else str(trainer),
    }
    return Bench(**(made | given)), asked


def wanted(training: Mapping[str, Any] | None = None, loop: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """Return settings: 6 steps of training, two seeds."""
    how = {"max_length": 512, "batch_size": 4, "max_steps": 6, "base_model": "tiny"}
    return AblationSettings(
        ablation=AblationConfig(**({"seeds": (0, 1), "calibration_steps": 3} | given)),
        loop=LoopConfig(**({"model": "answers", "generator": "replay"} | dict(loop or {}))),
        training=TrainingConfig(**(how | dict(training or {}))),
    )


def allot(dag: ArtifactDAG, *asked: Any, folder: Path, steps: int = 2, **given: Any) -> None:
    """Give every arm of an ablation so many steps a stage, as if they had been timed; one that was begun keeps its own.

    Trainings that take no time cannot be timed, and most tests are about something else.
    """
    planned = plan_ablation(dag, *asked, folder=folder, **given)
    if not (folder / "time.json").exists():
        counts = {arm.name: [steps] * len(arm.training.methods) for arm in planned.arms}
        write_kept(folder / "time.json", Allotment(of=planned.digest, seconds=1.0, steps=counts, costs={}))


@contextlib.contextmanager
def quiet(name: str) -> Iterator[OnProgress]:
    """Open a step that shows nothing."""
    yield lambda done, total, note: None


def records(folder: Path) -> dict[str, bytes]:
    """Return the records of an ablation, by file."""
    return {path.name: path.read_bytes() for path in sorted((folder / "records").iterdir())}


def untimed(ablation: Any) -> Any:
    """Return what an ablation came to, without what a clock said."""
    said = msgspec.to_builtins(ablation)
    for arm in said["arms"]:
        del arm["wall_seconds"]
    return {name: value for name, value in said.items() if name not in ("uneven", "seconds")}


def write_project(folder: Path, model: Path, *, steps: int = 6, more: str = "") -> None:
    """Write guardlearn.toml, the specifications and the answers that the model is replayed from."""
    lines, answers = [], []
    for spec in everything():
        group = int(str(spec.group).split()[-1])
        lines.append(msgspec.to_builtins(spec))
        answers.append(
            {
                "specification": spec.specification,
                "answers": [GOOD if group < 3 else BAD],
                "adapter_answers": [GOOD if group < 7 else BAD, GOOD],
            }
        )
    (folder / "specs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    (folder / "guardlearn.toml").write_text(
        f"""
[guards.says_good]
kind = "regex"
match = ["^good"]
message = "say good"

[loop]
guard = "says_good"
specs = ["specs.jsonl"]
generator = "replay"
model = "answers.jsonl"
base = {json.dumps(str(model))}

[training]
max_length = 512
batch_size = 4
max_steps = {steps}

[ablation]
seeds = [0, 1]
calibration_steps = 3
{more}
"""
    )
