"""Watches a running process tree: reads its output up to a bound, and says which limit ended it.

The kernel's limits hold for one process each; what a tree uses together, memory and processor time, is added up here
every few hundredths of a second (Linux only), so a tree may overshoot by what it takes in that time.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from guardlearn.guards.limits import Limits

__all__ = ["Ended", "tree", "watch"]

_LOOK_SECONDS = 0.025
_TICK = os.sysconf("SC_CLK_TCK")


class Ended(NamedTuple):
    """What a tree wrote, and what ended it: "timeout", "output", "memory", "stopped" (from outside) or "" (itself)."""

    stdout: bytes
    stderr: bytes
    cut: str


def watch(process: subprocess.Popen[bytes], deadline: float, bounds: Limits, until: int = -1) -> Ended:
    """Read both streams of `process` until it ends or a limit is passed; it is neither killed nor reaped here.

    Args:
        process: its leader, started with both streams as pipes.
        deadline: on the monotonic clock.
        bounds: of the whole tree.
        until: a descriptor that can be read once nothing more is wanted; -1: none.
    """
    assert process.stdout is not None and process.stderr is not None
    texts = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    streams = list(texts.values())
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for number in texts:
            os.set_blocking(number, False)
            selector.register(number, selectors.EVENT_READ)
        if until >= 0:
            selector.register(until, selectors.EVENT_READ)
        end = _end_of(process)
        if end is not None:
            stack.callback(os.close, end)
            selector.register(end, selectors.EVENT_READ)
        cut, pause = "", 0.0 if end is not None else 0.0005
        while not cut:
            wait = min(deadline - time.monotonic(), pause or _LOOK_SECONDS)
            ready = {int(key.fd) for key, _ in selector.select(max(0.0, wait))}
            ended = end in ready if end is not None else _has_ended(process)
            for number in texts:
                open_still = (number in ready or ended) and number in selector.get_map()
                if open_still and not _take(number, texts[number], bounds.output_bytes):
                    selector.unregister(number)
            if any(len(text) > bounds.output_bytes for text in streams):
                cut = "output"
            elif ended:
                break
            elif until in ready:
                cut = "stopped"
            elif time.monotonic() > deadline:
                cut = "timeout"
            elif not ready:
                cut = _excess(process.pid, bounds)
            pause = min(pause * 2, _LOOK_SECONDS)
    return Ended(bytes(streams[0]), bytes(streams[1]), cut)


def _end_of(process: subprocess.Popen[bytes]) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None where the system has none."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.pidfd_open(process.pid)
    return None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    if sys.platform == "darwin":  # has no waitid; a number freed this moment is not given away at once
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _take(number: int, text: bytearray, bound: int) -> bool:
    """Add what a stream holds now to `text`, one piece beyond `bound` at most; False when it has closed."""
    while len(text) <= bound:
        try:
            piece = os.read(number, 1 << 16)
        except BlockingIOError:
            return True
        if not piece:
            return False
        text += piece
    return True


def _excess(leader: int, bounds: Limits) -> str:
    """Return the limit that the tree below `leader` has passed together, or ""."""
    memory = ticks = 0
    for pid in tree(leader):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            memory += _memory(pid)
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # its own and its reaped children's
    if memory > bounds.memory_bytes:
        return "memory"
    return "timeout" if ticks > (bounds.cpu_seconds + 1) * _TICK else ""


def _memory(pid: int) -> int:
    """Return the bytes of a process that are no file's: pages shared by a fork count for both."""
    total = 0
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(("RssAnon:", "RssShmem:")):
            total += int(line.split()[1]) << 10
    return total


def tree(leader: int) -> list[int]:
    """Return a process and all that descend from it (Linux; elsewhere itself alone)."""
    found = [leader]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
                children = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
                found += map(int, children.split())
    return found
