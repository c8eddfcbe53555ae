"""The last step of an ablation: chains of every trained model, and of the untrained one, on the validation side.

All models meet the same sampling noise, keyed by seed, specification, sample and attempt, so that pairs of chains
differ by the training alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from guardlearn import evidence
from guardlearn.ablation.keeping import ChainOutcome, Record, file_name, read_kept, record_of, write_kept
from guardlearn.ablation.trainings import job_of
from guardlearn.ablation.work import Work, shifted
from guardlearn.attempts import Attempt, attempt_chains
from guardlearn.engines import Engine
from guardlearn.prompts import PromptConfig, Renderer
from guardlearn.types import Generator, OnProgress

__all__ = ["UNTRAINED", "measure_arms"]

UNTRAINED = "untrained"
"""Name of the model that no arm has trained; where ways of asking differ, with the way."""


class _Model(NamedTuple):
    """What is measured."""

    name: str
    seed: int | None
    """None: the untrained model."""
    manifest: Mapping[str, Any]
    """Of the job, or of one whose prompts the untrained model is asked with."""
    adapter: Path | None


def measure_arms(
    work: Work, steps: Mapping[str, list[int]], on_progress: OnProgress
) -> dict[tuple[str, int | None], Record]:
    """Measure what is not measured yet; return records by arm and seed, those of the untrained model without a seed.

    Args:
        work: the ablation, trained.
        steps: of each stage, by arm.
        on_progress: called with (attempts made or no longer needed, those possible, note).
    """
    models = _models(work)
    keys = [(model.name, model.seed) for model in models]
    places = {key: work.folder / "records" / f"{file_name(*key)}.json" for key in keys}
    bound = {
        key: record_of(work.planned.digest, *key, [] if key[1] is None else steps[key[0]]) for key in keys
    }  # fmt: skip
    records = {key: read_kept(places[key], Record, bound[key]) for key in keys}
    missing = [model for model in models if records[model.name, model.seed] is None]
    chains = len(work.planned.specs) * work.settings.ablation.samples * work.planned.r_max
    total = len(missing) * chains
    if missing:
        with _opened(work, missing[0]) as (generator, engine):
            for place, model in enumerate(missing):
                key = (model.name, model.seed)
                who = model.name if model.seed is None else f"{model.name}, seed {model.seed}"
                attempts = _attempts(work, model, generator, engine, shifted(on_progress, who, place * chains, total))
                made = Record(
                    of=bound[key],
                    steps=[] if model.seed is None else steps[model.name],
                    pairing="common random numbers" if generator.common_random_numbers else "specification",
                    chains=_outcomes(work, attempts, generator),
                )
                write_kept(places[key], made)
                records[key] = made
    on_progress(total, total, f"{len(records)} models")
    return {key: record for key, record in records.items() if record is not None}


def _models(work: Work) -> list[_Model]:
    """Return the untrained model, once for each way that arms ask, and every trained one."""
    seeds = work.settings.ablation.seeds
    manifests = {
        (arm.name, seed): json.loads((job_of(work, arm.name, seed) / "manifest.json").read_bytes())
        for arm in work.planned.arms
        for seed in seeds
    }
    ways: dict[str, Mapping[str, Any]] = {}
    for arm in work.planned.arms:
        ways.setdefault(arm.training.retry, manifests[arm.name, seeds[0]])
    untrained = [
        _Model(UNTRAINED if len(ways) == 1 else f"{UNTRAINED}, {way}", None, manifest, None)
        for way, manifest in ways.items()
    ]
    return untrained + [
        _Model(name, seed, manifest, job_of(work, name, seed) / "adapter")
        for (name, seed), manifest in manifests.items()
    ]


@contextlib.contextmanager
def _opened(work: Work, model: _Model) -> Any:
    generator, engine = work.bench.open_generator(work.settings.loop, model.manifest)
    with contextlib.closing(engine) if engine else contextlib.nullcontext():
        yield generator, engine


def _attempts(
    work: Work, model: _Model, generator: Generator, engine: Engine | None, on_progress: OnProgress
) -> list[Attempt]:
    prompts = PromptConfig(**model.manifest["prompts"])
    generator.use_adapter(None if model.adapter is None else str(model.adapter))
    try:
        return attempt_chains(
            work.planned.specs,
            generator,
            work.bench.guard,
            renderer=Renderer(config=prompts, special_tokens=generator.special_tokens),
            r_max=work.planned.r_max,
            samples=work.settings.ablation.samples,
            seed=work.settings.loop.seed,
            on_progress=on_progress,
            engine=engine,
        )
    finally:
        generator.use_adapter(None)


def _outcomes(work: Work, attempts: Sequence[Attempt], generator: Generator) -> list[ChainOutcome]:
    guard = work.bench.guard
    said = evidence.summarise(
        work.planned.specs,
        attempts,
        None,
        r_max=work.planned.r_max,
        samples=work.settings.ablation.samples,
        seed=work.settings.loop.seed,
        about={
            "model": generator.model,
            "adapter": None,
            "pairing": "",
            "leakage": "",
            "sampling": {},
            "guard": guard.name,
            "guard_version": guard.version,
            "digests": {},
            "versions": {},
        },
    )
    return [
        ChainOutcome(spec=pair.id, sample=pair.sample, group=pair.group, outcome=pair.base) for pair in said.per_spec
    ]
