"""Options that several commands share, and the generator, guard and renderer they ask for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from guardlearn.errors import UsageError
from guardlearn.prompts import PromptConfig, Renderer
from guardlearn.types import Generator, Guard

if TYPE_CHECKING:
    from guardlearn.engines import Engine

__all__ = [
    "AdapterOption",
    "AddressOption",
    "Answering",
    "EngineOption",
    "GeneratorOption",
    "GuardOption",
    "Loop",
    "ModelOption",
    "PromptsOption",
    "RmaxOption",
    "SandboxOption",
    "SeedOption",
    "answering",
    "open_loop",
    "read_prompts",
]

GuardOption = Annotated[
    str,
    typer.Option("--guard", help="Of guardlearn.toml, a ready one (pytest, python …), or package.module:attribute."),
]


def _prefer_sandbox(choice: str) -> str:
    from guardlearn.guards.sandbox import prefer, wished

    prefer(choice)
    wished()  # a wrong setting is told now, not by every guard
    return choice


SandboxOption = Annotated[
    str,
    typer.Option(
        "--sandbox",
        callback=_prefer_sandbox,
        help="Where guards run artifacts: auto | bubblewrap | none (a limited process, for code you trust).",
    ),
]
"""It holds for every guard that asks for none itself, so a command need not do anything with it."""
GeneratorOption = Annotated[str, typer.Option("--generator", help="transformers | openai (a server) | replay")]
ModelOption = Annotated[
    str, typer.Option("--model", help="demo, a model folder, or a hub name; openai: its name on the server.")
]
AdapterOption = Annotated[
    Path | None,
    typer.Option("--adapter", help="An adapter folder; openai: its name on the server, or NAME=FOLDER."),
]
EngineOption = Annotated[
    str, typer.Option("--engine", help="Where answers are written and judged: local (this process) | ray (a cluster).")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="The Ray cluster; default: RAY_ADDRESS, else one on this machine.")
]
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


class Answering(NamedTuple):
    """Which weights answer beside the base, and what they learned from."""

    digest: str
    """Digest of the adapter's weights; "name NAME" where a server alone has them; "" for the bare base."""
    manifest: dict[str, Any] | None
    """The job's manifest; None where nothing here says what was learned from."""
    folder: Path | None
    """The adapter's folder; None: no adapter, or none here."""


def answering(generator: str, model: str, adapter: Path | None) -> Answering:
    """Look up what is known of the weights that will answer.

    Args:
        generator: a name that `open_generator` knows.
        model: as in `open_loop`; a merged model says itself what it learned from.
        adapter: the adapter's folder; for a server NAME or NAME=FOLDER.

    Raises:
        ModelError: no adapter there, or its manifest cannot be read.
    """
    from guardlearn import adapters
    from guardlearn.generators.server import served
    from guardlearn.models import resolve_model

    if generator == "transformers" and adapter is not None:
        manifest = adapters.read_manifest(adapter)  # first: it says best what is missing
        return Answering(adapters.adapter_digest(adapter), manifest, adapter)
    if adapter is None:
        folder = resolve_model(model) if generator == "transformers" else Path(model)
        return Answering("", adapters.manifest_in(folder), None)
    name, here = served(adapter)
    if here is None or not (here / adapters.WEIGHTS).is_file():
        return Answering(f"name {name}", adapters.manifest_in(here) if here else None, None)
    return Answering(adapters.adapter_digest(here), adapters.read_manifest(here), here)


class Loop(NamedTuple):
    """What runs Definition 7's loop; whoever opens it closes its engine."""

    generator: Generator
    guard: Guard
    renderer: Renderer
    engine: Engine


def open_loop(
    generator: str,
    model: str,
    adapter: Path | None,
    guard: str,
    sampling: dict[str, Any],
    learned_from: Mapping[str, Any] | None = None,
    *,
    retry: str | None = None,
    engine: str = "local",
    address: str | None = None,
    guard_workers: int | None = None,
) -> Loop:
    """Open the guard first (a typo costs nothing), then the generator.

    Args:
        generator: a name that `open_generator` knows.
        model: `demo`, a folder, or a hub name; for a server its name there; for replay a file of answers.
        adapter: adapter folder to start with; for a server NAME or NAME=FOLDER.
        guard: the guard's name.
        sampling: as in `SamplingConfig`.
        learned_from: manifest of the adapter that will answer: prompts are asked as it was trained with them.
        retry: what a retry shows, "feedback" or "artifact"; None: as the adapter learned, else feedback.
        engine: where both run, "local" or "ray".
        address: of the Ray cluster; None: RAY_ADDRESS, else one on this machine.
        guard_workers: guards the local engine runs at once; None: one a core, at least 2.

    Raises:
        UsageError: `retry` is neither, or not what the adapter learned; no such engine; an address without a cluster.
    """
    from guardlearn import settings
    from guardlearn.engines import LocalEngine
    from guardlearn.generators import OpenAISettings, SamplingConfig, open_generator
    from guardlearn.guards import load_guard
    from guardlearn.models import resolve_model

    if engine not in ("local", "ray") or (address is not None and engine != "ray"):
        raise UsageError(f"engine {engine!r} with address {address!r}; allowed: local, or ray (and --address with it)")
    checked = load_guard(guard)
    config = SamplingConfig(**sampling)
    named = resolve_model(model) if generator == "transformers" else model
    prompts = _prompts((learned_from or {}).get("prompts", {}), retry)
    own = {"settings": settings.read().table("openai", OpenAISettings)} if generator == "openai" else {}
    asked = Renderer(config=prompts)
    opener = functools.partial(
        open_generator, generator, named, adapter=adapter, sampling=config, renderer=asked, **own
    )
    running: Engine
    if engine == "ray":
        from guardlearn.engines.ray import RayEngine

        heavy = generator == "transformers"
        running = RayEngine(
            opener,
            checked,
            address=address,
            actor_cpus=1.0 if heavy else 0.0,
            actor_gpus=1.0 if heavy else 0.0,
            open_guard=functools.partial(load_guard, guard),
        )
        opened: Any = running.generator
    else:
        opened = opener()
        running = LocalEngine(opened, checked, guard_workers=guard_workers)
    return Loop(opened, checked, Renderer(config=prompts, special_tokens=opened.special_tokens), running)


def _prompts(learned: Mapping[str, Any], retry: str | None) -> PromptConfig:
    prompts = PromptConfig(**learned)
    if retry is None:
        return prompts
    if learned and prompts.retry != retry:
        raise UsageError(
            f"a retry is to show {retry!r}, but the adapter learned from prompts that show {prompts.retry!r}; leave "
            "--retry out"
        )
    return PromptConfig(**{**learned, "retry": retry})
