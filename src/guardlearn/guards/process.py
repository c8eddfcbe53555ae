"""Runs Python source in a fresh, limited process: what guards use to execute an artifact (Definition 6's G).

The process is `python -I -S` with an empty environment, its own session and an empty working folder that goes with
it. Time, memory, file sizes, open files and processes are limited by the kernel; the whole group is killed at a
wall-clock deadline, and output is read up to a bound. Started as root, it gives root up first: root is exempt from
limits on processes. The network and world-readable files are not closed off here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import marshal
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import IO

__all__ = ["Limits", "Outcome", "ProcessResult", "run_limited"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a process may use."""

    wall_seconds: float = 5.0
    """From start to end; the group is killed then. Generous, since a busy machine is not the artifact's fault."""
    cpu_seconds: int = 1
    """Processor time; the kernel sends SIGXCPU then, and SIGKILL a second later."""
    memory_bytes: int = 256 << 20
    """Address space; an allocation beyond it raises MemoryError."""
    file_bytes: int = 1 << 16
    """Size of any file written."""
    open_files: int = 32
    processes: int = 0
    """Further processes or threads it may start."""
    output_bytes: int = 1 << 20
    """Read from its standard output; it is killed beyond."""


class Outcome(enum.StrEnum):
    """How a process ended."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    """Killed by a signal that was no limit's: the interpreter crashed, or the kernel ran out of memory."""
    TIMEOUT = "timeout"
    """It used up its processor time, or its wall-clock time."""
    OUTPUT = "output"
    """It wrote more than `output_bytes`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessResult:
    """What a process left."""

    outcome: Outcome
    stdout: bytes
    """At most `output_bytes`."""
    returncode: int
    """As subprocess gives it: negative for a signal."""
    seconds: float


# Runs in the child, before anything untrusted. Only built-in or cheap modules: json alone would double the start.
_BOOTSTRAP = """
import _signal, marshal, os, resource, sys
program = marshal.load(sys.stdin.buffer)
_signal.setitimer(_signal.ITIMER_REAL, program["alarm"])  # should the parent die before it can kill us
for name in program["preload"]:
    __import__(name)
for name, (soft, hard) in program["limits"].items():
    kind = getattr(resource, name, None)
    if kind is not None:
        top = resource.getrlimit(kind)[1]
        if top != resource.RLIM_INFINITY:
            soft, hard = min(soft, top), min(hard, top)
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise
if program["uid"]:
    try:
        os.setgroups([])
        os.setresgid(*[program["uid"]] * 3)
        os.setresuid(*[program["uid"]] * 3)
    except OSError:
        pass  # a container that maps no other user
code = compile(program["code"], "<program>", "exec")
program = None
exec(code, {"__name__": "__main__"})
"""

_UNUSED_UIDS = 60_600  # above Debian's and systemd's dynamic users (ending 60577 and 61183 start), below nobody's 65534


def run_limited(
    code: str, stdin: bytes = b"", limits: Limits = Limits(), *, preload: Iterable[str] = ()
) -> ProcessResult:
    """Run Python source `code` in a process of its own, and return what it wrote.

    Safe to call from several threads: nothing runs between fork and exec.

    Args:
        code: source, run as `__main__`.
        stdin: what it can read from `sys.stdin.buffer`.
        limits: see `Limits`.
        preload: standard-library modules to import before root is given up, since the library may be readable to
            root alone. Only names of the standard library are imported.

    Raises:
        OSError: the process cannot be started.
    """
    began = time.monotonic()
    program = {
        "code": code,
        "limits": _kernel_limits(limits),
        "preload": sorted({name for name in preload if name in sys.stdlib_module_names}),
        "alarm": limits.wall_seconds + 1.0,
        "uid": _UNUSED_UIDS + os.getpid() % 500 if sys.platform == "linux" and os.geteuid() == 0 else 0,
    }
    with tempfile.TemporaryDirectory(prefix="guardlearn-") as folder, tempfile.TemporaryFile() as source:
        source.write(marshal.dumps(program) + stdin)
        source.seek(0)
        if program["uid"]:
            os.chown(folder, int(str(program["uid"])), -1)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOTSTRAP],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(),
            start_new_session=True,
        )
        assert process.stdout is not None
        with process.stdout:
            try:
                stdout, cut = _read(process.stdout, began + limits.wall_seconds, limits.output_bytes)
                cut = cut or _wait(process, began + limits.wall_seconds)
            finally:
                _kill_group(process)
    return ProcessResult(
        outcome=cut or _ending(process.returncode),
        stdout=stdout,
        returncode=process.returncode,
        seconds=time.monotonic() - began,
    )


def _kernel_limits(limits: Limits) -> dict[str, tuple[int, int]]:
    return {
        "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),
        "RLIMIT_AS": (limits.memory_bytes, limits.memory_bytes),
        "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
        "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
        "RLIMIT_NPROC": (limits.processes, limits.processes),
        "RLIMIT_CORE": (0, 0),
    }


def _environment() -> dict[str, str]:
    """Return an empty environment, but for what a Python built with a shared library needs to start at all."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}


def _read(pipe: IO[bytes], deadline: float, bound: int) -> tuple[bytes, Outcome | None]:
    """Return what comes through `pipe` until it closes, and the limit that ended it sooner, if one did."""
    chunks: list[bytes] = []
    size = 0
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return b"".join(chunks), None
            chunks.append(chunk)
            size += len(chunk)
            if size > bound:
                return b"".join(chunks)[:bound], Outcome.OUTPUT
    return b"".join(chunks), Outcome.TIMEOUT


def _wait(process: subprocess.Popen[bytes], deadline: float) -> Outcome | None:
    """Wait for a process that has closed its output, without reaping it: its number must not be given away yet."""
    pause = 0.0005
    while not _has_ended(process):
        if time.monotonic() > deadline:
            return Outcome.TIMEOUT
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    if sys.platform == "darwin":  # has no waitid; a number freed this moment is not given away at once
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the session, the leader's children included, and only then reap the leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(returncode: int) -> Outcome:
    if returncode >= 0:
        return Outcome.EXITED
    # the hard limit on processor time is enforced with SIGKILL, and our own alarm with SIGALRM
    timed = {-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM}
    return Outcome.TIMEOUT if returncode in timed else Outcome.SIGNALLED
