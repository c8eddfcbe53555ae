"""Runs a pytest suite over a Python artifact so that the artifact cannot touch the verdict (Definition 6's G).

Where an artifact and its tests share a process, the artifact can end it with exit code 0, replace `assert`, pytest or
the test functions, or write the report itself; nothing in that process can be believed. Here they share none:

    tests' sandbox: pytest ── plain data, over a socket ── artifact's sandbox: the module

`import answer` in a test gives a stand-in (guards/apart/proxies.py) that asks the other process. Assertions are
evaluated beside the tests, the artifact is told arguments and never what is expected, and what it sends is data.
The tests' process never sees the artifact's file, so nothing the artifact brings along (conftest.py, pytest.ini,
sitecustomize.py, atexit or signal handlers, patches) is there to be run.

What this does not give: the artifact learns the arguments of every call, and whether it is called by tests at all; it
can remember them between calls, so a suite that asks for `f(2)` and nothing else accepts `return 4`. And some tests
need one process: those that subclass an artifact's class, pass it an object of their own class, await its coroutines,
read its source or signature, or replace `input` under it. They fail here although the artifact is right. Lists, dicts
and sets are passed by copy and given back what a call did to them; those an artifact returns are copies. For such a
suite use a command guard in the same sandbox, and know that an artifact that looks for the tests can then pass them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards.process import Limits, Outcome, ProcessResult
from guardlearn.guards.sandbox import run_program

__all__ = ["TEST_LIMITS", "TestRun", "run_tests"]

TEST_LIMITS = Limits(
    wall_seconds=60.0,
    cpu_seconds=30,
    memory_bytes=1 << 30,
    address_bytes=4 << 30,
    file_bytes=16 << 20,
    folder_bytes=64 << 20,
    open_files=256,
    processes=32,
)
"""Of each of the two processes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TestRun:
    """What the tests said."""

    __test__ = False  # no test, whatever pytest makes of its name

    passed: bool
    """Every test passed, and at least one did."""
    cause: str
    """"" | "tests" (one failed) | "no tests" | "timeout" | "memory" | "output" | "crash"."""
    output: str
    """What pytest wrote."""
    seconds: float


def run_tests(
    artifact: str,
    tests: Mapping[str, str | bytes],
    *,
    module: str = "answer",
    limits: Limits = TEST_LIMITS,
    sandbox: str = "auto",
    readable: Sequence[Path] = (),
    environment: Mapping[str, str] = {},
    options: Sequence[str] = ("-q", "--no-header", "--tb=short"),
) -> TestRun:
    """Run a pytest suite over an artifact, each in a sandbox of its own.

    Safe to call from several threads.

    Args:
        artifact: source of one Python module.
        tests: files of the suite by relative path: tests, and what they need (conftest.py, data).
        module: the name they import the artifact by.
        limits: of each of the two processes.
        sandbox: "auto", "bubblewrap" or "none".
        readable: further absolute paths both may read.
        environment: of both, see `guardlearn.guards.sandbox.run_sandboxed`.
        options: pytest's command line.

    Raises:
        SandboxUnavailable: there is no sandbox here.
        GuardError: the tests' process failed on its own account: bad options, an error inside pytest.
        UsageError: `module` is no module name, or a path is not as it must be.
    """
    if not module.isidentifier():
        raise UsageError(f"module {module!r} is no module name; the tests must be able to import it")
    began = time.monotonic()
    ours, theirs = socket.socketpair()
    stopping, stop = os.pipe()
    served: list[ProcessResult | GuardError] = []

    def serve() -> None:
        line = f"serve({theirs.fileno()}, {module!r}, os.path.abspath({module + '.py'!r}))"
        try:
            files = {f"{module}.py": artifact.encode("utf-8", "surrogatepass"), **_copies()}
            served.append(
                run_program(
                    _start("serving", "serve", line), files=files, limits=limits, sandbox=sandbox, readable=readable,
                    environment=environment, descriptors=(theirs.fileno(),), until=stopping,
                )
            )  # fmt: skip
        except GuardError as error:
            served.append(error)
        finally:
            with contextlib.suppress(OSError):
                theirs.shutdown(socket.SHUT_RDWR)  # the tests must not wait for an answer

    thread = threading.Thread(target=serve, name="artifact")
    thread.start()
    try:
        line = f"main({ours.fileno()}, {module!r}, {list(options)!r})"
        judged = run_program(
            _start("testing", "main", line), files={**tests, **_copies()}, limits=limits, sandbox=sandbox,
            readable=readable, environment=environment, descriptors=(ours.fileno(),),
        )  # fmt: skip
    finally:
        os.close(stop)
        thread.join()
        os.close(stopping)
        ours.close()
        theirs.close()
    if isinstance(served[0], GuardError):
        raise served[0]
    return _verdict(judged, served[0], time.monotonic() - began)


_APART = ".apart"
_FILES = ("__init__", "wire", "serving", "proxies", "testing")


def _copies() -> dict[str, bytes]:
    """Return our own files for both sandboxes, under their own names."""
    source = Path(__file__).parent / "apart"
    files = {f"{_APART}/guardlearn/guards/apart/{name}.py": (source / f"{name}.py").read_bytes() for name in _FILES}
    return files | {f"{_APART}/guardlearn/__init__.py": b"", f"{_APART}/guardlearn/guards/__init__.py": b""}


def _start(module: str, function: str, line: str) -> list[str]:
    """Return the command that runs `line` with our files, which then are no longer in the way of a real guardlearn."""
    code = (
        f"import os, sys; sys.path.insert(0, os.path.abspath({_APART!r}))\n"
        f"from guardlearn.guards.apart.{module} import {function}\n"
        "del sys.path[0], sys.modules['guardlearn.guards'], sys.modules['guardlearn']\n"
        f"{line}\n"
    )
    return [sys.executable, "-I", "-B", "-X", "utf8", "-c", code]


def _verdict(judged: ProcessResult, served: ProcessResult, seconds: float) -> TestRun:
    output = judged.stdout.decode("utf-8", "replace") + judged.stderr.decode("utf-8", "replace")
    for result in (served, judged):
        if result.outcome is not Outcome.EXITED:
            cause = "crash" if result.outcome is Outcome.SIGNALLED else result.outcome.value
            return TestRun(passed=False, cause=cause, output=output, seconds=seconds)
    causes = {0: "", 1: "tests", 2: "tests", 5: "no tests", 6: "crash"}
    if judged.returncode not in causes:
        last = " ".join(output.split())[-200:]
        raise GuardError(f"pytest ended with exit code {judged.returncode}, which says nothing about artifacts: {last}")
    cause = causes[judged.returncode]
    return TestRun(passed=not cause, cause=cause, output=output, seconds=seconds)
