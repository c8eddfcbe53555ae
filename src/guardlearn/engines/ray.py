"""The Ray engine: generators as actors, guards as tasks, on one machine or many.

Ray places the work, starts dead workers again and moves what they did elsewhere; this module says what the work is.
A request that a dead actor did not answer is asked again, with the same key; a guard whose worker died is run again.
Only the driver touches ℛ: each future gives one result, so each attempt is stored once, however often it was run.

Every node needs guardlearn, the guard's module and what the generator opens (a model folder, a server's key in its
environment): `ray job submit --working-dir . -- guardlearn collect …` brings the working folder along.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from guardlearn.engines.local import Workers
from guardlearn.engines.protocol import OnAnswer
from guardlearn.engines.remote import GeneratorActor, Given, Site, judge_there
from guardlearn.errors import (
    BackendUnavailable,
    GeneratorUnavailable,
    GuardlearnError,
    ModelError,
    UsageError,
    missing_library,
)
from guardlearn.types import ArtifactStatus, Generation, GenerationRequest, Generator, Guard, GuardContext, Verdict

__all__ = ["RayEngine", "RemoteGenerator"]

_GUARD_RUNS = 4
"""How often a guard is run whose worker dies, before it has no verdict."""
_PATIENCE_SECONDS = 180.0
"""How long requests wait for an actor that died, after its last answer."""
_PAUSE_SECONDS = 1.0
"""Between two tries."""
_COUNT_EVERY_SECONDS = 5.0
"""How long the cluster's processors are taken to stay the same."""


class RayEngine:
    """Runs generators in actors and guards in tasks of a Ray cluster."""

    def __init__(
        self,
        open_generator: Callable[[], Generator] | None,
        guard: Guard,
        *,
        address: str | None = None,
        actors: int | None = None,
        actor_cpus: float = 0.0,
        actor_gpus: float = 0.0,
        open_guard: Callable[[], Guard] | None = None,
    ) -> None:
        """Connect to a cluster, or start one on this machine, and open the generator there.

        Args:
            open_generator: called in each actor; None where only guards are run.
            guard: G; it is sent to the workers unless `open_guard` opens it there.
            address: of the cluster; None: RAY_ADDRESS, else a cluster of this machine alone.
            actors: generators opened; None: as many as there are GPUs for, at least 1.
            actor_cpus: processors an actor takes from the guards.
            actor_gpus: GPUs an actor takes; only where the cluster has any.
            open_guard: opens G in a worker.

        Raises:
            BackendUnavailable: Ray is not installed, or the cluster cannot be reached.
            ModelError: the generator cannot be opened there.
        """
        self._ray = ray = _import_ray()
        self._owns = not ray.is_initialized()
        if self._owns:
            _connect(ray, address)
        self._closing = threading.Event()
        self._site = ray.put(Site.here(ray.cloudpickle.dumps(open_guard or Given(guard))))
        self._judge = ray.remote(num_cpus=1, max_retries=_GUARD_RUNS - 1, scheduling_strategy="SPREAD")(judge_there)
        self._counted_at, self._processors = 0.0, 1
        self._reserved = 0.0
        self._actors: list[Any] = []
        self._free = queue.SimpleQueue[Any]()
        self.lanes, self.batch = 1, 0
        self.generator: RemoteGenerator | None = None
        if open_generator is not None:
            try:
                self._open_actors(open_generator, actors, actor_cpus, actor_gpus)
            except BaseException:
                self.close()
                raise
        self._calls = Workers(self.lanes, "generate")

    def _open_actors(
        self, open_generator: Callable[[], Generator], actors: int | None, cpus: float, gpus: float
    ) -> None:
        ray = self._ray
        there = float(ray.cluster_resources().get("GPU", 0.0)) if gpus else 0.0
        count = actors or (int(there // gpus) if there else 1) or 1
        opened = ray.cloudpickle.dumps(open_generator)
        options = {"num_cpus": cpus} | ({"num_gpus": gpus} if there else {})
        remote = ray.remote(GeneratorActor).options(
            **options,
            max_restarts=-1,
            max_concurrency=1000,  # the engine itself sends no more than the generator's lanes
            scheduling_strategy="SPREAD",
        )
        # by value: an actor that is started again finds its arguments even where their node is gone
        self._actors = [remote.remote(Site.here(b""), opened) for _ in range(count)]
        self._reserved = count * cpus
        about, *_ = [_checked(ray.get(actor.about.remote())) for actor in self._actors]
        self.generator = RemoteGenerator(about, self._use_adapter)
        self.lanes, self.batch = count * self.generator.lanes, self.generator.batch
        for _ in range(self.generator.lanes):
            for actor in self._actors:
                self._free.put(actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def judges(self) -> int:
        """Processors of the cluster that no actor took, as they are now; at least 1."""
        now = time.monotonic()
        if now - self._counted_at > _COUNT_EVERY_SECONDS:
            there = float(self._ray.cluster_resources().get("CPU", 1.0))
            self._counted_at, self._processors = now, max(1, int(there - self._reserved))
        return self._processors

    def judge(self, artifact: str, context: GuardContext) -> Future[Verdict]:
        """Run the guard; see `Engine`. One whose worker dies each time gives no verdict."""
        outer: Future[Verdict] = Future()

        def ended(inner: Future[Any]) -> None:
            try:
                outer.set_result(_checked(inner.result()))
            except GuardlearnError as error:
                outer.set_exception(error)
            except self._ray.exceptions.RayTaskError as error:  # the guard cannot be opened there
                outer.set_exception(BackendUnavailable(f"the guard cannot run on the cluster: {_last_line(error)}"))
            except self._ray.exceptions.RayError as error:
                outer.set_result(_no_verdict(error))
            except BaseException as error:
                outer.set_exception(error)

        self._judge.remote(self._site, artifact, context).future().add_done_callback(ended)
        return outer

    def generate(self, requests: Sequence[GenerationRequest], on_answer: OnAnswer) -> Future[list[Generation]]:
        """Answer requests; see `Engine`. Those that a dead actor did not answer are asked again."""
        if self.generator is None:
            raise UsageError("this engine has no generator; open it with one")
        return self._calls.submit(self._answer, list(requests), self.generator.adapter, on_answer)

    def close(self) -> None:
        """Give up what is in flight, end the actors, and leave the cluster if this engine joined it."""
        if self._closing.is_set():
            return
        self._closing.set()
        for actor in self._actors:
            self._ray.kill(actor)
        if hasattr(self, "_calls"):
            self._calls.close(time.monotonic() + 5.0)
        if self._owns:
            self._ray.shutdown()

    def _answer(self, requests: list[GenerationRequest], adapter: str | None, on_answer: OnAnswer) -> list[Generation]:
        found: dict[int, Generation] = {}
        since = time.monotonic()
        while left := [index for index in range(len(requests)) if index not in found]:
            actor = self._free.get()
            try:
                for place, generation in self._stream(actor, [requests[index] for index in left], adapter):
                    found[left[place]] = generation
                    on_answer(left[place], generation)
                    since = time.monotonic()
                if len(found) < len(requests):
                    raise ModelError(f"a generator gave {len(found)} answers to {len(requests)}; it must give all")
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError as error:  # the actor died, or its node did; Ray starts it again
                if self._closing.is_set():
                    raise
                if time.monotonic() - since > _PATIENCE_SECONDS:
                    raise GeneratorUnavailable(
                        f"a generator on the cluster died and did not answer for {_PATIENCE_SECONDS:.0f} s "
                        f"({_last_line(error)})"
                    ) from error
                time.sleep(_PAUSE_SECONDS)
            finally:
                self._free.put(actor)
        return [found[index] for index in range(len(requests))]

    def _stream(
        self, actor: Any, requests: list[GenerationRequest], adapter: str | None
    ) -> Iterator[tuple[int, Generation]]:
        for reference in actor.generate.options(num_returns="streaming").remote(requests, adapter):
            place, told = self._ray.get(reference)
            yield place, _checked(told)

    def _use_adapter(self, adapter: str | None) -> None:
        for actor in self._actors:
            _checked(self._ray.get(actor.use_adapter.remote(adapter)))


class RemoteGenerator:
    """What the driver knows of the generators on a cluster; answers come through the engine."""

    def __init__(self, about: Mapping[str, Any], use_adapter: Callable[[str | None], None]) -> None:
        self.model: str = about["model"]
        self.prompt_digest: str = about["prompt_digest"]
        self.common_random_numbers: bool = about["common_random_numbers"]
        self.special_tokens: tuple[str, ...] = about["special_tokens"]
        self.lanes: int = about["lanes"]
        self.batch: int = about["batch"]
        self.adapter: str | None = about["adapter"]
        self._described: Mapping[str, Any] = about["described"]
        self._use_adapter = use_adapter

    def generate(
        self, requests: list[GenerationRequest], on_done: Callable[[int, Generation], None] | None = None
    ) -> list[Generation]:
        """Refuse: whoever asks a generator on a cluster does so through its engine.

        Raises:
            UsageError: always.
        """
        raise UsageError("a generator on a cluster answers through its engine; pass engine=… to the loop")

    def use_adapter(self, adapter: str | Path | None) -> None:
        """Switch every generator to an adapter that each of their nodes has, or to the bare base with None."""
        chosen = None if adapter is None else str(adapter)
        self._use_adapter(chosen)
        self.adapter = chosen

    def describe(self) -> Mapping[str, Any]:
        """Return the sampling settings, as the generators say them: where they run is none of them."""
        return self._described


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise missing_library("ray", "ray", "engine 'ray'") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    here = address is None and "RAY_ADDRESS" not in os.environ
    options = {"include_dashboard": False} if here else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise BackendUnavailable(f"no Ray cluster at {where} ({_last_line(error)}); check --address") from error


def _checked(told: Any) -> Any:
    if isinstance(told, GuardlearnError):
        raise told
    return told


def _no_verdict(error: Exception) -> Verdict:
    said = f"its worker died {_GUARD_RUNS} times: {_last_line(error)}"
    return Verdict(status=ArtifactStatus.PENDING, feedback=said, cause="guard failed")


def _last_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
