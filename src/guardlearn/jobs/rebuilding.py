"""A job folder made again from its manifest and ℛ, byte for byte, however ℛ has grown since.

Everything that decides a byte is in the manifest or never changes in ℛ. What is made is compared with what the manifest
says, trace by trace and file by file, before anything is placed: a folder appears only where it is the very same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers.atomicguard_prompts import dependency_contents
from guardlearn.digests import digest_bytes, digest_files, digest_model
from guardlearn.errors import JobError, ModelError, UsageError
from guardlearn.jobs.config import TrainingConfig
from guardlearn.jobs.histories import traces_again
from guardlearn.jobs.shaping import SIDES, Contents, shape
from guardlearn.jobs.writing import (
    FORMATS,
    MANIFEST,
    JobSummary,
    derived,
    load_tokenizer,
    manifest_bytes,
    place,
    summary,
)
from guardlearn.prompts import PromptConfig, Renderer, special_tokens, template_digest
from guardlearn.types import OnProgress, Side, TrainingTrace

__all__ = ["rebuild_job"]

_NEEDED = {
    **dict.fromkeys(("item_ids", "validation_item_ids", "left_out"), list),
    **dict.fromkeys(("training", "prompts", "row_digests", "files"), dict),
    **dict.fromkeys(("base_model_digest", "tokenizer_digest", "template_digest"), str),
}


def rebuild_job(
    dag: ArtifactDAG,
    manifest: Mapping[str, Any],
    to: Path,
    model_path: Path,
    *,
    digest: str | None = None,
    on_progress: OnProgress | None = None,
) -> JobSummary:
    """Write a job's folder again: the four files that `write_job` left, the same bytes.

    Args:
        dag: ℛ that the job was extracted from; it is only read.
        manifest: the job's, as `adapters.read_manifest` returns it for an adapter, or its manifest.json.
        to: folder to make, with its parents; one that holds this very job already is left as it is.
        model_path: the base model's folder.
        digest: SHA-256 of the job's manifest.json where it is known; None: the manifest vouches for itself.
        on_progress: called with (sides shaped, sides, note).

    Raises:
        JobError: the manifest is of an older format or altered, an item is gone, redacted or altered (the line names
            it), or `to` holds something else.
        ModelError: another base model, tokenizer or template than the job was written with.
    """
    config, prompts = _settings(manifest)
    tokenizer, renderer, base_digest = _same_model(manifest, model_path, prompts)
    used = _used(manifest)
    traces = _traces(dag, manifest, used)
    if prompts.templates:
        missing = set(manifest.get("missing_dependencies", ()))
        known = dependency_contents(dag, (trace.item for trace in traces))
        known = {name: text for name, text in known.items() if name not in missing}
        renderer = Renderer(config=prompts, special_tokens=renderer.special_tokens, dependencies=known)
    weights, settings = _pairs(manifest, "weights", int | float), manifest["training"]
    made = shape(traces, renderer, tokenizer, config, settings=settings, weights=weights, on_progress=on_progress)
    _same_rows(dag, manifest, made, traces, used)
    again = dict(manifest) | derived(made, config, model_path, base_digest)
    again |= {"base_model": config.base_model, "seed": config.seed}
    _same_manifest(manifest, again, digest)
    place(to, made.files | {MANIFEST: manifest_bytes(again)}, again)
    return summary(to, again)


def _settings(manifest: Mapping[str, Any]) -> tuple[TrainingConfig, PromptConfig]:
    """Return what a manifest says of training and prompts, once it says enough to make the job again."""
    if manifest.get("format") not in FORMATS:
        raise JobError(
            f"the manifest is of format {manifest.get('format')!r}; a job can be made again from format {FORMATS[0]} "
            "on, which names all that its rows were made of: keep this one's folder"
        )
    for name, kind in _NEEDED.items():
        if not isinstance(manifest.get(name), kind):
            raise JobError(f"the manifest has no {name}; give the whole of it, as it stands beside the adapter")
    said: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in manifest["training"].items()
    }
    try:
        return TrainingConfig(**said), PromptConfig(**manifest["prompts"])
    except (TypeError, UsageError) as error:
        raise JobError(
            f"the manifest's settings cannot be used ({error}); use the guardlearn that wrote the job"
        ) from error


def _pairs(manifest: Mapping[str, Any], name: str, kind: Any) -> dict[str, Any]:
    """Return a list of (item id, value) as a mapping; it is absent where it would be empty."""
    pairs = manifest.get(name, [])
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise JobError(f"the manifest's {name} are no pairs of item and value; give the one beside the adapter")
    wrong = [pair for pair in pairs if not isinstance(pair[0], str) or not isinstance(pair[1], kind)]
    if wrong:
        raise JobError(f"the manifest's {name} hold {wrong[0]!r:.80}; give the one that stands beside the adapter")
    return dict(pairs)


def _same_model(manifest: Mapping[str, Any], model_path: Path, prompts: PromptConfig) -> tuple[Any, Renderer, str]:
    tokenizer = load_tokenizer(model_path)
    renderer = Renderer(config=prompts, special_tokens=special_tokens(tokenizer))
    found = {
        "base_model": digest_model(model_path),
        "tokenizer": digest_files(model_path, "tokenizer*", "vocab*", "merges.txt", "chat_template*"),
        "template": template_digest(tokenizer, renderer),
    }
    words = {"base_model": "base model", "template": "prompt template (renderer, chat template or tokenizer)"}
    for name, digest in found.items():
        if digest != manifest[f"{name}_digest"]:
            raise ModelError(
                f"{model_path} has another {words.get(name, name)} than the job was written with: digest {digest}, the "
                f"manifest says {manifest[f'{name}_digest']}; give the base model and the guardlearn of that time"
            )
    return tokenizer, renderer, found["base_model"]


def _used(manifest: Mapping[str, Any]) -> dict[Side, dict[str, list[str]]]:
    """Return each side's traces, and the rejected attempts that their rows were made of."""
    if manifest["format"] == FORMATS[0]:
        ids = {Side.TRAIN: manifest["item_ids"], Side.VALIDATION: manifest["validation_item_ids"]}
        return {side: {name: [] for name in names} for side, names in ids.items()}
    said = manifest.get("attempts")
    if not isinstance(said, dict):
        raise JobError("the manifest has no attempts; give the whole of it, as it stands beside the adapter")
    return {side: _pairs(said, side.value, list) for side in SIDES}


def _traces(
    dag: ArtifactDAG, manifest: Mapping[str, Any], used: Mapping[Side, Mapping[str, list[str]]]
) -> list[TrainingTrace]:
    sides = {name: side for side in SIDES for name in used[side]}
    attempts = {name: names for side in SIDES for name, names in used[side].items()}
    histories, rejected = _pairs(manifest, "histories", list), manifest.get("rejected_item_ids", ())
    return traces_again(dag, list(sides), sides=sides, histories=histories, attempts=attempts, rejected=rejected)


def _same_rows(
    dag: ArtifactDAG,
    manifest: Mapping[str, Any],
    made: Contents,
    traces: Sequence[TrainingTrace],
    used: Mapping[Side, Mapping[str, list[str]]],
) -> None:
    """Name the first item whose rows are not those that were trained."""
    written = {side: dict(zip(used[side], manifest["row_digests"].get(side.value, ()), strict=False)) for side in SIDES}
    for trace in traces:
        name = trace.item.id
        if made.sides[trace.side].row_digests.get(name) == written[trace.side].get(name):
            continue
        for entry in trace.history:
            facts = dag.get_item(entry.item_id).facts if entry.item_id in dag.known_ids([entry.item_id]) else None
            if facts is not None and facts.redacted:
                raise JobError(
                    f"item {name!r} was trained with {entry.item_id!r} in its history, which was redacted in "
                    f"{dag.target} since: the row cannot be made again"
                )
        raise JobError(
            f"item {name!r} gives other rows than were trained: its texts, its history or what its prompt was built "
            f"on were altered in {dag.target}, or another repository is asked; `guardlearn verify` tells"
        )


def _same_manifest(written: Mapping[str, Any], again: Mapping[str, Any], digest: str | None) -> None:
    other = [name for name in again if written.get(name) != again[name]]
    if other:
        raise JobError(
            f"the manifest was altered: its {', '.join(other)} disagree with what its items give; give the one that "
            "stands beside the adapter"
        )
    found = digest_bytes(manifest_bytes(again))
    if digest is not None and found != digest:
        raise JobError(
            f"the manifest made again has the SHA-256 {found}, the job's had {digest}: the manifest given is not that "
            "job's; give the one that stands beside the adapter"
        )
