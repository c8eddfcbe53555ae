"""Options that several commands share, and the generator, guard and renderer they ask for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from guardlearn.cli import console
from guardlearn.errors import UsageError
from guardlearn.prompts import PromptConfig, Renderer
from guardlearn.types import Generator, Guard

if TYPE_CHECKING:
    from guardlearn.engines import Engine
    from guardlearn.lineage import LiveAdapter
    from guardlearn.loop.config import LoopConfig

__all__ = [
    "AdapterOption",
    "AddressOption",
    "Answering",
    "Chosen",
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
    "chosen_weights",
    "open_loop",
    "opened_as_set",
    "read_prompts",
]

DEMO = "demo"
"""The model where none is named."""
PROMOTED = "promoted"
"""Name of what is live in a repository; `promoted:LEARNER` where there are several learners."""

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
    str | None,
    typer.Option(
        "--model",
        help="demo (default), a model folder, or a hub name; openai: its name on the server; promoted, or "
        "promoted:LEARNER: what is live in --db, its base with its adapter.",
    ),
]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        help="An adapter folder, or promoted, as for --model; openai: its name on the server, or NAME=FOLDER, or "
        "NAME=promoted.",
    ),
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


class Chosen(NamedTuple):
    """The model and the adapter that a command works with."""

    model: str
    adapter: Path | None


def chosen_weights(
    generator: str, model: str | None, adapter: Path | None, db: str | None, *, create: bool = False
) -> Chosen:
    """Return which weights were asked for; `promoted` is looked up in ℛ, once, and said.

    Where the bare base is live, so it is here, without an adapter.

    Args:
        generator: a name that `open_generator` knows.
        model: as `--model` has it; None: not given.
        adapter: as `--adapter` has it.
        db: the repository that says what is live; None: none was named.
        create: make the repository where there is none.

    Raises:
        UsageError: `promoted` without a repository, of no learner or of several, or beside another adapter.
        ModelError: the live adapter is gone, or was edited by hand.
    """
    by_model = _promoted_in(model or "")
    asked = by_model or _promoted_in(str(adapter or ""))
    if asked is None:
        return Chosen(model or DEMO, adapter)
    if by_model and adapter is not None:
        raise UsageError(f"--model {model} names its adapter, too; leave --adapter {adapter} out, or name the base")
    if db is None:
        raise UsageError(f"{PROMOTED} is what is live in a repository; name it with --db")
    live, base, whose = _live_in(db, asked.learner or None, create)
    if by_model and not base:
        raise UsageError(f"nothing in {db} says which base model is learned on; give --model BASE --adapter {PROMOTED}")
    used = base if by_model or not model else model
    if live is None:
        console.say(f"{PROMOTED}: no adapter is live{whose}, so the bare base {used or DEMO} answers")
        return Chosen(used or DEMO, None)
    console.say(f"{PROMOTED}: {live.folder}{whose}, weights {live.digest[:12]}, on {used or DEMO}")
    named = f"{asked.served}={live.folder}" if generator == "openai" else live.folder
    return Chosen(used or DEMO, Path(named))


class _Promoted(NamedTuple):
    """The name of what is live, as it was given."""

    served: str
    """What a server calls it."""
    learner: str
    """"" for the only one."""


def _promoted_in(name: str) -> _Promoted | None:
    """Return what `promoted`, `promoted:LEARNER` or NAME= one of them means; None: another name.

    Raises:
        UsageError: a folder of that name is here.
    """
    served, equals, rest = name.partition("=")
    text = rest if equals and not name.startswith(PROMOTED) else name
    if text != PROMOTED and not text.startswith(f"{PROMOTED}:"):
        return None
    if Path(text).is_dir():
        raise UsageError(f"{text} means what is live, and is a folder here; give the folder's absolute path")
    return _Promoted(PROMOTED if text == name else served, text.partition(":")[2])


def _live_in(db: str, learner: str | None, create: bool) -> tuple[LiveAdapter | None, str, str]:
    """Return what is live in ℛ, the base that its learner learns on, and whose it is, in words."""
    from guardlearn import lineage
    from guardlearn.dag import ArtifactDAG

    with ArtifactDAG.open_or_create(db) if create else ArtifactDAG.load(db, read_only=True) as dag:
        name = lineage.one_learner(dag, learner)  # refuses what is misspelt
        live = lineage.live_adapter(dag, name) if name else None
        own = lineage.records(dag, name) if name else []
    base = live.base_model if live else next((each.base_model for each in reversed(own) if each.base_model), "")
    return live, base, f" for {name}" if name else ""


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


def opened_as_set(config: LoopConfig, manifest: Any) -> tuple[Any, Any]:
    """Return the generator that [loop] of guardlearn.toml describes, and what its fan-out work runs on."""
    sampling = {
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
        "stop": config.stop,
        "seed": config.seed,
    }
    opened = open_loop(config.generator, config.model, None, config.guard, sampling, manifest)
    return opened.generator, opened.engine


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
