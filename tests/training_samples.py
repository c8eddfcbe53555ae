"""Made-up traces and jobs for the tests of formatting, jobs and training."""

from __future__ import annotations

import json
from pathlib import Path

from guardlearn.digests import digest_bytes
from guardlearn.jobs import TrainingConfig, write_job
from guardlearn.traces import Checkpoint, Extraction
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side, TrainingTrace

OMEGA = "You are a Python programmer. Reply with code only."


def trace(number: int, *, retries: int = 1, side: Side = Side.TRAIN, artifact: str | None = None) -> TrainingTrace:
    """One accepted function after `retries` rejections."""
    code = f"def plus_{number}(x: int) -> int:\n    return x + {number}\n"
    history = tuple(
        FeedbackEntry(artifact=code, feedback=f"House style: start with a docstring, please ({n}).")
        for n in range(retries)
    )
    item = RepositoryItem(
        id=f"item-{number:03}",
        artifact=code.replace("    return", '    """Return a sum."""\n    return') if artifact is None else artifact,
        specification=f"Write the function plus_{number}. It returns x plus {number}.",
        constraints=OMEGA,
        status=ArtifactStatus.ACCEPTED,
        history=history,
    )
    return TrainingTrace(item=item, history=history, group=f"family-{number % 3}", side=side)


def extraction(*traces: TrainingTrace) -> Extraction:
    """What extracting these traces would have returned."""
    return Extraction(
        traces=list(traces),
        dropped={},
        selected=len(traces),
        predicate="refinement()",
        checkpoint=Checkpoint(seq=99, item_id="item-last"),
        sides_digest="sides",
    )


def sample_extraction(rows: int = 10) -> Extraction:
    """`rows` training traces, of which every third has no history, and two validation traces."""
    train = [trace(number, retries=0 if number % 3 == 2 else 1) for number in range(rows)]
    return extraction(*train, *(trace(number, side=Side.VALIDATION) for number in range(rows, rows + 2)))


def sample_job(folder: Path, model: Path, **settings: object) -> Path:
    """Write a job over `sample_extraction` in `folder`."""
    write_job(folder, sample_extraction(), model, TrainingConfig(**({"batch_size": 4, "epochs": 2.0} | settings)))
    return folder


def rewrite(folder: Path, name: str, text: str) -> None:
    """Change a job's file and make the manifest agree, as someone who writes jobs by hand would."""
    (folder / name).write_text(text, encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = digest_bytes(text.encode())
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
