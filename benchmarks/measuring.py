"""Time, processor time and growth of memory of one piece of work.

Standard library only: every side of a comparison imports it, whichever interpreter it runs under.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any


class Meter:
    """Measures what runs inside `with Meter() as meter`; several blocks add up, memory is the largest growth of one."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.growth_bytes = 0

    def __enter__(self) -> Meter:
        self._resident = _resident_reset()
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall, cpu = self._started
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu
        self.growth_bytes = max(self.growth_bytes, _status("VmHWM") - self._resident)

    def result(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 6),
            "cpu_seconds": round(self.cpu_seconds, 6),
            "growth_mib": round(self.growth_bytes / 2**20, 1),
        }


def report(**result: Any) -> None:
    """Print what a measured process found, for `repository.py` to read."""
    json.dump(result, sys.stdout)


def _resident_reset() -> int:
    """Forget the peak so far; returns the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(name: str) -> int:
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
