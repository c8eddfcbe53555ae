"""Chains with rejected attempts, and jobs made of them."""

import json

from guardlearn.jobs import TrainingConfig, write_job
from guardlearn.traces import extract_traces
from guardlearn.types import ArtifactStatus, RepositoryItem, Side

ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING
METHODS = ("kto", "dpo", "sft+kto", "sft+dpo")
GROUPS = {Side.TRAIN: "f-train", Side.VALIDATION: "f-validation", Side.HELD_OUT: "f-held-out"}


def chain(name, *statuses, group="f-train", last=None, **given):
    """Attempts `<name>0`, `<name>1`, …; the last artifact is `last`, the others are short."""
    texts = [f"def {name}(): return {n}" for n in range(len(statuses))]
    texts[-1] = last or texts[-1]
    return [
        RepositoryItem(
            id=f"{name}{n}", artifact=texts[n], specification=given.get("specification", f"Write {name}."),
            status=status, feedback=f"Not yet, {name}{n}.", parent_id=f"{name}{n - 1}" if n else None, group=group,
        )
        for n, status in enumerate(statuses)
    ]  # fmt: skip


def fill(dag, *more):
    for side, group in GROUPS.items():
        dag.assign_side(group, side)
    chains = [
        chain("twice", REJECTED, REJECTED, ACCEPTED),
        chain("once", REJECTED, ACCEPTED),
        chain("gap", REJECTED, PENDING, ACCEPTED),
        chain("long", REJECTED, ACCEPTED, last="x = 1\n" * 300),
        chain("kept", REJECTED, ACCEPTED, group="f-validation"),
        chain("never", REJECTED, REJECTED),
        *more,
    ]
    dag.append_many([item for each in chains for item in each])
    return dag


def config(method, **given):
    return TrainingConfig(method=method, **{"max_length": 400, "batch_size": 4, "max_steps": 4} | given)


def write(dag, folder, model, method, predicate="refinement", weights=None, **given):
    settings = config(method, **given)
    write_job(folder, extract_traces(dag, predicate, **settings.extraction), model, settings, weights=weights)
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
