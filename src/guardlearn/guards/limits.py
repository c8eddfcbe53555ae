"""What a program that a guard runs may use, what it is given, and what it leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
from collections.abc import Mapping

__all__ = ["LIMITED_FOLDER", "Limits", "Outcome", "ProcessResult", "Program", "kernel_limits"]

LIMITED_FOLDER = "/sandbox"
"""How output names the folder a program worked in, wherever that was."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use."""

    wall_seconds: float = 5.0
    """From start to end; all of it is killed then. Generous, since a busy machine is not the artifact's fault."""
    cpu_seconds: int = 1
    """Processor time of the whole tree; the kernel sends each process SIGXCPU then, and SIGKILL a second later."""
    memory_bytes: int = 256 << 20
    """Memory of the whole tree; beyond it the tree is killed."""
    address_bytes: int | None = None
    """Address space of each process: an allocation beyond it fails. None: `memory_bytes`. 0: no bound, for programs
    that reserve far more than they use (node, Java, Go)."""
    file_bytes: int = 1 << 16
    """Size of any file written."""
    folder_bytes: int = 16 << 20
    """Size of each of the private folders (work folder, /tmp, /dev/shm); only bubblewrap bounds it."""
    open_files: int = 32
    processes: int = 0
    """Further processes or threads it may start."""
    output_bytes: int = 1 << 20
    """Read from its standard output, and from its standard error; it is killed beyond."""


class Outcome(enum.StrEnum):
    """How a program ended."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    """Killed by a signal that was no limit's: it crashed, or the kernel ran out of memory."""
    TIMEOUT = "timeout"
    """It used up its processor time, or its wall-clock time."""
    OUTPUT = "output"
    """It wrote more than `output_bytes`."""
    MEMORY = "memory"
    """The tree held more than `memory_bytes`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessResult:
    """What a program left. Its work folder is called `LIMITED_FOLDER` in both streams."""

    outcome: Outcome
    stdout: bytes
    """At most `output_bytes`."""
    stderr: bytes
    """At most `output_bytes`."""
    returncode: int
    """As subprocess gives it: negative for a signal."""
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is to run: Python source in the starting process itself, or a command it becomes."""

    code: str = ""
    preload: frozenset[str] = frozenset()
    """Standard-library modules for `code`, imported before root is given up: the library may be root's alone."""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    """Written into the work folder before the start, by relative path."""
    stdin: bytes = b""
    descriptors: tuple[int, ...] = ()
    """Further open descriptors it gets, under their own numbers."""
    until: int = -1
    """It is ended, as if by itself with exit code 0, once this descriptor can be read; -1: none."""


def kernel_limits(limits: Limits, uid: int, own_users: bool) -> dict[str, tuple[int, int]]:
    """Return the kernel's limits of each process, soft and hard, by their names in `resource`.

    Args:
        limits: what the whole may use.
        uid: user number that nothing else has; 0: our own.
        own_users: it runs in a user namespace of its own.
    """
    processes = _processes(limits.processes, uid, own_users)
    address = limits.memory_bytes if limits.address_bytes is None else limits.address_bytes
    bounds = {
        "RLIMIT_CPU": (limits.cpu_seconds, limits.cpu_seconds + 1),
        "RLIMIT_FSIZE": (limits.file_bytes, limits.file_bytes),
        "RLIMIT_NOFILE": (limits.open_files, limits.open_files),
        "RLIMIT_NPROC": (processes, processes),
        "RLIMIT_CORE": (0, 0),
    }
    if address:
        bounds["RLIMIT_AS"] = (address, address)
    return bounds


def _processes(further: int, uid: int, own_users: bool) -> int:
    """Return RLIMIT_NPROC, which counts all processes of a user, the starting one included."""
    if uid:
        return further + 1
    if further == 0:
        return 0  # whatever the count is, the next one is too many
    if own_users and _kernel() >= (5, 14):  # counted within the user namespace: bubblewrap's first process, and ours
        return further + 2
    return _tasks_of_user() + further + 2


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(ch for ch in minor if ch.isdigit()) or 0)


def _tasks_of_user() -> int:
    """Return how many processes and threads the user has now; 0 where there is no /proc."""
    count, uid = 0, os.getuid()
    with contextlib.suppress(OSError), os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    if entry.stat().st_uid == uid:
                        count += len(os.listdir(f"/proc/{entry.name}/task"))  # noqa: PTH208
    return count
