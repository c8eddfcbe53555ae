"""ℛ's speed and memory, as ratios to a bare sqlite3 loop and to AtomicGuard's own extraction.

    python benchmarks/repository.py [--sizes 10000,100000] [--rounds 3] [--atomicguard PYTHON] [--json FILE]

Stores of 0.5-4 kB artifacts, 40 % of the attempts in chains (`stores.py`). Every measurement is a process of its own
(`ours.py`, `bare.py`, `atomicguard_side.py`); in each round the sides of a comparison run one after another, so that a
ratio is taken between neighbours, and the median of the rounds is shown. What the sides find must be equal.
`make bench` reads BENCH_SIZES, BENCH_ROUNDS and BENCH_ATOMICGUARD: make bench BENCH_SIZES=1000000
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from figures import summary
from stores import write_store

HERE = Path(__file__).parent
PARTS = ("folder", "import", "read", "lines", "append")
BYTES_PER_ATTEMPT = 14_000
"""Disk at the worst moment: two copies of a repository, an exported one, and the log of a transaction."""

ATOMICGUARD_BYTES = 12_000
"""Memory it needs for an attempt."""

SECONDS = {
    "store": 45,
    "folder_first": 60,
    "folder_again": 5,
    "import_folder": 70,
    "count": 3,
    "ids": 3,
    "extract": 6,
    "extract_once": 3,
    "atomicguard": 25,
    "export": 20,
    "import_lines": 60,
    "fill": 45,
    "append": 45,
}
"""What a step takes for 100 000 attempts, roughly: the estimate of the time left starts from it."""


class Refused(Exception):
    """One line for the user."""


class Progress:
    """Says on stderr what runs, and how long all of it may still take."""

    def __init__(self, expected_seconds: float) -> None:
        self._started = time.perf_counter()
        self._expected, self._done = expected_seconds, 0.0

    def step(self, label: str, weight: float) -> None:
        """Announce a step of `weight` expected seconds."""
        spent = time.perf_counter() - self._started
        left = max(self._expected - self._done, weight)
        eta = f", ETA {spent / self._done * left:.0f} s" if self._done else ""
        print(f"bench: {label}, {spent:.0f} s{eta}", file=sys.stderr, flush=True)
        self._done += weight


class Bench:
    """Measures one size in one folder; `runs[case][side]` holds a record for each round."""

    def __init__(self, work: Path, size: int, options: argparse.Namespace, progress: Progress) -> None:
        self.work, self.size, self.options, self.progress = work, size, options, progress
        self.runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.store, self.runs_db = work / "store", work / "runs.db"

    def measure(self, case: str, side: str, arguments: list[str], weight: str = "") -> dict[str, Any]:
        """Run one process; `arguments` are its program's case and paths."""
        self.progress.step(f"{self.size:,} attempts, {case} by {side}", _weight(weight or case, self.size))
        program = {"guardlearn": "ours.py", "atomicguard": "atomicguard_side.py"}.get(side, "bare.py")
        python = self.options.atomicguard if side == "atomicguard" else self.options.python
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = _run([python, str(HERE / program), *arguments], XDG_CACHE_HOME=str(self.work / "cache"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        record = done | {
            "process_seconds": round(time.perf_counter() - started, 4),
            "process_cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 4),
        }
        self.runs.setdefault(case, {}).setdefault(side, []).append(record)
        return record

    def parts(self) -> Iterator[dict[str, Any]]:
        """Measure every part that was asked for; yields the runs so far, and what they ran on, after each."""
        rounds, parts = range(self.options.rounds), self.options.parts
        from_store = {"folder", "import"} & {*parts} or ("read" in parts and self._with_atomicguard())
        if from_store:
            self.progress.step(f"{self.size:,} attempts, writing the store", _weight("store", self.size))
            write_store(self.store, self.size)
        if "folder" in parts:
            for _ in rounds:
                self._folder()
            yield self._entry()
        if "import" in parts or (from_store and {"read", "lines"} & {*parts}):
            for _ in rounds if "import" in parts else range(1):
                self._import()
        elif {"read", "lines"} & {*parts}:
            self.measure("fill", "guardlearn", ["append", str(self.size), str(self.runs_db)])
        if "read" in parts:
            for _ in rounds:
                self._read()
            if self._with_atomicguard():
                self.measure("again", "atomicguard", ["again", str(self.store)], "atomicguard")
            yield self._entry()
        shutil.rmtree(self.store, ignore_errors=True)
        if "lines" in parts:
            self._lines(rounds)
            yield self._entry()
        self._remove(self.runs_db)
        if "append" in parts:
            for _ in rounds:
                self._append()
        yield self._entry()

    def _folder(self) -> None:
        """An AtomicGuard folder opened as it is: the side file is made, then it is there."""
        self.measure("folder_first", "guardlearn", ["extract_once", str(self.store)])
        self.measure("folder_again", "guardlearn", ["extract_once", str(self.store)])
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        if self._with_atomicguard():
            self.measure("folder", "atomicguard", ["extract", str(self.store)], "atomicguard")

    def _import(self) -> None:
        self._remove(self.runs_db)
        self.measure("import_folder", "guardlearn", ["import_folder", str(self.store), str(self.runs_db)])
        plain = self.work / "plain.db"
        self.measure("import_folder", "bare", ["import_folder", str(self.store), str(plain)])
        self._remove(plain)

    def _read(self) -> None:
        for case in ("count", "ids", "extract"):
            for side in ("guardlearn", "bare"):
                self.measure(case, side, [case, str(self.runs_db)])
        self.measure("extract_once", "guardlearn", ["extract_once", str(self.runs_db)])
        if self._with_atomicguard():
            self.measure("extract_once", "atomicguard", ["extract", str(self.store)], "atomicguard")

    def _lines(self, rounds: range) -> None:
        lines = self.work / "lines.jsonl"
        self.measure("export", "guardlearn", ["export_lines", str(self.runs_db), str(lines)])
        self._remove(self.runs_db)  # the disk need not hold three copies
        for _ in rounds:
            self._pair("import_lines", {"guardlearn": "import_lines", "bare": "import_lines"}, str(lines))
        self._remove(lines)

    def _append(self) -> None:
        ours, same = self.work / "append.db", self.work / "same.db"
        self._pair("append", {"plain": "append_plain"}, str(self.size))
        self.measure("append", "guardlearn", ["append", str(self.size), str(ours)])
        _run([self.options.python, str(HERE / "ours.py"), "empty", str(same)])
        self.measure("append", "same_tables", ["append_same", str(ours), str(same)])
        self._remove(ours, same)

    def _pair(self, case: str, sides: dict[str, str], source: str) -> None:
        for side, program_case in sides.items():
            target = self.work / f"{side}.db"
            self.measure(case, side, [program_case, source, str(target)])
            self._remove(target)

    def _with_atomicguard(self) -> bool:
        return bool(self.options.atomicguard) and self.size <= self.options.atomicguard_up_to

    def _entry(self) -> dict[str, Any]:
        self._must_agree()
        return {"measured": self._measured(), "runs": self.runs}

    def _must_agree(self) -> None:
        """Refuse figures of sides that did not do the same work."""
        reading = ("count", "ids", "extract", "extract_once", "folder_first", "folder_again", "folder", "again")
        found = {(case in reading, record["found"]) for case, side, record in self._records()}
        entries = {record["entries"] for _, _, record in self._records() if "entries" in record}
        if len(found) > 1 + any(case in self.runs for case in reading) or len(entries) > 1:
            raise Refused(f"the sides disagree on {self.size} attempts: found {sorted(found)}, history {entries}")

    def _records(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for case, sides in self.runs.items():
            for side, records in sides.items():
                for record in records:
                    yield case, side, record

    def _measured(self) -> dict[str, Any]:
        of = "import sqlite3, platform, json; print(json.dumps([platform.python_version(), sqlite3.sqlite_version]))"
        python, sqlite = _run([self.options.python, "-c", of])
        return {
            "date": datetime.date.today().isoformat(),
            "rounds": self.options.rounds,
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "arch": platform.machine(),
            "load_average": round(os.getloadavg()[1], 1),
            "python": python,
            "sqlite": sqlite,
            "atomicguard": self.options.atomicguard_version if self._with_atomicguard() else None,
        }

    @staticmethod
    def _remove(*databases: Path) -> None:
        for path in databases:
            for ending in ("", "-wal", "-shm"):
                Path(f"{path}{ending}").unlink(missing_ok=True)


def _run(command: list[str], **environment: str) -> Any:
    """Return the JSON object a process prints.

    Raises:
        Refused: it failed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
        if done.returncode == 0:
            return json.loads(done.stdout)
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    except OSError as error:
        reason = str(error)
    raise Refused(f"{' '.join(command)} failed: {reason}")


def _weight(step: str, size: int) -> float:
    return 1 + SECONDS.get(step, 1) * size / 100_000


def expected_seconds(options: argparse.Namespace) -> float:
    """Return about how long everything takes."""
    steps = {
        "folder": ["folder_first", "folder_again"] + ["atomicguard"] * bool(options.atomicguard),
        "import": ["import_folder"] * 2,
        "read": ["count", "ids", "extract"] * 2 + ["extract_once"] + ["atomicguard"] * bool(options.atomicguard),
        "lines": ["import_lines"] * 2,
        "append": ["append"] * 3,
    }
    every = [step for part in options.parts for step in steps[part]] * options.rounds + ["store"]
    return sum(_weight(step, size) for size in options.sizes for step in every)


def check_room(options: argparse.Namespace) -> None:
    """Say what the largest size needs; refuse where the disk has less."""
    size = max(options.sizes)
    need, free = size * BYTES_PER_ATTEMPT, shutil.disk_usage(options.work).free
    said = f"{size:,} attempts need about {need / 1e9:.1f} GB of disk in {options.work}, {free / 1e9:.1f} GB are free"
    if need > free:
        raise Refused(f"{said}; name another folder with --work, or smaller --sizes")
    print(f"bench: {said}; everything is removed afterwards", file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; refused ones end the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environ = os.environ.get
    parser.add_argument("--sizes", type=_sizes, default=_sizes(environ("BENCH_SIZES", "10000,100000")))
    parser.add_argument("--rounds", type=int, default=int(environ("BENCH_ROUNDS", "3")))
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--python", default=sys.executable, help="interpreter of guardlearn and of the bare loop")
    parser.add_argument("--atomicguard", default=environ("BENCH_ATOMICGUARD"), help="interpreter with atomicguard")
    parser.add_argument("--atomicguard-up-to", type=int, default=100_000, help="it holds a whole store in memory")
    parser.add_argument("--work", default=tempfile.gettempdir(), help="folder for the stores")
    parser.add_argument("--json", type=Path, help="file to put the records in; other sizes in it stay")
    return parser.parse_args(arguments)


def _sizes(text: str) -> list[int]:
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < 100:
        raise argparse.ArgumentTypeError("sizes below 100 attempts measure nothing")
    return sizes


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"unknown parts {', '.join(sorted(unknown))}; allowed are {', '.join(PARTS)}")
    return parts


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, with what it made removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every size; returns the records by size."""
    check_room(options)
    if options.atomicguard:
        options.atomicguard_version = _run([options.atomicguard, str(HERE / "atomicguard_side.py"), "version"])
    progress, sizes = Progress(expected_seconds(options)), {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="guardlearn-bench-", dir=options.work) as work:
            for entry in Bench(Path(work), size, options, progress).parts():
                sizes[str(size)] = entry
                if options.json:
                    keep(options.json, str(size), entry)
    return sizes


def keep(path: Path, size: str, entry: dict[str, Any]) -> None:
    """Put the records of one size into the file; other sizes and cases in it stay."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"sizes": {}}
    before = kept["sizes"].setdefault(size, {"runs": {}})
    kept["sizes"][size] = {"measured": entry["measured"], "runs": before["runs"] | entry["runs"]}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the ratios as one JSON object; returns the exit code."""
    options = parse(arguments)
    try:
        with _ended_like_ctrl_c():
            sizes = run(options)
    except Refused as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what it made is removed", file=sys.stderr)
        return 130
    print(json.dumps({size: summary(entry) for size, entry in sizes.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
