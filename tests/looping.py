"""A small loop to test rounds with: ℛ with chains, a guard, specifications, and a trainer that takes no time; and
SIGKILL at random moments of its rounds.

The trainer stands in for `python -m guardlearn.training JOB --model M`: it is called the same way, in a process of its
own, and leaves what that leaves, the adapter last. Its weights follow from the job's rows and the parent's weights.
"""

from __future__ import annotations

import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardlearn import ArtifactDAG, RepositoryItem
from guardlearn.dag import rounds
from guardlearn.dag.rounds import RoundStep
from guardlearn.loop.planning import rounds_of
from guardlearn.types import Specification
from killing import Nursery

GROUPS = {"train": 8, "validation": 2, "held_out": 12}
GOOD, BAD = "yes, done", "no"
JOB_FILES = ("job.toml", "manifest.json", "train.jsonl", "validation.jsonl")

TRAINER = """#!{python}
import hashlib, json, os, shutil, struct, sys, threading, time
from pathlib import Path

job = Path(sys.argv[3])
parent = Path(sys.argv[sys.argv.index("--parent") + 1]) if "--parent" in sys.argv else None
def with_parent():
    sys.stdin.read()
    os._exit(1)
if "--attached" in sys.argv:
    threading.Thread(target=with_parent, daemon=True).start()
manifest = json.loads((job / "manifest.json").read_text())
steps = 3
for step in range(1, steps + 1):
    print(json.dumps({{"step": step, "steps": steps, "loss": 1.0 / step, "tokens_per_second": 1.0}}), flush=True)
    time.sleep(float(os.environ.get("TRAINER_SECONDS", "0")) / steps)
if not (job / "adapter").is_dir():
    content = (job / "train.jsonl").read_bytes()
    if parent:
        content += (parent / "adapter_model.safetensors").read_bytes()
    zero = os.environ.get("TRAINER_ZERO") == "1"
    weights = bytes(32) if zero else hashlib.sha256(content).digest()
    name = "base_model.model.q_proj"
    head = json.dumps({{
        name + ".lora_A.weight": {{"dtype": "U8", "shape": [1], "data_offsets": [32, 33]}},
        name + ".lora_B.weight": {{"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}},
    }}).encode()
    staged = job / ".training" / "adapter"
    shutil.rmtree(staged.parent, ignore_errors=True)
    staged.mkdir(parents=True)
    (staged / "adapter_config.json").write_text(json.dumps({{"peft_type": "LORA", "r": 16, "lora_alpha": 16}}))
    (staged / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + weights + b"A")
    (job / "metrics.jsonl").write_text("".join(
        json.dumps({{"step": s, "loss": 1.0 / s}}) + "\\n" for s in range(1, steps + 1)))
    (job / "result.json").write_text(json.dumps({{
        "backend": "fake", "steps": steps, "loss": {{"first": 1.0, "last": 1.0 / steps}}, "seconds": 0.0,
        "validation_loss": None, "versions": {{}}, "rows": len(content.splitlines()),
        "manifest_digest": hashlib.sha256((job / "manifest.json").read_bytes()).hexdigest(),
    }}))
    staged.replace(job / "adapter")
    shutil.rmtree(staged.parent)
"""


def write_trainer(folder: Path, program: str = TRAINER) -> Path:
    """Write a trainer's program; `--python` takes it."""
    path = folder / "trainer"
    path.write_text(program.format(python=sys._base_executable))  # type: ignore[attr-defined]
    path.chmod(0o755)
    return path


def specifications(side: str, groups: Mapping[str, int] = GROUPS) -> list[Specification]:
    """Return two specifications of every group of a side, of which `groups` says how many there are."""
    return [
        Specification(
            id=f"{side}-{group}-{number}",
            specification=f"Task {number} of the {side} family {group}: say yes to {group * 7 + number}",
            group=f"{side} {group}",
            action_pair_id="say",
        )
        for group in range(groups[side])
        for number in range(2)
    ]


def found(target: str | Path, groups: Mapping[str, int] = GROUPS) -> None:
    """Make ℛ and give every specification its side."""
    with ArtifactDAG.open_or_create(target) as dag:
        for side in groups:
            for group in sorted({spec.group for spec in specifications(side, groups) if spec.group}):
                dag.assign_side(group, side)
            dag.register(specifications(side, groups))


def refinements(
    spec: Specification,
    name: str,
    retries: int = 1,
    *,
    answers: tuple[str, str] = (GOOD, BAD),
    guard: tuple[str, str] = ("says_yes", "1"),
) -> list[RepositoryItem]:
    """Return a chain that was rejected `retries` times and then accepted by a guard of that name and version."""
    good, bad = answers
    chain: list[RepositoryItem] = []
    for attempt in range(retries + 1):
        last = attempt == retries
        chain.append(
            RepositoryItem(
                id=f"{name}/{attempt}",
                parent_id=chain[-1].id if chain else None,
                specification=spec.specification,
                group=spec.group,
                action_pair_id=spec.action_pair_id,
                artifact=f"{good} {name}" if last else f"{bad} {name} {attempt}",
                feedback="" if last else f"say {good}",
                status="accepted" if last else "rejected",  # type: ignore[arg-type]
                guard=guard[0],
                guard_version=guard[1],
            )
        )
    return chain


def collect(target: str, names: Sequence[str], side: str = "train") -> None:
    """Append one refined chain a name, over the specifications of a side in turn."""
    specs = specifications(side)
    with ArtifactDAG.load(target) as dag:
        for number, name in enumerate(names):
            dag.append_many(refinements(specs[number % len(specs)], name))


def write_project(
    folder: Path, model: Path, *, base: int = 4, adapted: int = 10, least: int = 4, more: str = "", promotion: str = ""
) -> None:
    """Write guardlearn.toml, the specifications and the answers that the model is replayed from.

    Args:
        folder: gets them.
        model: folder of the base model whose tokenizer counts.
        base: groups of the held-out ones that pass with the bare base.
        adapted: the same with an adapter.
        least: min_new_traces.
        more: further lines of [loop].
        promotion: lines of [promotion].
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, answers = [], []
    for side in GROUPS:
        for spec in specifications(side):
            group = int(str(spec.group).split()[-1])
            lines.append(
                {"id": spec.id, "specification": spec.specification, "group": spec.group, "action_pair_id": "say"}
            )
            answers.append(
                {
                    "specification": spec.specification,
                    "answers": [GOOD if group < base else BAD],
                    "adapter_answers": [GOOD if group < adapted else BAD],
                }
            )
    (folder / "specs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    (folder / "guardlearn.toml").write_text(
        f"""
[guards.says_yes]
kind = "regex"
match = ["^yes"]
message = "say yes"

[loop]
specs = ["specs.jsonl"]
guard = "says_yes"
generator = "replay"
model = "answers.jsonl"
base = {json.dumps(str(model))}
min_new_traces = {least}
r_max = 1
{more}

[training]
views = ["first_attempt"]
max_length = 512

[promotion]
{promotion}
"""
    )


IMPORTED = ("guardlearn.cli.loop", "guardlearn.loop.rounds", "guardlearn.loop.history", "transformers.models.auto")
"""What a nursery for rounds imports."""


def kill_rounds(
    nursery: Nursery,
    target: str,
    twin: str,
    folder: Path,
    model: Path,
    *,
    seed: int,
    kills: int,
    trainer: str | None = None,
) -> Counter[str]:
    """Kill rounds at random moments until `kills` were killed; then compare everything with rounds nobody killed.

    Args:
        nursery: forks the command.
        target: an empty place for ℛ.
        twin: another one.
        folder: gets both projects.
        model: folder of the base model.
        seed: of the moments.
        kills: at least so many.
        trainer: interpreter of the real training process; None: the one that takes no time.

    Returns:
        How many were killed, and in which state of a round; how many rounds there were.
    """
    killed = _Loop(folder / "killed", target, model, trainer)
    unbroken = _Loop(folder / "unbroken", twin, model, trainer)
    chance, seen = random.Random(seed), Counter[str]()
    number, usual = 0, 3.0
    while seen["killed"] < kills:
        number += 1
        for loop in (killed, unbroken):
            collect(loop.target, [f"r{number} {chain}" for chain in range(5)])
        status, usual = unbroken.run(nursery)
        assert status == 0, unbroken.said()
        while killed.decided() < number:
            status, _ = killed.run(nursery, kill_after=chance.uniform(0.0, usual) if seen["killed"] < kills else None)
            assert status in (0, -signal.SIGKILL), killed.said()
            seen["killed"] += status != 0
            seen[f"killed when {killed.state()}"] += status != 0
            killed.check()
    seen["rounds"] = number
    killed.check()
    ours, theirs = killed.result(), unbroken.result()
    same = ours == theirs
    seen["rounds with equal weights"] = sum(
        a["adapter"] == b["adapter"] for a, b in zip(ours["rounds"], theirs["rounds"], strict=True)
    )
    assert same or trainer, "only a resumed training may differ, in its last bits"
    for of in (ours, theirs):
        for each in of["rounds"]:
            del each["adapter"]
        of["live"] = [round_ for round_, _ in of["live"]]
    assert ours == theirs
    return seen


class _Loop:
    """One of the two."""

    def __init__(self, folder: Path, target: str, model: Path, trainer: str | None) -> None:
        self.folder, self.target = folder, target
        write_project(folder, model, promotion="alpha = 0.45")  # else a dozen groups show nothing from look 12 on
        found(target)
        self.trainer = trainer or str(write_trainer(folder))

    def run(self, nursery: Nursery, kill_after: float | None = None) -> tuple[int, float]:
        arguments = ["loop", self.target, "--python", self.trainer, "--json"]
        return nursery.run("command_in", self.folder, self.folder / "said", *arguments, kill_after=kill_after)

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def rounds(self) -> list[list[RoundStep]]:
        with ArtifactDAG.load(self.target) as dag:
            return rounds_of(dag)

    def decided(self) -> int:
        return sum(steps[-1].state.decided for steps in self.rounds())

    def state(self) -> str:
        found = self.rounds()
        return "waiting" if not found or found[-1][-1].state.decided else found[-1][-1].state.value

    def check(self) -> None:
        """What must hold at any moment: every digest, and no trace in two rounds."""
        with ArtifactDAG.load(self.target) as dag, dag.reading() as connection:
            assert dag.verify().problems == []
            twice = "SELECT count(*), count(DISTINCT seq) FROM trained"
            count, distinct = connection.exec_driver_sql(twice).one()
            assert count == distinct

    def result(self) -> dict[str, Any]:
        """Everything that rounds leave and that must not depend on kills, bytes of the job folders included."""
        found = []
        for steps in self.rounds():
            details = {step.state.value: step.details for step in steps}
            job = self.folder / "rounds" / f"{steps[0].round:03}" / "job"
            found.append(
                {
                    "states": [step.state.value for step in steps],
                    "job": {name: (job / name).read_bytes() for name in JOB_FILES},
                    "new": details["planned"]["new_item_ids"],
                    "adapter": details["trained"]["adapter_digest"],
                    "figures": details["measured"]["figures"],
                    "decision": steps[-1].details,
                }
            )
        with ArtifactDAG.load(self.target) as dag, dag.reading() as connection:
            trained = connection.exec_driver_sql("SELECT learner, seq, checkpoint FROM trained ORDER BY seq").all()
            live = [(each.round, each.adapter_digest) for each in rounds.read_promotions(connection)]
        return {"rounds": found, "trained": [tuple(row) for row in trained], "live": live}
