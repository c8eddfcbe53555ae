"""Writes a job folder, whole or not at all: settings, rows, and the manifest that says what they came from."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.digests import digest_bytes, digest_file, digest_files, digest_json, digest_model, digest_text
from guardlearn.errors import JobError, ModelError, NoTracesError, UsageError, missing_library
from guardlearn.jobs.config import TrainingConfig
from guardlearn.jobs.histories import recorded_histories
from guardlearn.jobs.parent import Parent, read_parent
from guardlearn.jobs.shaping import SIDES, Contents, shape
from guardlearn.prompts import PromptConfig, Renderer, special_tokens, template_digest
from guardlearn.traces import Extraction
from guardlearn.types import ArtifactStatus, OnProgress, Side, TrainingTrace

__all__ = [
    "FORMATS",
    "MANIFEST",
    "JobSummary",
    "derived",
    "load_tokenizer",
    "manifest_bytes",
    "place",
    "provenance",
    "settings_of",
    "summary",
    "write_job",
]

FORMATS = (3, 4)
"""Layouts of the folder that are written, and from which a job can be made again; 4 names what rows were made of where
that is more than accepted items."""

MANIFEST = "manifest.json"
"""File of a job folder that says what it came from."""

_LATER = {
    # a setting that came later stands in a job only where it says something: older jobs stay the same bytes
    "beta": ("kto", "dpo"),
    "sft_term": ("dpo",),
    "second_learning_rate": ("+",),
    "second_epochs": ("+",),
    "early_stopping": (),
    "keep": (),
}


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What `write_job` left."""

    folder: Path
    rows: int
    validation_rows: int
    dropped: dict[str, int]
    """Rows that did not come to be, by reason."""


def write_job(
    folder: Path,
    extraction: Extraction,
    model_path: Path,
    config: TrainingConfig | None = None,
    *,
    prompts: PromptConfig | None = None,
    dependencies: Mapping[str, str] | None = None,
    weights: Mapping[str, float] | None = None,
    about: Mapping[str, Any] | None = None,
    parent: Path | None = None,
    on_progress: OnProgress | None = None,
) -> JobSummary:
    """Write the job folder, whole or not at all; a folder that already holds this very job is left as it is.

    Args:
        folder: made by this call, with its parents; must not hold anything else.
        extraction: traces of the train side, and of the validation side if there are any.
        model_path: the base model's folder; its tokenizer decides what fits.
        config: how to train.
        prompts: how prompts are asked; None: as `retry` and `layout` of `config` say.
        dependencies: contents of the artifacts that AtomicGuard items built on, see `Renderer`.
        weights: by item id, what `weighting.weigh` gave: each above 0; a row of the train side weighs so much more or
            less. None, and items that are not named: 1.
        about: how traces were chosen and weighted, plain JSON; `weighting` of the manifest.
        parent: folder of a finished adapter that training goes on from; None: training starts from the base.
        on_progress: called with (traces shaped, traces, note).

    Raises:
        JobError: `folder` holds another job, or something that is no job.
        ModelError: no tokenizer or no weights in `model_path`; or `parent` is no adapter that this job can go on from.
        NoTracesError: not one row of the train side remains for a stage, or kto's are all of one verdict; the message
            says why.
        UsageError: a weight is no number above 0, rejected attempts were not extracted though the method is made of
            them, or the validation loss is to decide and there is no validation row.
    """
    config = config or TrainingConfig()
    _check_attempts(extraction, config)
    config = dataclasses.replace(config, base_model=config.base_model or model_path.name)
    tokenizer = load_tokenizer(model_path)
    base_digest = digest_model(model_path)
    inherited = read_parent(parent, config, base_digest) if parent is not None else None
    prompts = prompts or PromptConfig(retry=config.retry, layout=config.layout)
    renderer = Renderer(config=prompts, special_tokens=special_tokens(tokenizer), dependencies=dict(dependencies or {}))
    made = shape(
        extraction.traces,
        renderer,
        tokenizer,
        config,
        settings=settings_of(config),
        weights=_checked(weights or {}),
        on_progress=on_progress,
    )
    _check_rows(extraction, made, config)
    manifest = _told(extraction, made, weights or {}, about, inherited)
    manifest |= derived(made, config, model_path, base_digest)
    manifest |= {"base_model": config.base_model, "seed": config.seed, "training": settings_of(config)}
    place(folder, made.files | {MANIFEST: manifest_bytes(manifest)}, manifest)
    return summary(folder, manifest)


def summary(folder: Path, manifest: Mapping[str, Any]) -> JobSummary:
    """Return what a manifest says of its job."""
    return JobSummary(
        folder=folder,
        rows=manifest["rows"],
        validation_rows=manifest["validation_rows"],
        dropped=dict(Counter(reason for _, reason in manifest["left_out"])),
    )


def provenance(traces: Sequence[TrainingTrace]) -> dict[str, Any]:
    """Return what a manifest says of the traces that were trained; `evaluation.check_leakage` reads it.

    An attempt that comes with its trace was trained too.
    """
    items = [item for trace in traces for item in (*trace.attempts, trace.item)]
    ids = list(dict.fromkeys(item.id for item in items))
    return {
        "item_ids": ids,
        "item_ids_digest": digest_json(ids),
        "specification_digests": sorted({digest_text(item.specification) for item in items}),
        "groups": sorted({trace.group for trace in traces}),
    }


def _made_of(trace: TrainingTrace, ids: Sequence[str]) -> TrainingTrace:
    """Return a trace with those of its attempts that its rows were made of."""
    return msgspec.structs.replace(trace, attempts=tuple(each for each in trace.attempts if each.id in ids))


def _check_attempts(extraction: Extraction, config: TrainingConfig) -> None:
    if not config.of_attempts:
        return
    bare = next((trace for trace in extraction.traces if trace.retries and not trace.attempts), None)
    if bare is not None:
        raise UsageError(
            f"method {config.method} is made of rejected attempts too, and trace {bare.item.id!r} came without its "
            f"{bare.retries}; extract with attempts=True"
        )


def _check_rows(extraction: Extraction, made: Contents, config: TrainingConfig) -> None:
    train, validation = (made.sides[side] for side in SIDES)
    for method, rows in zip(config.methods, train.rows, strict=True):
        if not rows:
            dropped = sorted(Counter(reason for _, reason in train.left_out).items())
            reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped) or "no trace on that side"
            what = "training row" if config.method == "sft" else f"row to train {method} on"
            raise NoTracesError(f"no {what} remains of {len(extraction.traces)} traces ({reasons})")
    if "kto" in config.methods and len(train.labels) < 2:
        found, lacks = ("accepted", "rejected") if True in train.labels else ("rejected", "accepted")
        raise NoTracesError(
            f"kto learns from both verdicts, and all rows of the train side were {found}, none {lacks}; choose a "
            "policy that selects chains with both, or method sft"
        )
    if (config.keep == "best" or config.early_stopping) and not all(validation.rows):
        asked = "keep 'best'" if config.keep == "best" else f"early_stopping {config.early_stopping}"
        raise UsageError(f"{asked} goes by the validation loss, and there is no row of the validation side; drop it")


def derived(made: Contents, config: TrainingConfig, model_path: Path, base_digest: str) -> dict[str, Any]:
    """Return the part of a manifest that follows from the rows, the settings and the base model alone."""
    train, validation = (made.sides[side] for side in SIDES)
    more: dict[str, Any] = {"format": FORMATS[0]}
    if config.method != "sft":
        more = {"format": FORMATS[1], "attempts": {side.value: made.sides[side].attempts for side in SIDES}}
    return {
        **more,
        "item_ids": train.item_ids,
        "item_ids_digest": digest_json(train.item_ids),
        "validation_item_ids": validation.item_ids,
        "rows": sum(train.rows),
        "validation_rows": sum(validation.rows),
        "row_digests": {side.value: list(made.sides[side].row_digests.values()) for side in SIDES},
        "prompts": made.renderer.settings(),
        "template_digest": template_digest(made.tokenizer, made.renderer),
        "tokenizer_digest": digest_files(model_path, "tokenizer*", "vocab*", "merges.txt", "chat_template*"),
        "base_model_digest": base_digest,
        "files": {name: digest_bytes(data) for name, data in made.files.items()},
    }


def settings_of(config: TrainingConfig) -> dict[str, Any]:
    """Return a configuration as a manifest keeps it: what is None is absent, TOML knows no null."""
    default = TrainingConfig()

    def silent(name: str, value: Any) -> bool:
        said = any(part in config.method for part in _LATER.get(name, ("",)))
        return value is None or (not said and value == getattr(default, name))

    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
        if not silent(name, value)
    }


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as its file holds it: equal manifests, equal bytes."""
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def load_tokenizer(model_path: Path) -> Any:
    """Return the tokenizer of a base model's folder.

    Raises:
        ModelError: no weights, no usable tokenizer, or none that names an end token.
        BackendUnavailable: transformers is missing.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_library("transformers", "train", "writing a job") from None
    if not any(model_path.glob("*.safetensors")) and not any(model_path.glob("pytorch_model*.bin")):
        raise ModelError(f"{model_path} holds no weights (*.safetensors); copy them in or name another model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model_path} holds no usable tokenizer ({str(error).splitlines()[0][:160]})") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {model_path} names no end token (eos_token); training could not teach to stop"
        )
    return tokenizer


def place(folder: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Put files into a folder that appears with all of them; one that holds them already is left as it is.

    Args:
        folder: made with its parents.
        files: contents by name, the manifest's too.
        manifest: what its file says; an older format's that agrees with it is the same job.

    Raises:
        JobError: `folder` holds another job, or something that is no job.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MANIFEST).is_file():
            raise JobError(f"{folder} is not empty and holds no job; choose another folder")
        for name, data in files.items():
            if name == MANIFEST and _says_less(folder / MANIFEST, manifest):
                continue
            path = folder / name
            if not path.is_file() or digest_file(path) != digest_bytes(data):
                raise JobError(
                    f"{folder} holds another job ({name} differs); choose another folder, or remove this one"
                )
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staged.chmod(0o755)  # mkdtemp's 0700 would shut out another user's trainer
        for name, data in files.items():
            (staged / name).write_bytes(data)
        staged.replace(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _says_less(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a folder's manifest is of an older format and agrees with `manifest` in everything that it says."""
    try:
        older = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(older, dict) or older.get("format") not in range(FORMATS[0]):
        return False
    now = json.loads(manifest_bytes(manifest))
    return all(now.get(name) == value for name, value in older.items() if name != "format")


def _told(
    extraction: Extraction,
    made: Contents,
    weights: Mapping[str, float],
    about: Mapping[str, Any] | None,
    parent: Parent | None,
) -> dict[str, Any]:
    """Return the part of a manifest that nothing but this extraction knows, or not for long."""
    known = {trace.item.id: trace for trace in extraction.traces}
    shown = [known[name] for side in SIDES for name in made.sides[side].used]
    trained = [_made_of(known[name], ids) for name, ids in made.sides[Side.TRAIN].used.items()]
    found = {
        "predicate": extraction.predicate,
        "checkpoint": {"seq": extraction.checkpoint.seq, "item_id": extraction.checkpoint.item_id},
        "sides_digest": extraction.sides_digest,
        **provenance(trained),
        "left_out": [list(entry) for side in SIDES for entry in made.sides[side].left_out],
        "parent_adapter": parent.digest if parent else None,  # null: training starts from the base
        **_unknown(made.renderer, extraction.traces),
    }
    if parent:
        found |= parent.inherited(found)
    if about is not None:
        found["weighting"] = dict(about)
    uneven = [[name, float(weights[name])] for name in made.sides[Side.TRAIN].used if weights.get(name, 1.0) != 1.0]
    rejected = [trace.item.id for trace in shown if trace.item.status is ArtifactStatus.REJECTED]
    # pairs, as in left_out: a page that shows a manifest counts a list, and would write a mapping out
    more = {
        "weights": uneven,
        "rejected_item_ids": rejected,
        "histories": [list(pair) for pair in recorded_histories(shown).items()],
    }
    return found | {name: each for name, each in more.items() if each}


def _unknown(renderer: Renderer, traces: Sequence[TrainingTrace]) -> dict[str, Any]:
    """Return which traces' prompts lack an artifact that they held, and which those are; nothing where none does."""
    lacking = {trace.item.id: renderer.unknown_dependencies(trace.item) for trace in traces}
    missing = sorted({name for names in lacking.values() for name in names})
    if not missing:
        return {}
    return {"unknown_dependencies": [name for name, of in lacking.items() if of], "missing_dependencies": missing}


def _checked(weights: Mapping[str, float]) -> Mapping[str, float]:
    for name, weight in weights.items():
        if not 0 < weight < math.inf:
            raise UsageError(f"item {name!r} weighs {weight!r}; a weight is a number above 0")
    return weights
