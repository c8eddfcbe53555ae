"""How an adapter was made, for the report: gathered from ℛ and the finished job folder, or from the adapter alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from guardlearn import adapters
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.batching import batches
from guardlearn.dag.tables import facts, items
from guardlearn.errors import JobError, ModelError
from guardlearn.prompts import PromptConfig, Renderer, template_digest
from guardlearn.report.masks import MaskedRow, masked_rows
from guardlearn.training.model import load_tokenizer
from guardlearn.training.settings import Job, read_job
from guardlearn.types import OnProgress, RepositoryItem

__all__ = ["Story", "TraceStory", "mapping", "story", "story_of_adapter"]


def mapping(account: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table of a training's account; empty where it has none: the file beside an adapter may be anybody's."""
    found = account.get(name)
    return found if isinstance(found, Mapping) else {}


class TraceStory(msgspec.Struct, frozen=True, kw_only=True):
    """A chain that became a trace, and the training rows the trace became."""

    attempts: tuple[RepositoryItem, ...]
    """First attempt to accepted artifact."""
    rows: tuple[MaskedRow, ...]
    """Empty where the base model's tokenizer was not at hand."""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about how an adapter was made; what is not known is empty."""

    manifest: dict[str, Any]
    """The job's manifest: predicate, checkpoint, digests, base model, seed, counts."""
    result: dict[str, Any]
    """The training's own account: steps, rows, seconds, losses, versions."""
    settings: dict[str, Any] = {}
    """job.toml."""
    losses: tuple[tuple[int, float], ...] = ()
    """(step, training loss), step by step."""
    looks: tuple[tuple[int, float], ...] = ()
    """(step, loss on the validation rows), where the training looked."""
    dropped: dict[str, int] | None = None
    """Selected items that became no trace, by reason; None: not known here."""
    dropped_rows: dict[str, int] = {}
    """Rows that did not come to be, by reason."""
    traces: tuple[TraceStory, ...] = ()
    """With the fewest, a middle and the most retries; fewer where there are not three specifications."""

    @property
    def validation_loss(self) -> dict[str, float]:
        """Mean loss on the validation rows, of the base and as trained; empty where there were none."""
        found = mapping(self.result, "validation_loss").items()
        return {name: float(loss) for name, loss in found if isinstance(loss, int | float)}


def story(
    dag: ArtifactDAG | None,
    job_folder: Path,
    model_folder: Path | None,
    *,
    dropped: Mapping[str, int] | None = None,
    on_progress: OnProgress | None = None,
) -> Story:
    """Gather how a finished job's adapter was made.

    Args:
        dag: ℛ that the job's items came from; it is only read. None: not at hand, so no chain is told.
        job_folder: a finished job.
        model_folder: the base model it was written for; None: not at hand, so no row is shown as tokens.
        dropped: selected items that became no trace, by reason, as the extraction counted them.
        on_progress: called with (chains told, chains, note).

    Raises:
        JobError: the folder holds no finished job, or it was altered.
        ModelError: another tokenizer or chat template than the job's.
    """
    job = read_job(job_folder)
    metrics = _metrics(job_folder)
    return Story(
        manifest=job.manifest,
        result=_result(job_folder),
        settings={name: value for name, value in dataclasses.asdict(job.settings).items() if value is not None},
        losses=tuple((line["step"], line["loss"]) for line in metrics),
        looks=tuple((line["step"], line["validation_loss"]) for line in metrics if "validation_loss" in line),
        dropped=dict(dropped) if dropped is not None else None,
        dropped_rows=_dropped_rows(job.manifest),
        traces=tuple(_traces(dag, job, model_folder, on_progress or _silent)) if dag is not None else (),
    )


def story_of_adapter(adapter: Path) -> Story | None:
    """Return what a published adapter says about itself: manifest and result; None where nothing stands beside it.

    Raises:
        ModelError: no adapter there, or what stands beside it is unreadable.
    """
    manifest = adapters.read_manifest(adapter)
    if manifest is None:
        return None
    published = json.loads((adapter / adapters.MANIFEST).read_text(encoding="utf-8"))
    return Story(manifest=manifest, result=dict(mapping(published, "result")), dropped_rows=_dropped_rows(manifest))


def _result(job_folder: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((job_folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"{job_folder} has no result.json: its training has not finished; run it again first") from None
    return result


def _metrics(job_folder: Path) -> list[dict[str, Any]]:
    lines = (job_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _dropped_rows(manifest: Mapping[str, Any]) -> dict[str, int]:
    return dict(sorted(Counter(reason for _, reason in manifest.get("left_out", ())).items()))


def _silent(done: int, total: int, note: str) -> None:
    """Say nothing."""


def _traces(dag: ArtifactDAG, job: Job, model_folder: Path | None, tell: OnProgress) -> Iterator[TraceStory]:
    # of what is not imitated, rows of rejected attempts or pairs, the accepted side is shown
    imitated = [{**row, "completion": row.get("completion", row.get("chosen"))} for row in job.train]
    imitated = [row for row in imitated if row.get("label", True)]
    chosen = _chosen(_candidates(dag, list(dict.fromkeys(row["trace_id"] for row in imitated))))
    if not chosen:
        return
    tell(0, len(chosen), "chains that became traces")
    tokenizer = _tokenizer(job, model_folder) if model_folder is not None else None
    for done, item_id in enumerate(chosen, 1):
        rows = [row for row in imitated if row["trace_id"] == item_id]
        masked = masked_rows(rows, tokenizer, job.settings.max_length) if tokenizer is not None else []
        yield TraceStory(attempts=tuple(dag.provenance(item_id)), rows=tuple(masked))
        tell(done, len(chosen), "chains that became traces")


def _tokenizer(job: Job, model_folder: Path) -> Any:
    tokenizer = load_tokenizer(str(model_folder), job.settings.max_length)
    found = template_digest(tokenizer, Renderer(config=PromptConfig(**job.manifest.get("prompts", {}))))
    if found != job.manifest["template_digest"]:
        raise ModelError(
            f"{model_folder} turns texts into other tokens than the job's base model {job.settings.base_model} did "
            f"(digest {found}, the manifest says {job.manifest['template_digest']}); name that model"
        )
    return tokenizer


class _Candidate(NamedTuple):
    """An item that was trained on; sorts by retries, then as the job lists it."""

    retries: int
    place: int
    specification: int
    id: str


def _candidates(dag: ArtifactDAG, ids: Sequence[str]) -> list[_Candidate]:
    """Return the job's items by retries, without those of a chain of which something has been redacted."""
    places = {item_id: place for place, item_id in enumerate(ids)}
    redacted = sa.select(facts.c.root_seq).where(facts.c.redacted)
    query = (
        sa.select(facts.c.rejected_ancestors, items.c.specification, items.c.id)
        .join(facts, facts.c.seq == items.c.seq)
        .where(facts.c.root_seq.not_in(redacted))
    )
    with dag.reading() as connection:
        return sorted(
            _Candidate(retries, places[item_id], specification, item_id)
            for batch in batches(ids)
            for retries, specification, item_id in connection.execute(query.where(items.c.id.in_(batch)))
        )


def _chosen(ranked: Sequence[_Candidate]) -> list[str]:
    """Return ids with the fewest, a middle and the most retries, of three specifications: the earliest of equals."""
    chosen: list[_Candidate] = []
    for pick in (_fewest, _most, _middle):
        seen = {one.specification for one in chosen}
        left = [one for one in ranked if one.specification not in seen]
        if left:
            chosen.append(pick(left))
    return [one.id for one in sorted(chosen)]


def _fewest(ranked: Sequence[_Candidate]) -> _Candidate:
    return ranked[0]


def _most(ranked: Sequence[_Candidate]) -> _Candidate:
    return max(ranked, key=lambda one: (one.retries, -one.place))


def _middle(ranked: Sequence[_Candidate]) -> _Candidate:
    return ranked[len(ranked) // 2]
