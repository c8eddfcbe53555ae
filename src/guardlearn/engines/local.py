"""The local engine: one thread a generate call, and threads that run the guard, in this process."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, ParamSpec, Self, TypeVar

from guardlearn.engines.protocol import OnAnswer
from guardlearn.errors import UsageError
from guardlearn.guards import judge
from guardlearn.types import Generation, GenerationRequest, Generator, Guard, GuardContext, Verdict

__all__ = ["THREADS", "LocalEngine", "Workers", "judge"]

THREADS = "guardlearn-"
"""How the names of an engine's threads begin."""

_GRACE_SECONDS = 2.0
"""How long `close` waits for a call that is still running."""

P = ParamSpec("P")
T = TypeVar("T")


class LocalEngine:
    """Runs the generator in `lanes` threads, as many as it takes calls at once, and the guard in `judges` threads."""

    def __init__(self, generator: Generator | None, guard: Guard, *, guard_workers: int | None = None) -> None:
        """Take a generator and a guard; threads start with their first task.

        Args:
            generator: π_θ, called from one thread for each of its `lanes`; None where only guards are run.
            guard: G, called from several threads.
            guard_workers: threads that run the guard; None: one a core, at least 2.

        Raises:
            UsageError: `guard_workers` below 1.
        """
        if guard_workers is not None and guard_workers < 1:
            raise UsageError(f"guard_workers is {guard_workers}; allowed: at least 1, or None for one a core")
        self.lanes: int = max(1, getattr(generator, "lanes", 1))
        self.batch: int = max(0, getattr(generator, "batch", 0))
        self.judges: int = guard_workers or max(2, _cores())
        self._generator, self._guard = generator, guard
        self._closing = threading.Event()
        self._calls = Workers(self.lanes, "generate")
        self._verdicts = Workers(self.judges, "judge")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, requests: Sequence[GenerationRequest], on_answer: OnAnswer) -> Future[list[Generation]]:
        """Answer requests; see `Engine`."""
        if self._generator is None:
            raise UsageError("this engine has no generator; open it with one")

        def answered(index: int, generation: Generation) -> None:
            if self._closing.is_set():
                raise _GivenUp  # ends a batched call at its next answer
            on_answer(index, generation)

        return self._calls.submit(self._generator.generate, list(requests), answered)

    def judge(self, artifact: str, context: GuardContext) -> Future[Verdict]:
        """Run the guard; see `Engine`."""
        return self._verdicts.submit(judge, self._guard, artifact, context)

    def close(self) -> None:
        """Give up what is in flight; a call that does not end within two seconds is left to its thread."""
        self._closing.set()
        deadline = time.monotonic() + _GRACE_SECONDS
        for workers in (self._calls, self._verdicts):
            workers.close(deadline)


def _cores() -> int:
    """Return the processors this process may use; not every system tells which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Threads that work off tasks in order, and do not keep a process from ending as an executor's would."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._tasks = queue.SimpleQueue[tuple[Future[Any], Callable[[], None]] | None]()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `function` in one of the threads."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._tasks.put((future, run))
        if len(self._threads) < self._count:
            thread = threading.Thread(
                target=self._work, name=f"{THREADS}{self._name}-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return future

    def close(self, deadline: float) -> None:
        """Drop the tasks that wait, and wait for those that run until `deadline`, a time of `time.monotonic`."""
        with contextlib.suppress(queue.Empty):
            while True:
                if task := self._tasks.get_nowait():
                    task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task[1]()


class _GivenUp(Exception):
    """The engine was closed; nobody waits for this call any more."""
