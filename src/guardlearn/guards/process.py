"""Runs a program in a fresh, limited process and reads what it writes: what the sandbox is built on.

The process starts as an isolated Python that sets the kernel's limits, gives root up, writes the files it was handed
and then becomes the program: Python source in place, or a command through exec. Time, memory, file sizes, open files
and processes are limited by the kernel; the parent watches the whole tree, kills it at a deadline and reads output up
to a bound. What else the process may see is not this module's business: `guardlearn.guards.sandbox` closes off the
network and the file system.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from guardlearn.errors import GuardError
from guardlearn.guards.limits import LIMITED_FOLDER, Limits, Outcome, ProcessResult, Program, kernel_limits
from guardlearn.guards.watching import Ended, watch

__all__ = ["LIMITED_FOLDER", "Limits", "Outcome", "ProcessResult", "Program", "run", "run_limited"]

# Runs first in the child. Only built-in or cheap modules: json alone would double the start. `status` tells the
# parent how far it came and is closed before anything untrusted runs: "+" is written at the last moment before.
_BOOTSTRAP = """
import _signal, marshal, os, resource, sys
program = marshal.load(sys.stdin.buffer)
status, uid = program["status"], program["uid"]
os.set_inheritable(status, False)
try:
    _signal.setitimer(_signal.ITIMER_REAL, program["alarm"])  # should the parent die before it can kill us
    for name in program["preload"]:
        __import__(name)
    if uid:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError:
            if program["strict"]:
                raise OSError("root cannot be given up: no other user is mapped here") from None
    os.umask(0o022)
    for path, data in program["files"].items():
        if "/" in path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
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
    if program["command"]:
        os.dup2(program["input"], 0)
        os.close(program["input"])
        command, environment = program["command"], program["environment"]
        for number in range(1, 65):  # the interpreter ignores some; a command starts with the kernel's defaults
            try:
                if _signal.getsignal(number) == _signal.SIG_IGN:
                    _signal.signal(number, _signal.SIG_DFL)
            except (OSError, ValueError):
                pass
        program = None
        os.write(status, b"+")
        os.execve(command[0], command, environment)
    code = compile(program["code"], "<program>", "exec")
    program = None
    os.write(status, b"+")
    os.close(status)
except BaseException as error:
    said = "-" + (str(error) or type(error).__name__)
    if uid and isinstance(error, PermissionError):
        said += " (root is given up, and another user cannot reach it)"
    os.write(status, said.encode("utf-8", "replace")[:500])
    os._exit(127)
exec(code, {"__name__": "__main__"})
"""

_UNUSED_UIDS = range(60_600, 61_100)  # between systemd's homes (to 60513) and its dynamic users (from 61184)


def run_limited(
    code: str, stdin: bytes = b"", limits: Limits = Limits(), *, preload: Iterable[str] = ()
) -> ProcessResult:
    """Run Python source `code` in a limited process of its own, outside any sandbox, and return what it wrote.

    Args:
        code: source, run as `__main__` by `python -I -S`.
        stdin: what it can read from `sys.stdin.buffer`.
        limits: see `Limits`.
        preload: names of the standard library to import before root is given up; others are ignored.

    Raises:
        GuardError: the process cannot be started.
    """
    return run(Program(code=code, stdin=stdin, preload=frozenset(preload)), limits)


def run(
    program: Program,
    limits: Limits,
    *,
    prefix: Sequence[str] = (),
    descriptors: Sequence[int] = (),
    strict: bool = False,
    own_users: bool = False,
) -> ProcessResult:
    """Run a program in a limited process and return what it wrote. Nothing of ours runs between fork and exec.

    Args:
        program: what to run.
        limits: what it may use.
        prefix: command line that leads to the interpreter, such as bubblewrap's; () starts it directly.
        descriptors: open descriptors that `prefix` reads.
        strict: root that cannot be given up is an error.
        own_users: the prefix gives it a user namespace, where the kernel counts its processes from zero.

    Raises:
        GuardError: the process cannot be started.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        uid = stack.enter_context(_unused_uid()) if _is_root() and not own_users else 0
        folder = None if prefix else stack.enter_context(_folder(uid))
        status, status_end = os.pipe()
        stack.callback(os.close, status)
        header = _header(program, limits, uid, status_end, strict, bool(prefix), own_users)
        given = stack.enter_context(_readable(program.stdin)) if program.command else -1
        header["input"] = given
        source = stack.enter_context(_readable(marshal.dumps(header) + (b"" if program.command else program.stdin)))
        try:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOTSTRAP],
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env=_environment(),
                start_new_session=True,
                pass_fds=[n for n in (status_end, given, *descriptors, *program.descriptors) if n >= 0],
            )
        except OSError as error:
            raise GuardError(f"a limited process cannot be started: {error}") from error
        finally:
            os.close(status_end)
        try:
            ended = watch(process, began + limits.wall_seconds, limits, program.until)
        finally:
            _kill_group(process)
            if uid and not prefix and limits.processes:
                _kill_user(uid)
        _check_started(status, ended, process.returncode)
    return _result(ended, process.returncode, limits, folder, time.monotonic() - began)


def _header(
    program: Program, limits: Limits, uid: int, status: int, strict: bool, wrapped: bool, own_users: bool
) -> dict[str, Any]:
    return {
        "code": program.code,
        "command": list(program.command),
        "environment": dict(program.environment),
        "files": dict(program.files),
        "limits": kernel_limits(limits, uid, own_users),
        "preload": sorted({name for name in program.preload if name in sys.stdlib_module_names}),
        "alarm": limits.wall_seconds + 1.0,
        "uid": uid,
        "strict": strict,
        "status": status,
    }


def _is_root() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


@contextlib.contextmanager
def _unused_uid() -> Iterator[int]:
    """Hold a user number that no other sandbox of this machine uses now: limits are counted, and signals sent, by user.

    Held by a socket name of the abstract space, which the kernel frees whatever happens to us.
    """
    first = os.getpid() % len(_UNUSED_UIDS)
    for step in range(len(_UNUSED_UIDS)):
        uid = _UNUSED_UIDS[(first + step) % len(_UNUSED_UIDS)]
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(f"\0guardlearn-uid-{uid}")
        except OSError:
            holder.close()
            continue
        with holder:
            yield uid
        return
    raise GuardError(f"all {len(_UNUSED_UIDS)} unused users are in use; run fewer guards at once")


@contextlib.contextmanager
def _folder(uid: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="guardlearn-", ignore_cleanup_errors=True) as folder:
        if uid:
            os.chown(folder, uid, -1)
        yield folder


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """Yield a descriptor that gives `data`, and cannot be written to where the kernel can seal it."""
    if sys.platform == "linux":
        number = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        number, path = tempfile.mkstemp()
        os.unlink(path)  # noqa: PTH108
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(number, rest) :]
        if sys.platform == "linux":
            import fcntl

            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
        os.lseek(number, 0, os.SEEK_SET)
        yield number
    finally:
        os.close(number)


def _environment() -> dict[str, str]:
    """Return an empty environment, but for what a Python built with a shared library needs to start at all."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the session, the leader's children included, and only then reap the leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _kill_user(uid: int) -> None:
    """Kill what has left the session: nothing else belongs to this user, and its children are its own too."""
    for _ in range(100):  # one that forks between two looks is found by the next
        found = [entry.name for entry in os.scandir("/proc") if entry.name.isdigit() and _belongs(entry, uid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.002)


def _belongs(entry: os.DirEntry[str], uid: int) -> bool:
    try:
        return entry.stat().st_uid == uid
    except OSError:  # it has ended meanwhile
        return False


def _check_started(status: int, ended: Ended, returncode: int) -> None:
    """Raise unless the program was reached: what fails before it says nothing about the program."""
    said = os.read(status, 1000).decode("utf-8", "replace")
    started, _, failed = said.partition("-")
    if started and not failed:
        return
    how = ended.cut or f"exit code {returncode}"
    last = ended.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    raise GuardError(f"the limited process ended before its program began ({how}): {failed or ''.join(last)}")


def _result(ended: Ended, returncode: int, limits: Limits, folder: str | None, seconds: float) -> ProcessResult:
    streams = [ended.stdout, ended.stderr]
    if folder:
        real = os.path.realpath(folder).encode()
        streams = [text.replace(real, LIMITED_FOLDER.encode()) for text in streams]
    else:
        # bubblewrap reports a signal as a shell does
        returncode = 128 - returncode if 128 < returncode <= 128 + 64 else returncode
    if ended.cut == "stopped":
        return ProcessResult(
            outcome=Outcome.EXITED, stdout=streams[0], stderr=streams[1], returncode=0, seconds=seconds
        )
    return ProcessResult(
        outcome=Outcome(ended.cut) if ended.cut else _ending(returncode),
        stdout=streams[0][: limits.output_bytes],
        stderr=streams[1][: limits.output_bytes],
        returncode=returncode,
        seconds=seconds,
    )


def _ending(returncode: int) -> Outcome:
    if returncode >= 0:
        return Outcome.EXITED
    # the hard limit on processor time is enforced with SIGKILL, and our own alarm with SIGALRM
    timed = {-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM}
    return Outcome.TIMEOUT if returncode in timed else Outcome.SIGNALLED
