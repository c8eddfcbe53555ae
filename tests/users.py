"""Runs Python as an ordinary user, for tests that root started: what a sandbox does differs between the two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from guardlearn.guards import sandbox

USER = 54321  # nobody's
_DROP = (
    "import os, sys\n"
    f"os.setgroups([]); os.setresgid({USER}, {USER}, {USER}); os.setresuid({USER}, {USER}, {USER})\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def run_as_user(code: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run Python source as a user without rights; as ourselves where we are one already."""
    command = [sys.executable, "-c", code, *arguments]
    if os.geteuid() == 0:
        command = [*_passable(), sys.executable, "-c", _DROP, *command[1:]]
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)


_NEEDED = (Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[1])


def closed_folders() -> set[Path]:
    """Return the folders above this interpreter and these tests that only their owner may pass."""
    return {each for path in _NEEDED for each in path.resolve().parents if not each.stat().st_mode & 0o001}


def _passable() -> list[str]:
    """Return a command line under which a user reaches this interpreter, even below a folder that is root's alone."""
    closed = closed_folders()
    if not closed:
        return []
    bwrap = sandbox.state().bwrap
    assert bwrap is not None  # the caller skips where no sandbox works
    line = [
        bwrap.path,
        "--dev-bind",
        "/",
        "/",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "CAP_SETUID",
        "--cap-add",
        "CAP_SETGID",
    ]
    for folder in sorted(closed):
        line += ["--perms", "0755", "--tmpfs", str(folder)]
    for path in _NEEDED:
        inside = [each for each in path.resolve().parents if any(above in each.parents for above in closed)]
        for each in reversed(inside):
            line += ["--perms", "0755", "--dir", str(each)]
        line += ["--ro-bind", str(path), str(path)] if set(path.resolve().parents) & closed else []
    return line
