"""Run the long proofs, one after another; a proof whose evidence is from this very tree is not run again.

Usage: python prove/run.py [NAME ...]. Each proof writes docs/evidence/NAME.json with commit, machine and date.
"""

import contextlib
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence"
WORK = ROOT / "prove-work"
PROOFS = [
    "demo", "demo_swapped", "pairs", "clean_demo", "report_page", "merge", "readme", "unsloth_pretended", "writers",
    "kills", "flips", "collect_kills", "ray_cluster", "server", "promotion", "hostile", "tutorial",
    "round_kills", "rounds", "export", "ablation", "training_kills",
]  # fmt: skip


def source_digest() -> str:
    """Digest of what a proof's result may depend on: the tracked sources, data and pins."""
    listed = subprocess.run(
        ["git", "ls-files", "-s", "src", "prove", "Makefile", "pyproject.toml", "constraints-cpu.txt"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    dirty = subprocess.run(["git", "diff", "HEAD", "--", "src"], cwd=ROOT, capture_output=True, text=True, check=True)
    from guardlearn.digests import digest_text

    return digest_text(listed + dirty.stdout)


def commit() -> str:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return head.stdout.strip()


def machine() -> dict:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {
        "cores": cores,
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "arch": platform.machine(),
    }


@contextlib.contextmanager
def spending(file: Path) -> Iterator[Callable[[], float]]:
    """Yield what returns the seconds that a proof has taken, those of runs that were broken off in them."""
    before = float(file.read_text(encoding="utf-8")) if file.is_file() else 0.0
    started = time.perf_counter()

    def spent() -> float:
        return before + time.perf_counter() - started

    try:
        yield spent
    finally:
        file.write_text(f"{spent():.1f}\n", encoding="utf-8")


def main() -> int:
    names = sys.argv[1:] or PROOFS
    digest = source_digest()
    failed = []
    for name in names:
        target = EVIDENCE / f"{name}.json"
        if not sys.argv[1:] and target.is_file() and json.loads(target.read_text())["sources"] == digest:
            print(f"{name}: already proved on these sources")
            continue
        print(f"{name}: running", flush=True)
        spec = importlib.util.spec_from_file_location(f"prove_{name}", ROOT / "prove" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        work = WORK / digest[:12] / name
        work.mkdir(parents=True, exist_ok=True)
        with spending(work.with_name(f"{name}.seconds")) as seconds:
            result, holds = module.run(work)
        content = {
            "proof": name,
            "claim": " ".join(module.__doc__.split()),
            "holds": holds,
            "commit": commit(),
            "sources": digest,
            "machine": machine(),
            "date": datetime.date.today().isoformat(),
            "seconds": round(seconds(), 1),
            "result": result,
        }
        EVIDENCE.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {'holds' if holds else 'DOES NOT HOLD'} ({content['seconds']} s)", flush=True)
        failed += [] if holds else [name]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
