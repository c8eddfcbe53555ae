"""π_θ: generators that answer prompts. transformers (local, batched), openai (servers) and replay (a shipped fake).

    generator = open_generator("transformers", folder, sampling=SamplingConfig(temperature=0.5))
    answers = generator.generate([GenerationRequest(messages=({"role": "user", "content": "..."},), key="0/a/0/1")])

Importing this package imports no library; a generator's own are imported when it is opened.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guardlearn.errors import UsageError, missing_library
from guardlearn.generators.replay import ReplayGenerator
from guardlearn.generators.sampling import SamplingConfig
from guardlearn.generators.server import OpenAISettings

__all__ = ["GENERATORS", "OpenAISettings", "ReplayGenerator", "SamplingConfig", "open_generator"]

GENERATORS = {
    "transformers": "guardlearn.generators.transformers:TransformersGenerator",
    "openai": "guardlearn.generators.openai:OpenAIGenerator",
    "replay": "guardlearn.generators.replay:ReplayGenerator.from_file",
}
"""Name → what opens it."""


def open_generator(
    name: str,
    model: str | Path,
    adapter: str | Path | None = None,
    sampling: SamplingConfig | None = None,
    **options: Any,
) -> Any:
    """Open a generator by name.

    Args:
        name: "transformers", "openai" or "replay".
        model: a model folder; for openai the server's name of the model; for replay a file of answers (see
            `ReplayGenerator.from_file`).
        adapter: adapter folder to start with; for openai a name on the server, or NAME=FOLDER.
        sampling: how tokens are drawn; replay draws none.
        options: the generator's own (transformers: dtype, batch_size, renderer; openai: settings, renderer).

    Returns:
        A `guardlearn.types.Generator`.

    Raises:
        UsageError: no generator by that name.
        BackendUnavailable: its libraries are not installed.
        ModelError: the model or adapter cannot be used.
    """
    if name not in GENERATORS:
        near = difflib.get_close_matches(name, GENERATORS, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(f"no generator named {name!r}{meant}; allowed: {', '.join(GENERATORS)}")
    if name == "replay":
        generator = ReplayGenerator.from_file(Path(model))
        generator.use_adapter(adapter)
        return generator
    return _opener(name)(model, adapter=adapter, sampling=sampling, **options)


def _opener(name: str) -> Callable[..., Any]:
    module, attribute = GENERATORS[name].split(":")
    try:
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    except ImportError as error:
        library = (error.name or "torch").split(".")[0]
        raise missing_library(library, "train", f"generator {name!r}") from error
