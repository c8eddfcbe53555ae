"""The guide's incremental loop (its section 7): train as traces accumulate, on top of what was learned before.

After a crash the loop takes the weights of the last checkpoint and goes on; an adapter that was finished without its
checkpoint is adopted, not trained again. Definitions 14 and 15; errata 41-45.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.adapters import read_manifest
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.checkpoints import TrainingCheckpoint
from guardlearn.dag.importers.atomicguard_prompts import with_dependencies
from guardlearn.digests import digest_json
from guardlearn.errors import ModelError, UsageError
from guardlearn.formatting import Pair, Verdict
from guardlearn.jobs import TrainingConfig, provenance
from guardlearn.jobs.shaping import made_of, room_of, rows_of
from guardlearn.loop.checkpoint import adapter_of, check_item, last_checkpoint, store
from guardlearn.prompts import PromptConfig, Renderer, special_tokens, template_digest
from guardlearn.traces import Filter, content_digest, extract_new_traces, to_predicate
from guardlearn.training.weights import PROVENANCE, adapter_weights, load_adapter_weights, put_adapter_weights
from guardlearn.types import Example, OnProgress, TrainingTrace, View

__all__ = ["IncrementalResult", "incremental_training_loop"]


class IncrementalResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one call of `incremental_training_loop` did."""

    learner: str
    checkpoints: list[TrainingCheckpoint]
    """Those written by this call, oldest first; empty where there was too little to train."""
    waiting: int
    """New traces left for the next call."""
    dropped: dict[str, int]
    """New items that are no trace, and rows that cannot be trained, by reason."""


def incremental_training_loop(
    dag: ArtifactDAG,
    model: Any,
    tokenizer: Any,
    checkpoint_interval: int = 100,
    min_new_traces: int = 10,
    *,
    filter_fn: Filter = "refinement",
    output_dir: str | Path = "outputs",
    learner: str | None = None,
    views: Sequence[View | str] = (View.FIRST_ATTEMPT, View.REPAIR),
    prompts: PromptConfig | None = None,
    epochs: float = 3.0,
    batch_size: int = 8,
    learning_rate: float = 2e-4,
    seed: int = 0,
    method: str = "sft",
    on_progress: OnProgress | None = None,
) -> IncrementalResult:
    """Train on the traces that are new since the last checkpoint, until too few are left; run again, it continues.

    Each increment trains at most `checkpoint_interval` traces on top of the last one, saves the adapter and writes the
    checkpoint. Traces that arrive meanwhile come in the next increment. The order is that of creation.

    Args:
        dag: ℛ, open for writing.
        model: what `add_lora_adapters` returned. Where a checkpoint exists, its adapter's weights are put into it
            first; after an error they are as they were before the increment.
        tokenizer: the base model's; its `model_max_length` is the most tokens of a row.
        checkpoint_interval: most traces an increment.
        min_new_traces: fewer new traces wait for more.
        filter_fn: Φ_training: a policy's name, a predicate, its text, or a function of an item.
        output_dir: gets one adapter folder an increment.
        learner: the name the checkpoints are kept under; None: the predicate and the base model's name.
        views: what each trace becomes.
        prompts: how prompts are asked; None: as `guardlearn train` asks by default.
        epochs: passes over an increment's rows.
        batch_size: rows a step.
        learning_rate: peak, in every increment.
        seed: decides the order of rows.
        method: sft, kto, dpo, sft+kto or sft+dpo; a second stage has the rate and the passes of `TrainingConfig`.
        on_progress: called with (step, steps, note) for each increment.

    Raises:
        UsageError: an interval or a minimum below 1, or an unknown policy, view or method.
        JobError: an increment whose rows the method cannot train on, as those of one verdict for kto.
        RepositoryError: the last checkpoint fails its integrity check, or another loop trained the same traces.
        ModelError: the model carries no adapters, or others than the checkpoint's.
    """
    if checkpoint_interval < 1 or min_new_traces < 1:
        raise UsageError(
            f"checkpoint_interval and min_new_traces must be at least 1, got {checkpoint_interval} and {min_new_traces}"
        )
    training = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    config = TrainingConfig(method=method, batch_size=batch_size)  # refuses what it does not know
    name = Path(str(getattr(model.config, "_name_or_path", "") or type(model).__name__)).name
    course = _Course(
        dag=dag,
        model=model,
        tokenizer=tokenizer,
        predicate=filter_fn,
        learner=learner or f"{to_predicate(filter_fn)!r} on {name}",
        output=Path(output_dir),
        renderer=Renderer(config=prompts or PromptConfig(), special_tokens=special_tokens(tokenizer)),
        views=tuple(View(view) for view in views),
        training=training | ({"method": method} if config.of_attempts else {}),
        config=config,
        base_model=name,
        on_progress=on_progress,
    )
    course.resume()
    written: list[TrainingCheckpoint] = []
    while True:
        found = course.new_traces()
        rest = found.traces
        if len(rest) < min_new_traces:
            return IncrementalResult(
                learner=course.learner, checkpoints=written, waiting=len(rest), dropped=found.dropped
            )
        while len(rest) >= min_new_traces:
            now, rest = rest[:checkpoint_interval], rest[checkpoint_interval:]
            written.append(course.increment(now, found))


class _New(msgspec.Struct, frozen=True, kw_only=True):
    """New traces with the rows they give."""

    traces: list[TrainingTrace]
    rows: list[dict[str, list[Example | Pair | Verdict]]]
    """Each stage's, by trace id."""
    dropped: dict[str, int]
    seq: int
    predicate: str
    sides_digest: str


class _Course(msgspec.Struct, kw_only=True):
    """One learner at work: everything an increment needs, and the checkpoint it stands on."""

    dag: ArtifactDAG
    model: Any
    tokenizer: Any
    predicate: Filter
    learner: str
    output: Path
    renderer: Renderer
    views: tuple[View, ...]
    training: dict[str, Any]
    config: TrainingConfig
    base_model: str
    on_progress: OnProgress | None
    last: TrainingCheckpoint | None = None
    learned: dict[str, Any] = {}
    """Provenance of everything learned so far."""

    def resume(self) -> None:
        """Stand on the last checkpoint: its item and adapter checked, its weights in the model (erratum 44)."""
        adapter_weights(self.model)  # refuses a model without adapters before anything is read
        self.last = last_checkpoint(self.dag, self.learner)
        if self.last is None:
            return
        check_item(self.dag, self.last)
        folder = adapter_of(self.last, self.output)
        manifest = read_manifest(folder)
        if manifest is None or manifest.get("base_model") != self.base_model:
            told = None if manifest is None else manifest.get("base_model")
            raise ModelError(f"{folder} was trained on base model {told!r}, this one is {self.base_model!r}")
        load_adapter_weights(self.model, folder)
        self.learned = manifest
        setattr(self.model, PROVENANCE, manifest)

    def new_traces(self) -> _New:
        """Return what this learner has not trained and can train."""
        extraction = extract_new_traces(self.dag, self.learner, self.predicate, **self.config.extraction)
        renderer = with_dependencies(self.renderer, self.dag, (trace.item for trace in extraction.traces))
        room, left_out = room_of(self.tokenizer, self.tokenizer.model_max_length), list[tuple[str, str]]()
        stages: list[dict[str, list[Example | Pair | Verdict]]] = []
        for method in self.config.methods:
            stages.append({})
            for row in rows_of(method, extraction.traces, renderer, self.views, room, left_out):
                stages[-1].setdefault(row.trace_id, []).append(row)
        return _New(
            traces=[trace for trace in extraction.traces if any(trace.item.id in rows for rows in stages)],
            rows=stages,
            dropped=dict(extraction.dropped) | dict(sorted(Counter(reason for _, reason in left_out).items())),
            seq=extraction.checkpoint.seq,
            predicate=extraction.predicate,
            sides_digest=extraction.sides_digest,
        )

    def increment(self, traces: Sequence[TrainingTrace], found: _New) -> TrainingCheckpoint:
        """Train these traces, save the adapter, store the checkpoint; on an error the model is as before."""
        before = adapter_weights(self.model)
        rows = [[row for trace in traces for row in stage.get(trace.item.id, ())] for stage in found.rows]
        manifest = self._manifest(traces, rows, found)
        folder = self.output / f"adapter-{manifest['increment'][:12]}"
        try:
            if not self._adopted(folder, manifest):
                self._train(rows, manifest, folder)
            contents = {trace.item.id: content_digest(trace.item) for trace in traces}
            processed = (self.last.traces_processed if self.last else 0) + len(traces)
            self.last = store(self.dag, self.learner, contents, found.seq, processed, folder, self.last)
        except BaseException:
            put_adapter_weights(self.model, before)
            raise
        self.learned = manifest
        setattr(self.model, PROVENANCE, manifest)
        return self.last

    def _manifest(self, traces: Sequence[TrainingTrace], rows: Sequence[Sequence[Any]], found: _New) -> dict[str, Any]:
        used = {item_id for stage in rows for row in stage for item_id in made_of(row)}
        now = provenance(
            [
                msgspec.structs.replace(trace, attempts=tuple(each for each in trace.attempts if each.id in used))
                for trace in traces
            ]
        )
        parent = self.last.adapter_digest if self.last else ""
        ids = [*self.learned.get("item_ids", []), *now["item_ids"]]
        return {
            "learner": self.learner,
            "increment": digest_json([self.learner, parent, now["item_ids"], self.views, self.training]),
            "predicate": found.predicate,
            "checkpoint": {"seq": found.seq, "item_id": traces[-1].item.id},
            "sides_digest": found.sides_digest,
            "item_ids": ids,
            "item_ids_digest": digest_json(ids),
            **{name: sorted({*self.learned.get(name, []), *now[name]}) for name in ("specification_digests", "groups")},
            "rows": sum(map(len, rows)),
            "base_model": self.base_model,
            "parent_adapter": parent or None,
            "prompts": self.renderer.settings(),
            "template_digest": template_digest(self.tokenizer, self.renderer),
            "training": self.training,
        }

    def _adopted(self, folder: Path, manifest: Mapping[str, Any]) -> bool:
        """Take over an adapter that a crash left finished but without its checkpoint."""
        if not folder.exists():
            return False
        found = read_manifest(folder)
        if found is None or found.get("increment") != manifest["increment"]:
            raise ModelError(f"{folder} exists and is not this increment's adapter; choose another output_dir")
        load_adapter_weights(self.model, folder)
        return True

    def _train(
        self, rows: Sequence[Sequence[Example | Pair | Verdict]], manifest: dict[str, Any], folder: Path
    ) -> None:
        from guardlearn.training import save_trained_model

        work = self.output / f".{folder.name}"
        second = {"epochs": self.config.second_epochs, "learning_rate": self.config.second_learning_rate}
        try:
            for number, (method, own) in enumerate(zip(self.config.methods, rows, strict=True)):
                self._stage(method, own, work, self.training | (second if number else {}))
            setattr(self.model, PROVENANCE, manifest)  # `save_trained_model` writes it beside the weights
            save_trained_model(self.model, self.tokenizer, str(folder))
        finally:
            setattr(self.model, PROVENANCE, self.learned or None)
            shutil.rmtree(work, ignore_errors=True)

    def _stage(
        self, method: str, rows: Sequence[Example | Pair | Verdict], work: Path, training: Mapping[str, Any]
    ) -> None:
        from guardlearn.training.methods import train_on_rows

        size, report = training["batch_size"], self.on_progress
        steps = max(1, math.ceil(round(training["epochs"] * math.ceil(len(rows) / size), 6)))

        def told(step: Any) -> None:
            if report:
                report(step.step, steps, f"{len(rows)} rows, loss {step.loss:.3f}")

        if report:
            report(0, steps, f"{len(rows)} rows")
        data = [msgspec.structs.asdict(row) | {"prompt": list(row.prompt)} for row in rows]
        given = {name: training[name] for name in ("batch_size", "learning_rate", "seed")}
        train_on_rows(
            self.model, self.tokenizer, data, method, work, self.config, max_steps=steps, **given, on_step=told
        )
