"""A Python that starts at once: a nursery, which has imported what programs need, forks a process for each of them.

Importing the training libraries takes many seconds, the command line most of one; the tests start dozens of programs
that need the ones and hundreds that need the other. `Nursery.python` is an executable that is called as Python is. What
it starts is a process of its own, with the streams, folder, environment and file size limit of the one that calls; only
its imports are done already. Where the training libraries are, what it starts itself as `sys.executable` comes from
here too. Starts from nothing are in test_cli.py, test_collect_cli.py, test_architecture.py, test_training.py,
test_backends.py and test_evaluate_killed.py, and in the proof `readme`.
"""

from __future__ import annotations

import marshal
import os
import resource
import sys

TYPE_CHECKING = False  # who calls imports as little as can be, `typing` neither
if TYPE_CHECKING:
    import socket
    import subprocess
    from pathlib import Path

TRAINING = [
    "pydantic.type_adapter",
    "scipy.stats",
    "matplotlib.pyplot",
    "transformers.models.llama.modeling_llama",
    "guardlearn.cli",
    "guardlearn.generators.in_memory",
    "guardlearn.generators.transformers",
    "guardlearn.pipeline",
    "guardlearn.report.making",
    "guardlearn.training.job",
    "guardlearn.training.plain",
    "guardlearn.training.stages",
    "guardlearn.training.trl",
]
COMMANDS = [
    "numpy",
    "psycopg",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql.psycopg",
    "guardlearn.cli",
    "guardlearn.dag",
    "guardlearn.audit",
    "guardlearn.collect",
    "guardlearn.credentials",
    "guardlearn.dag.importers.atomicguard",
    "guardlearn.dag.importers.atomicguard_prompts",
    "guardlearn.dag.importers.chat",
    "guardlearn.dag.importers.log",
    "guardlearn.dag.importers.repository",
    "guardlearn.formats",
    "guardlearn.guards.process",
    "guardlearn.jobs",
    "pydantic.type_adapter",  # the command line takes it where it is installed
    "rich.markdown",
    "rich.progress",
    "typer._adapters",
    "typer.rich_utils",
]
"""What a nursery imports for programs that train, and for those that do not."""

_CHOICE = 'case "$1" in -m|-c|[!-]*) exec {call} "$@";; *) exec {cold} "$@";; esac'
_BYTES = 200_000  # of one message: arguments and environment


class Nursery:
    """Forks programs as long as it is open."""

    def __init__(self, folder: Path, imported: list[str]) -> None:
        import shlex
        import subprocess

        self.python = str(folder / "python")
        """Executable: `python -m MODULE …`, `python -c CODE …` or `python FILE …`; with other options Python itself."""
        path, cold = str(folder / "socket"), shlex.quote(sys.executable)
        call = f"{cold} -I -S {shlex.quote(__file__)} call {shlex.quote(path)}"
        program = folder / "python"
        program.write_text(f"#!/bin/sh\n{_CHOICE.format(call=call, cold=cold)}\n", encoding="utf-8")
        program.chmod(0o755)
        starts = self.python if imported is TRAINING else sys.executable  # a sandbox knows the real one only
        command = [sys.executable, __file__, "serve", path, starts, *imported]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill -9 what `Nursery.python` runs; the process that asked for it then ends in the same way, and not before."""
    import signal

    process.send_signal(signal.SIGUSR1)


# -- who calls


def call(path: str, *arguments: str) -> None:
    """Have a program run with these streams, and end as it does."""
    import _signal  # what `signal` and `socket` wrap; they import much, and this runs for every program
    import _socket
    import array

    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGUSR1])  # until it is known whom it means
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    connection.connect(path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    program = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "limit": limit}  # noqa: PTH109
    streams = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    connection.sendmsg([marshal.dumps(program)], [streams])
    pid = int(connection.recv(_BYTES))
    _signal.signal(_signal.SIGUSR1, lambda *_: os.kill(pid, _signal.SIGKILL))
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGUSR1])
    status = int(connection.recv(_BYTES))
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


# -- the nursery


def serve(path: str, python: str, *imported: str) -> None:
    """Fork programs until stdin is closed."""
    import gc
    import importlib
    import select
    import signal
    import socket

    for name in imported:
        importlib.import_module(name)
    gc.freeze()  # or the programs would copy what they share when they collect garbage
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                os._exit(0)  # to take down what was imported takes a while
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _supervise(connection, python)
            connection.close()


def _supervise(connection: socket.socket, python: str) -> None:
    """Fork a program and tell its caller how it ends; it does not outlive the caller."""
    import select
    import signal
    import socket

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, _BYTES, 3)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(marshal.loads(message), streams, python)
    for stream in streams:
        os.close(stream)
    connection.send(str(pid).encode())
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        connection.send(str(status).encode())
    finally:
        os._exit(0)


def _become(program: dict, streams: list[int], python: str) -> None:
    """Be the program."""
    import atexit
    import traceback

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(program["folder"])
    os.environ.clear()
    os.environ.update(program["environment"])
    resource.setrlimit(resource.RLIMIT_FSIZE, tuple(program["limit"]))
    sys.executable = python
    status = 1
    try:
        _run(*program["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _run(first: str, *others: str) -> None:
    import runpy
    from pathlib import Path

    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    if first == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), list(others)
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path[0], sys.argv = "", ["-c", *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv = str(Path(first).resolve().parent), [first, *others]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
