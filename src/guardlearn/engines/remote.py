"""What runs in the workers of a cluster: a guard as a task, a generator as an actor."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guardlearn.engines.local import judge
from guardlearn.errors import GuardlearnError
from guardlearn.types import Generation, GenerationRequest, Generator, Guard, GuardContext, Verdict

__all__ = ["AS_OPENED", "GeneratorActor", "Given", "Site", "judge_there"]

AS_OPENED = "\0as opened"
"""The adapter, or none, that a generator was opened with."""


class Site:
    """What a worker needs to find what the driver found, and the guard."""

    def __init__(self, folder: str, paths: Sequence[str], guard: bytes, sandbox: str) -> None:
        self.folder, self.paths, self.guard, self.sandbox = folder, list(paths), guard, sandbox

    @classmethod
    def here(cls, guard: bytes) -> Site:
        """Return the site of this process, for a guard's opener as cloudpickle wrote it."""
        from guardlearn.guards.sandbox import wished

        return cls(str(Path.cwd()), [each for each in sys.path if each], guard, wished())

    def settle(self) -> None:
        """Make this process look where the driver looks; a worker that has the folder works in it."""
        from guardlearn.guards.sandbox import prefer

        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path.extend(each for each in self.paths if each not in sys.path)
        prefer(self.sandbox)


class Given:
    """A guard that travels as it is."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __call__(self) -> Guard:
        """Open it."""
        return self._guard


_opened: dict[bytes, Guard] = {}
"""The guards of this worker process."""


def judge_there(site: Site, artifact: str, context: GuardContext) -> Verdict | GuardlearnError:
    """Run the guard, opened once in a worker; an expected error is given back, not raised: Ray would wrap it."""
    guard = _opened.get(site.guard)
    if guard is None:
        from ray import cloudpickle

        site.settle()
        guard = _opened[site.guard] = cloudpickle.loads(site.guard)()
    try:
        return judge(guard, artifact, context)
    except GuardlearnError as error:
        return error


class GeneratorActor:
    """A generator on the cluster. An expected error is given back, not raised: Ray would wrap it."""

    def __init__(self, site: Site, opener: bytes) -> None:
        from ray import cloudpickle

        site.settle()
        self._failure: GuardlearnError | None = None
        self._adapter: str | None = AS_OPENED
        try:
            self._generator: Generator = cloudpickle.loads(opener)()
        except GuardlearnError as error:
            self._failure = error

    def about(self) -> Any:
        """Return what the driver has to know."""
        if self._failure is not None:
            return self._failure
        generator = self._generator
        return {
            "model": generator.model,
            "prompt_digest": generator.prompt_digest,
            "common_random_numbers": generator.common_random_numbers,
            "special_tokens": tuple(generator.special_tokens),
            "lanes": max(1, getattr(generator, "lanes", 1)),
            "batch": max(0, getattr(generator, "batch", 0)),
            "adapter": AS_OPENED,
            "described": dict(generator.describe()),
        }

    def use_adapter(self, adapter: str | None) -> GuardlearnError | None:
        """Switch the generator; one that was started again does it with its next call."""
        if adapter in (AS_OPENED, self._adapter):
            return None
        try:
            self._generator.use_adapter(adapter)
        except GuardlearnError as error:
            return error
        self._adapter = adapter
        return None

    def generate(self, requests: list[GenerationRequest], adapter: str | None) -> Iterator[tuple[int, Any]]:
        """Yield (index, answer) as each finishes; an expected error comes last, at index -1."""
        error = self._failure or self.use_adapter(adapter)
        if error is not None:
            yield -1, error
            return
        told = queue.SimpleQueue[tuple[int, Any] | BaseException | None]()

        def work() -> None:
            try:
                answered = set[int]()

                def on_done(index: int, generation: Generation) -> None:
                    answered.add(index)
                    told.put((index, generation))

                for index, generation in enumerate(self._generator.generate(requests, on_done)):
                    if index not in answered:
                        told.put((index, generation))
            except GuardlearnError as error:
                told.put((-1, error))
            except BaseException as error:  # a fault of ours or the library's: Ray carries it over
                told.put(error)
            told.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (each := told.get()) is not None:
            if isinstance(each, BaseException):
                raise each
            yield each
