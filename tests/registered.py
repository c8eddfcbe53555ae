"""An ℛ with rounds in it: chains of attempts, small real adapter folders, and the rows that a loop would store."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from guardlearn import ArtifactDAG, ArtifactStatus, RepositoryItem, Side, Specification, Verdict
from guardlearn.adapters import adapter_digest, config_digest
from guardlearn.dag import rounds
from guardlearn.dag.rounds import State
from guardlearn.digests import digest_file
from guardlearn.evaluation import evaluate
from guardlearn.gate import Decision, GateFigures, Paired, decide
from guardlearn.generators.replay import ReplayGenerator
from guardlearn.prompts import Renderer

START = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = ("planned", "extracted", "trained", "measured")
GUARD = "strict"
VERSION = "abcdef0123456789"


class Strict:
    """Accepts "good"."""

    name = GUARD
    version = VERSION
    constraints = ""

    def __call__(self, artifact: str, context: Any) -> Verdict:
        accepted = artifact == "good"
        status = ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED
        return Verdict(status=status, feedback="" if accepted else f"{artifact} is not good")


def chain(number: int, rejected: int = 1, **given: Any) -> list[RepositoryItem]:
    """Return `rejected` attempts that were not good and one that was: ids r<number>.<k> and a<number>."""
    fields = {
        "specification": f"Write number {number}, as {number * number} would be written.",
        "group": f"group-{number % 4}",
        "action_pair_id": f"pair-{number % 2}",
        "workflow_id": f"workflow-{number % 3}",
        "guard": GUARD,
        "guard_version": VERSION,
    } | given
    ids = [f"r{number}.{place}" for place in range(1, rejected + 1)] + [f"a{number}"]
    return [
        RepositoryItem(
            id=name,
            artifact=f"artifact {name}",
            parent_id=ids[place - 1] if place else None,
            status=ArtifactStatus.ACCEPTED if name.startswith("a") else ArtifactStatus.REJECTED,
            feedback="" if name.startswith("a") else f"{name} is not good",
            created_at=START + timedelta(minutes=number, seconds=place),
            **fields,
        )
        for place, name in enumerate(ids)
    ]


def fill(dag: ArtifactDAG, numbers: Sequence[int], **given: Any) -> list[str]:
    """Store chains; return the ids of what was accepted."""
    for number in numbers:
        dag.append_many(chain(number, **given))
    return [f"a{number}" for number in numbers]


def adapter(folder: Path, seed: int = 0, manifest: dict[str, Any] | None = None) -> Path:
    """Write a small LoRA adapter with what it learned from beside it; equal seeds give equal weights."""
    import numpy
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    draw = numpy.random.default_rng(seed)
    names = [f"base_model.model.layers.0.q_proj.lora_{which}.weight" for which in "AB"]
    save_file(
        {name: draw.normal(size=(2, 2)).astype("float32") for name in names}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    content = {"manifest": manifest or {}, "result": {"steps": 7, "seconds": 1.5}}
    (folder / "guardlearn.json").write_text(json.dumps(content))
    return folder


@functools.cache
def decision(promoted: bool) -> Decision:
    """Return what the gate really says of a clear gain, and of none."""
    groups = {f"g{number}": [float(promoted)] * 2 for number in range(12)}
    paired = Paired(judged=groups, against=groups)
    return decide(GateFigures(held_out=paired, look=1, changed=True))


def evidence(folder: Path) -> dict[str, Any]:
    """Measure a base that answers wrongly and an adapter that does not, as `guardlearn evaluate` would."""
    specs = [Specification(id=f"h{n}", specification=f"Held out {n}", group=f"h{n // 2}") for n in range(8)]
    bad = {spec.specification: ["bad"] for spec in specs[1:]} | {"Held out 0": ["good"]}
    generator = ReplayGenerator(bad, {spec.specification: ["good"] for spec in specs})
    found = evaluate(specs, generator, Strict(), adapter="candidate", renderer=Renderer(), folder=folder, r_max=2)
    said: dict[str, Any] = msgspec.to_builtins(found)
    del said["per_spec"]
    return said


def manifest_of(ids: Sequence[str], predicate: str = "refinement()", **given: Any) -> dict[str, Any]:
    return {
        "predicate": predicate,
        "item_ids": list(ids),
        "specification_digests": [],
        "groups": [],
        "base_model": "tiny",
        "base_model_digest": "b" * 64,
        "template_digest": "t" * 64,
        "prompts": {"retry": "feedback", "layout": "plain"},
        "seed": 3,
        "rows": 2 * len(ids),
        "validation_rows": 0,
        "checkpoint": {"seq": 0, "item_id": ids[-1] if ids else ""},
        **given,
    }


def round_of(
    dag: ArtifactDAG,
    folder: Path,
    number: int,
    ids: Sequence[str],
    end: str = "promoted",
    *,
    learner: str = "me",
    seed: int | None = None,
    plan: dict[str, Any] | None = None,
    measured: dict[str, Any] | None = None,
    job: Path | None = None,
) -> Path:
    """Store a round up to `end` as the loop does, with its adapter's folder; returns that folder."""
    place = folder / learner / f"{number:03}"
    written = job / "manifest.json" if job else None
    manifest = json.loads(written.read_text()) if written else manifest_of(ids)
    planned = {
        "predicate": "refinement()",
        "seq": dag.last_seq,
        "item_ids": list(ids),
        "new_item_ids": list(ids[-1:]),
        "sides_digest": "s" * 64,
        "mode": "restart",
        "parent": None,
        "incumbent": None,
        "weighting": {"per_spec": 2, "counts": {"traces": len(ids)}},
        "weights": {},
        "base_model": "demo",
        "training": {"views": ["first_attempt", "repair"], "epochs": 3.0, "learning_rate": 2e-4, "seed": 3},
        "held_out": {"digest": "h" * 64, "specs": 8, "groups": 4},
        "look": 2,
        "detectable": 0.1,
    } | (plan or {})
    extracted = {
        "job": str(job or place / "job"),
        "manifest_digest": digest_file(written) if written else "",
        "rows": 2 * len(ids),
        "validation_rows": 1,
        "dropped": {"duplicate": 1},
        "dropped_rows": {"too long": 2},
    }
    said = decision(end == "promoted")
    reached = STEPS.index(end) + 1 if end in STEPS else len(STEPS)
    if reached >= STEPS.index("trained") + 1:
        adapter(place / "adapter", number if seed is None else seed, manifest)
    details = {
        end: {"decision": msgspec.to_builtins(said), "reason": said.reason},
        "planned": planned,
        "extracted": extracted,
        "trained": lambda: {
            "adapter": str(place / "adapter"),
            "adapter_digest": adapter_digest(place / "adapter"),
            "config_digest": config_digest(place / "adapter"),
            "manifest": manifest,
            "result": {"steps": 7, "seconds": 1.5, "validation_loss": {"base": 2.0, "trained": 1.0}},
        },
        "measured": {"evidence": {}, "forgetting": None, "hidden": {}, "cost": {"measured_seconds": 4.0}}
        | (measured or {}),
    }
    with dag.writing() as connection:
        for state in dict.fromkeys([*STEPS[:reached], end]):
            content = details[state]() if callable(details[state]) else details[state]
            rounds.append(connection, learner, number, State(state), content)
        if end == "promoted":
            _promote(connection, learner, number, place / "adapter", said.reason)
    return place / "adapter"


def _promote(connection: Any, learner: str, number: int, folder: Path, reason: str) -> None:
    rounds.promote(
        connection, learner, action="promote", adapter=str(folder), adapter_digest=adapter_digest(folder),
        actor="the gate", reason=reason, round_=number,
    )  # fmt: skip


def train_side(dag: ArtifactDAG) -> None:
    """Put the groups of `chain` on the train side, before anything of them is stored."""
    for group in range(4):
        dag.assign_side(f"group-{group}", Side.TRAIN)
