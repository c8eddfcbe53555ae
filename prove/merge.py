"""The demo's model and an adapter trained on it, merged in float32, bfloat16 and float16: in float32 the merged model
continues all 20 prompts as base + adapter does, its logits within 1e-3; in 16 bit every weight is the float32 merge
rounded once, and an argmax flips only where the preference was smaller than what rounding moved; each is at least twice
as near to base + adapter as to the bare base."""

import os
import re
import shutil
from pathlib import Path

from guardlearn import TrainingConfig, adapters, merge_adapter, run_job, write_job
from guardlearn.demo.guard import house_style
from guardlearn.demo.model import demo_model
from guardlearn.demo.run import DEMO_TRAINING
from guardlearn.demo.tasks import specifications
from guardlearn.merging import DTYPES
from guardlearn.traces import Checkpoint, Extraction
from guardlearn.types import ArtifactStatus, RepositoryItem, Side, TrainingTrace

STEPS = 12


def run(work):
    adapter = given() or trained(work)
    reports = {}
    for dtype in DTYPES:
        shutil.rmtree(work / dtype, ignore_errors=True)
        reports[dtype] = merge_adapter("demo", adapter, work / dtype, dtype=dtype)
        shutil.rmtree(work / dtype)
    exact = reports["float32"]
    holds = (
        exact.merging_difference <= 1e-3
        and exact.agreement.adapter_difference <= 1e-3
        and exact.agreement.identical_continuations == exact.agreement.prompts == 20
        and all(report.agreement.expected_difference <= 1e-3 for report in reports.values())
        and all(r.agreement.disagreements <= 0.01 * r.agreement.positions for r in reports.values())
        and all(r.agreement.base_difference > 2 * r.agreement.adapter_difference for r in reports.values())
        and exact.agreement.base_difference > 1
    )
    return {dtype: figures(report) for dtype, report in reports.items()}, holds


def figures(report):
    import msgspec

    return msgspec.to_builtins(report)


def given():
    """The adapter of a demo that has run already."""
    folder = os.environ.get("GUARDLEARN_DEMO_DIR")
    return Path(folder) / "adapter" if folder else None


def trained(work):
    """Train on the demo's training specifications, each answered as its text asks, in house style."""
    traces = [trace(spec, Side.TRAIN) for spec in specifications(Side.TRAIN)]
    found = Extraction(
        traces=traces,
        dropped={},
        selected=len(traces),
        predicate="the demo's training specifications, answered",
        checkpoint=Checkpoint(seq=0, item_id=""),
        sides_digest="",
    )
    settings = {name: getattr(DEMO_TRAINING, name) for name in ("views", "batch_size", "learning_rate", "max_length")}
    write_job(work / "job", found, demo_model(), TrainingConfig(base_model="demo", max_steps=STEPS, **settings))
    run_job(work / "job", demo_model())
    return adapters.publish(work / "job", work / "adapter")


def trace(spec, side):
    body = re.search(r"`(return .*)`", spec.specification)[1]
    item = RepositoryItem(
        id=spec.id,
        artifact=f'def {spec.metadata["signature"]}:\n    """Return the result."""\n    {body}\n',
        specification=spec.specification,
        constraints=house_style.constraints,
        status=ArtifactStatus.ACCEPTED,
    )
    return TrainingTrace(item=item, history=(), group=spec.group, side=side)
