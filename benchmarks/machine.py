"""What figures of a model are of, and the file they are put in."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_STARTED = time.perf_counter()


def measured(model: Path) -> dict[str, Any]:
    """Return the day, the machine, and the versions; the load average of the end is for the caller to add."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "model": model.name,
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "trl", "peft")},
        "load_average": [round(os.getloadavg()[0], 1)],
    }


def keep(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Put one benchmark's records into the file; what is in it beside them stays."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"sizes": {}}
    kept[name] = kept.get(name, {}) | entry
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def note(text: str) -> None:
    """Say on stderr what runs, and since when the program does."""
    print(f"bench: {text}, {time.perf_counter() - _STARTED:.0f} s", file=sys.stderr, flush=True)
