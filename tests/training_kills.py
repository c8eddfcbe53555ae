"""kill -9 of trainings at chosen moments, and what must be true once the same command has gone through.

`test_training_kills.py` kills at three random steps, `prove/training_kills.py` ten times a method at moments of every
kind. What counts is the end: the adapter's bytes and every line of metrics.jsonl of a training that nobody killed.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from guardlearn.digests import digest_file
from warm import kill

PATIENCE_SECONDS = 600


def start(python: str, job: Path, model: Path) -> subprocess.Popen[str]:
    """Start the trainer's command."""
    command = [python, "-m", "guardlearn.training", str(job), "--model", str(model)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(python: str, job: Path, model: Path) -> None:
    """Let the same command go through."""
    process = start(python, job, model)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err


def kill_at_step(python: str, job: Path, model: Path, step: int) -> bool:
    """Kill the trainer as soon as it says that a step is done; return whether it was there to be killed."""
    process = start(python, job, model)
    for line in process.stdout:
        if json.loads(line)["step"] >= step:
            kill(process)
            break
    return _ended(process)


def kill_when(python: str, job: Path, model: Path, there: Callable[[Path], bool]) -> bool:
    """Kill the trainer as soon as its job folder looks so; return whether it was there to be killed.

    What an earlier kill left does not count: it looks otherwise first, and then so.
    """
    before = there(job)
    process = start(python, job, model)
    ends = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < ends:
        now = there(job)
        if now and not before:
            kill(process)
            break
        before = before and now
        time.sleep(0.0005)
    return _ended(process)


def _ended(process: subprocess.Popen[str]) -> bool:
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode == -signal.SIGKILL


def state(job: Path) -> str:
    """Return what a kill left, in words."""
    work = job / ".training"
    if (job / "adapter").is_dir():
        return "all of it"
    if (work / "finished").is_dir():
        return "what is to be published" if not (job / "metrics.jsonl").exists() else "a part of it published"
    if (work / "finished.new").is_dir():
        return "a part of what is to be published"
    stages = sorted(work.glob("stage-*"))
    if not stages:
        return "nothing"
    last = stages[-1]
    if (last / "finished").is_dir():
        return f"stage {len(stages)} done and the next not begun" if len(stages) == 1 else "the last stage done"
    if (last / "finished.new").is_dir():
        return f"stage {len(stages)}, its end half-written"
    whole = [path for path in last.glob("checkpoint-*") if (path / "complete").is_file()]
    torn = [path for path in last.glob("checkpoint-*") if path not in whole]
    if torn:
        return f"stage {len(stages)}, a weights checkpoint half-written"
    return f"stage {len(stages)}, {'steps after a' if whole else 'no'} weights checkpoint"


def saving(number: int) -> Callable[[Path], bool]:
    """Return what is true while a stage writes a weights checkpoint."""

    def there(job: Path) -> bool:
        found = (job / ".training" / f"stage-{number}").glob("checkpoint-*")
        return any(not (path / "complete").is_file() for path in found)

    return there


def exists(name: str) -> Callable[[Path], bool]:
    """Return what is true once a path is there."""
    return lambda job: (job / name).exists()


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while a checkpoint is saved": saving(1),
    "while a stage ends": exists(".training/stage-1/finished.new"),
    "between the stages": exists(".training/stage-1/finished"),
    "while the second one's checkpoint is saved": saving(2),
    "while the adapter is put together": exists(".training/finished.new"),
    "while it is published": exists(".training/finished"),
}
"""What a job folder looks like at moments other than a step."""


def kill_often(
    python: str, job: Path, model: Path, steps: int, chance: random.Random, moments: list[str | None]
) -> Counter[str]:
    """Kill a training at one moment after the other, None a random step; then let it go through.

    Args:
        python: starts trainers.
        job: not trained yet; of `steps` steps.
        model: the base model.
        steps: over all stages.
        chance: decides the steps.
        moments: keys of `MOMENTS` in the order in which they come, and None.

    Returns:
        How many were killed, and what the kills left.
    """
    seen = Counter[str]()
    at = sorted(chance.sample(range(1, steps), sum(moment is None for moment in moments)))
    for moment in moments:
        if moment is None:
            killed = kill_at_step(python, job, model, at.pop(0))
        else:
            killed = kill_when(python, job, model, MOMENTS[moment])
        seen["killed" if killed else "was done before it could be killed"] += 1
        if killed:
            seen[f"left {state(job)}"] += 1
            assert not (job / "adapter").is_dir() or state(job) == "all of it"
    finish(python, job, model)
    assert not (job / ".training").exists()
    return seen


def same_end(job: Path, unbroken: Path) -> tuple[bool, float]:
    """Return whether two trainings ended in the same bytes and said the same, and how far their weights are apart."""
    from safetensors.torch import load_file

    paths = [folder / "adapter" / "adapter_model.safetensors" for folder in (job, unbroken)]
    one, other = (load_file(path) for path in paths)
    far = max((one[name] - other[name]).abs().max().item() for name in one)
    told = [(folder / "metrics.jsonl").read_bytes() for folder in (job, unbroken)]
    return digest_file(paths[0]) == digest_file(paths[1]) and told[0] == told[1], far
