"""Options that several commands share, and the generator, guard and renderer they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from guardlearn.prompts import PromptConfig, Renderer
from guardlearn.types import Generator, Guard

__all__ = [
    "AdapterOption",
    "GuardOption",
    "Loop",
    "ModelOption",
    "PromptsOption",
    "RmaxOption",
    "SeedOption",
    "open_loop",
    "read_prompts",
]

GuardOption = Annotated[str, typer.Option("--guard", help="The guard, as package.module:attribute.")]
ModelOption = Annotated[str, typer.Option("--model", help="demo, a model folder, or a hub name.")]
AdapterOption = Annotated[Path | None, typer.Option("--adapter", help="An adapter folder.")]
PromptsOption = Annotated[
    Path | None,
    typer.Option("--prompts", help="AtomicGuard's web.db or ap_context.json: prompts as it asked them."),
]
RmaxOption = Annotated[int, typer.Option("--rmax", min=1, help="Attempts a chain may take, the first included.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all sampling noise.")]


def read_prompts(path: Path | None) -> PromptConfig | None:
    """Return the prompts that were asked for, None for guardlearn's own."""
    from guardlearn.dag.importers.atomicguard_prompts import load_prompts

    return None if path is None else load_prompts(path)


class Loop(NamedTuple):
    """What runs Definition 7's loop."""

    generator: Generator
    guard: Guard
    renderer: Renderer


def open_loop(
    generator: str,
    model: str,
    adapter: Path | None,
    guard: str,
    sampling: dict[str, Any],
    learned_from: Mapping[str, Any] | None = None,
) -> Loop:
    """Open the guard first (a typo costs nothing), then the generator.

    Args:
        generator: a name that `open_generator` knows.
        model: `demo`, a folder, or a hub name; for replay a file of answers.
        adapter: adapter folder to start with.
        guard: the guard's name.
        sampling: as in `SamplingConfig`.
        learned_from: manifest of the adapter that will answer: prompts are asked as it was trained with them.
    """
    from guardlearn.generators import SamplingConfig, open_generator
    from guardlearn.guards import load_guard
    from guardlearn.models import resolve_model

    checked = load_guard(guard)
    config = SamplingConfig(**sampling)
    folder = resolve_model(model) if generator == "transformers" else Path(model)
    prompts = PromptConfig(**(learned_from or {}).get("prompts", {}))
    opened = open_generator(generator, folder, adapter=adapter, sampling=config, renderer=Renderer(config=prompts))
    return Loop(opened, checked, Renderer(config=prompts, special_tokens=opened.special_tokens))
