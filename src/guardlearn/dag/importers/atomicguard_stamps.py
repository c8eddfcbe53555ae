"""When the object files of AtomicGuard stores were last written: what tells whether a side file is current.

Where nothing changed, asking for the state of every file is most of what opening a large folder costs, so other
processes ask for a part of it. They run this file as a program: it needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

__all__ = ["Watchers", "digest", "parse", "processors", "stamps"]

_DIGEST_BYTES = 32


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stamps(folder: bytes) -> bytes:
    """Return name, time (ns) and size of each object file in a folder, by name; `parse` takes them apart.

    Raises:
        OSError: it cannot be listed.
    """
    found = []
    with os.scandir(folder) as entries:
        for each in entries:
            if each.name.endswith(b".json"):
                try:
                    state = each.stat()
                except FileNotFoundError:  # it went meanwhile
                    continue
                found.append(b"%b\0%d %d" % (each.name, state.st_mtime_ns, state.st_size))
    found.sort()  # by name: NUL sorts before all that a name can hold
    return b"/".join(found)


def parse(found: bytes) -> dict[bytes, bytes]:
    """Return what tells each file's state, by name."""
    lines = (line.partition(b"\0") for line in found.split(b"/") if line)
    return {name: state for name, _, state in lines}


def digest(found: bytes) -> bytes:
    """Return what two equal `stamps` have in common."""
    return hashlib.sha256(found).digest()


class Watchers:
    """Looks at folders in a few processes beside this one; use it with `with`, which ends them."""

    def __init__(self, folders: Sequence[bytes], processes: int) -> None:
        """Begin to look.

        Args:
            folders: as `stamps` takes them.
            processes: as many beside this one; where none can be started, this one does it all.
        """
        self._folders = folders
        self._processes: list[subprocess.Popen[bytes]] = []
        self._turns = 1 + processes
        with contextlib.suppress(OSError):
            for turn in range(1, self._turns):
                self._processes.append(_started(folders[turn :: self._turns]))

    def __enter__(self) -> Watchers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            if process.stdout is not None:
                process.stdout.close()
            process.wait()

    def digests(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each folder and the digest of its stamps, the ones of this process first.

        Raises:
            OSError: a folder cannot be listed.
        """
        for turn in range(self._turns):
            process = self._processes[turn - 1] if 0 < turn <= len(self._processes) else None
            for folder in self._folders[turn :: self._turns]:
                told = process.stdout.read(_DIGEST_BYTES) if process and process.stdout else b""
                yield folder, told if len(told) == _DIGEST_BYTES else digest(stamps(folder))


def _started(folders: Sequence[bytes]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which ends them
    )
    assert process.stdin is not None
    with contextlib.suppress(OSError), process.stdin as told:  # it ended: what it was to look at is looked at here
        told.write(b"\0".join(folders))
    return process


def _main() -> None:
    given = sys.stdin.buffer.read()
    for folder in given.split(b"\0") if given else ():
        sys.stdout.buffer.write(digest(stamps(folder)))  # where one cannot be listed, this ends, and who asked looks
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
