"""Reads the objects of AtomicGuard stores in a few processes, and hands on what they were, in order.

A process is told some paths and answers with heads or records (`atomicguard_records`). It has at most two jobs at a
time, so what is in flight is bounded. It ends when its pipe does: nothing is left behind by Ctrl-C, nor by a kill of
this process. Where few objects are to be read, or no process can be started, they are read here.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self, TypeVar

import msgspec

from guardlearn.dag.importers.atomicguard_records import Head, Record, read_object, skim_object
from guardlearn.dag.importers.atomicguard_stamps import processors
from guardlearn.errors import DataError

__all__ = ["Readers", "serve"]

T = TypeVar("T")

_JOB_OBJECTS = 100
"""Objects of one job: about 400 kB of them."""

_JOB_BYTES = 16_000
"""Of paths: two jobs must fit into a pipe, or both ends would wait for each other."""

_POOL_FROM_JOBS = 20
"""Starting processes takes about as long as reading the objects of so many jobs."""

_MOST_PROCESSES = 8
_JOBS_AHEAD = 2
_ANSWER_BYTES = 1 << 20
_HELLO = b"guardlearn reads\n"
_COLLECT_AFTER = 100_000
"""New containers until circles are looked for: objects are trees, and looking is a tenth of the time."""
_LENGTH = struct.Struct("<I")
_FRAME = struct.Struct("<QI?")  # bytes of the answer, objects in it, whether the job goes on


class _Job(NamedTuple):
    skim: bool
    items: list[Any]
    paths: list[str]
    stores: list[str]


class Readers:
    """Reads objects, in as many processes as it pays; use it with `with`, which ends them."""

    def __init__(self, by_history: bool, people: Collection[str], processes: int | None = None) -> None:
        """Begin.

        Args:
            by_history: see `skim_object`.
            people: see `read_object`.
            processes: read in so many beside this one; 0: in this one; None: as it pays.
        """
        self._by_history, self._people = by_history, frozenset(people)
        self._wanted = processes
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        _collections.seldom()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _collections.as_before()
        self._end()

    def skim(self, given: Iterable[tuple[T, str, str]]) -> Iterator[tuple[list[T], list[Head]]]:
        """Yield heads, some at a time, in order.

        Args:
            given: what stands for an object, its path, and its store; taken as they are needed.

        Raises:
            DataError: a process ended before it had answered.
        """
        jobs = _jobs(True, given)
        first = list(itertools.islice(jobs, _POOL_FROM_JOBS))
        if self._wanted or (self._wanted is None and len(first) == _POOL_FROM_JOBS):
            self._start(default_processes() if self._wanted is None else self._wanted)
        yield from self._run(itertools.chain(first, jobs), _decode_heads)

    def read(self, given: Iterable[tuple[T, str, str]]) -> Iterator[tuple[list[T], list[Record]]]:
        """Yield records, some at a time, in order; see `skim`."""
        yield from self._run(_jobs(False, given), _decode_records)

    def _run(self, jobs: Iterator[_Job], decode: Any) -> Iterator[tuple[list[Any], list[Any]]]:
        if not self._processes:
            for job in jobs:
                yield from _answer(job, self._by_history, self._people)
            return
        waiting: deque[tuple[subprocess.Popen[bytes], _Job]] = deque()
        turns = itertools.cycle(self._processes)
        for job in jobs:
            if len(waiting) == _JOBS_AHEAD * len(self._processes):
                yield from self._answers(*waiting.popleft(), decode)
            process = next(turns)
            try:
                _send(process.stdin, (job.skim, [os.fsencode(path) for path in job.paths], _stores(job)))
            except OSError:
                raise self._ended(process) from None
            waiting.append((process, job))
        while waiting:
            yield from self._answers(*waiting.popleft(), decode)

    def _answers(
        self, process: subprocess.Popen[bytes], job: _Job, decode: Any
    ) -> Iterator[tuple[list[Any], list[Any]]]:
        done, more = 0, True
        assert process.stdout is not None
        while more:
            frame = process.stdout.read(_FRAME.size)
            if len(frame) < _FRAME.size:
                raise self._ended(process)
            size, count, more = _FRAME.unpack(frame)
            raw = process.stdout.read(size)
            if len(raw) < size:
                raise self._ended(process)
            yield job.items[done : done + count], decode(raw)
            done += count

    def _start(self, count: int) -> None:
        """Start the processes; there are none afterwards where that fails, as it may in an embedded Python."""
        place = str(Path(__file__).parents[3])
        code = f"import sys; sys.path[:] = {[place, *sys.path]!r}; from {__name__} import serve; serve()"
        try:
            for _ in range(count):
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for this process, which ends them
                )
                self._processes.append(process)
                assert process.stdout is not None
                _widen(process.stdout)
                _send(process.stdin, (self._by_history, sorted(self._people)))
            started = all(each.stdout and each.stdout.read(len(_HELLO)) == _HELLO for each in self._processes)
        except OSError:
            started = False
        if not started:
            self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(OSError):  # what it was not told any more
                process.stdin.close()
            process.stdout.close()
            process.wait()
        self._processes = []

    def _ended(self, process: subprocess.Popen[bytes]) -> DataError:
        return DataError(
            f"a process that read objects ended (exit code {process.wait()}) before it had answered, so nothing was "
            "stored; make room in memory, then run the same command again"
        )


class _Collections:
    """How seldom this process looks for circles while it imports, in any of its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._imports = 0
        self._before = gc.get_threshold()

    def seldom(self) -> None:
        """Begin an import."""
        with self._lock:
            if self._imports == 0:
                self._before = gc.get_threshold()
                first, *others = self._before
                gc.set_threshold(max(first, _COLLECT_AFTER) if first else 0, *others)  # 0: somebody wants none at all
            self._imports += 1

    def as_before(self) -> None:
        """End an import."""
        with self._lock:
            self._imports -= 1
            if self._imports == 0:
                gc.set_threshold(*self._before)


_collections = _Collections()


def default_processes() -> int:
    """Return how many processes read a large store: one for each processor this one may use, at most eight."""
    return min(processors(), _MOST_PROCESSES)


def serve() -> None:
    """Answer jobs from stdin on stdout until stdin ends: the whole life of a process of the pool."""
    gc.set_threshold(_COLLECT_AFTER)
    answers = sys.stdout.buffer
    answers.write(_HELLO)
    answers.flush()
    by_history, people = _receive(sys.stdin.buffer)
    people = frozenset(people)
    while (told := _receive(sys.stdin.buffer)) is not None:
        skim, paths, stores = told
        paths, stores = list(map(os.fsdecode, paths)), list(map(os.fsdecode, stores))
        done = 0
        for items, made in _answer(_Job(skim, paths, paths, stores or paths), by_history, people):
            done += len(items)
            body = msgspec.msgpack.encode(made)
            answers.write(_FRAME.pack(len(body), len(items), done < len(paths)))
            answers.write(body)
        answers.flush()


def _jobs(skim: bool, given: Iterable[tuple[T, str, str]]) -> Iterator[_Job]:
    job, size = _Job(skim, [], [], []), 0
    for item, path, store in given:
        job.items.append(item)
        job.paths.append(path)
        job.stores.append(store)
        size += len(path) + len(store)
        if len(job.items) == _JOB_OBJECTS or size > _JOB_BYTES:
            yield job
            job, size = _Job(skim, [], [], []), 0
    if job.items:
        yield job


def _stores(job: _Job) -> list[bytes]:
    return [] if job.skim else [os.fsencode(store) for store in job.stores]


def _answer(job: _Job, by_history: bool, people: Collection[str]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield a job's objects and what they were, as many at once as may be held."""
    if job.skim:
        yield job.items, [skim_object(path, by_history) for path in job.paths]
        return
    made: list[Record] = []
    size = done = 0
    for path, store in zip(job.paths, job.stores, strict=True):
        made.append(read_object(path, store, by_history, people))
        size += len(made[-1].artifact) + len(made[-1].details)
        if size > _ANSWER_BYTES:
            yield job.items[done : done + len(made)], made
            done += len(made)
            made, size = [], 0
    if made:
        yield job.items[done:], made


_decode_heads = msgspec.msgpack.Decoder(list[Head]).decode
_decode_records = msgspec.msgpack.Decoder(list[Record]).decode


def _send(pipe: IO[bytes] | None, told: Any) -> None:
    assert pipe is not None
    body = msgspec.msgpack.encode(told)
    pipe.write(_LENGTH.pack(len(body)) + body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    length = pipe.read(_LENGTH.size)
    return msgspec.msgpack.decode(pipe.read(*_LENGTH.unpack(length))) if len(length) == _LENGTH.size else None


def _widen(pipe: IO[bytes]) -> None:
    """Let a process finish its job though nobody reads yet; what Linux grants without privilege."""
    with contextlib.suppress(OSError, AttributeError, ImportError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _ANSWER_BYTES)
