"""The guide's section 9: from ℛ to an adapter in one call.

Data is looked for before any model is loaded (errata 53). Training runs in a process of its own, from a job folder
that a crash leaves resumable.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from guardlearn import adapters, jobs
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers.atomicguard_prompts import dependency_contents
from guardlearn.jobs import TrainingConfig
from guardlearn.models import resolve_model
from guardlearn.predicates import Predicate
from guardlearn.prompts import PromptConfig
from guardlearn.traces import extract_traces
from guardlearn.types import OnProgress

__all__ = ["PipelineResult", "run_training_pipeline", "train_from_repository"]


class PipelineResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one training left behind."""

    adapter: str
    """Folder of the published adapter."""
    job: str
    """Folder of the job: rows, manifest, metrics."""
    predicate: str
    selected: int
    """Items the predicate selected."""
    traces: int
    rows: int
    """Training rows; a trace gives one a view."""
    validation_rows: int
    dropped: dict[str, int]
    """Selected items that became no trace, by reason."""
    dropped_rows: dict[str, int]
    """Rows that did not come to be, by reason."""
    result: dict[str, Any]
    """The training's own account: steps, losses, seconds, versions."""


def train_from_repository(
    dag: ArtifactDAG,
    model: str,
    output: Path,
    *,
    predicate: Predicate | str = "refinement",
    config: TrainingConfig | None = None,
    prompts: PromptConfig | None = None,
    python: str | None = None,
    log_to: str | None = None,
    on_progress: OnProgress | None = None,
) -> PipelineResult:
    """Extract, write the job, train, publish `output`/adapter. The same call after a crash continues.

    Args:
        dag: ℛ; it is only read.
        model: `demo`, a folder, or a hub name.
        output: gets `job/` and `adapter/`.
        predicate: Φ, or the name of a policy of Definition 22.
        config: how to train; its `base_model` is set to the model's name.
        prompts: how prompts are asked, as `load_prompts` gives them; None: as `config` says.
        python: interpreter of the training process; None: this one.
        log_to: tensorboard or trackio, beside metrics.jsonl; None: neither.
        on_progress: called with (step, steps, note).

    Raises:
        NoTracesError: nothing to train on; it says what every policy would have found.
        JobError: the training failed, or `output` holds another job.
    """
    settings = dataclasses.replace(config or TrainingConfig(), base_model=Path(model).name)
    extraction = extract_traces(dag, predicate, **settings.extraction)
    folder = resolve_model(model)
    asked = (trace.item for trace in extraction.traces)
    summary = jobs.write_job(
        output / "job",
        extraction,
        folder,
        settings,
        prompts=prompts,
        dependencies=dependency_contents(dag, asked) if prompts and prompts.templates else None,
    )
    trained = jobs.run_job(output / "job", folder, python=python, log_to=log_to, on_progress=on_progress)
    published = adapters.publish(output / "job", output / "adapter")
    return PipelineResult(
        adapter=str(published),
        job=str(output / "job"),
        predicate=extraction.predicate,
        selected=extraction.selected,
        traces=len(extraction.traces),
        rows=summary.rows,
        validation_rows=summary.validation_rows,
        dropped=extraction.dropped,
        dropped_rows=summary.dropped,
        result=trained.result,
    )


def run_training_pipeline(
    dag: ArtifactDAG,
    model_name: str = "unsloth/llama-3-8b-Instruct",
    output_dir: str = "trained_model",
    filter_policy: str | Predicate = "refinement",
    *,
    load_in_4bit: bool | None = None,
    method: str = "sft",
) -> tuple[Any, Any]:
    """Run the guide's complete pipeline; return the base model with the new adapter on it, and its tokenizer.

    Args:
        dag: ℛ.
        model_name: `demo`, a folder, or a hub name.
        output_dir: gets `job/` and `adapter/`.
        filter_policy: "refinement", "all", "generator", "human", "high_value", "recent", or a predicate.
        load_in_4bit: quantise the frozen base while training; None: where that is possible, as the guide does.
        method: sft, kto, dpo, sft+kto or sft+dpo, as `TrainingConfig.method`.

    Raises:
        UsageError: no such policy (a typo never trains on another one, errata 21), or no such method.
        NoTracesError: the policy selects nothing.
    """
    from guardlearn.training import backends, load_trained_model

    quantised = backends.can_4bit() if load_in_4bit is None else load_in_4bit
    config = TrainingConfig(load_in_4bit=quantised, method=method)
    result = train_from_repository(dag, model_name, Path(output_dir), predicate=filter_policy, config=config)
    return load_trained_model(str(resolve_model(model_name)), result.adapter)
