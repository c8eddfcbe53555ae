"""kill -9 at random moments of processes that write to a repository, and what must be true afterwards.

`test_dag_kills.py` does it twenty times, `prove/kills.py` two hundred times and more. A nursery, which has imported
everything already, forks the processes, so that the moments fall into their work and not into Python's start. A writer
notes what was acknowledged, each line flushed to disk, and what it is about to do.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.tables import events
from guardlearn.types import ArtifactStatus, RepositoryItem

# -- the nursery


class Nursery:
    """Forks processes that write, and kills them."""

    def __init__(self, *modules: str) -> None:
        """Start it; it imports `modules` beside its own."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, work: str, *arguments: object, kill_after: float | None = None, begun: Path | None = None
    ) -> tuple[int, float]:
        """Fork a process that does `work`; return its exit status (-9: killed) and how many seconds it lived.

        Args:
            work: a key of WORK.
            arguments: what it is called with, as texts.
            kill_after: kill it after so many seconds.
            begun: counted from when this file is there.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        stdin.write(json.dumps([work, *map(str, arguments)]) + "\n")
        stdin.flush()
        pid = int(stdout.readline())
        started = time.perf_counter()
        if kill_after is not None:
            while begun and not begun.exists() and time.perf_counter() - started < 60:
                time.sleep(0.002)
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)  # nobody else has this number: the nursery waits for it below
        stdin.write("wait\n")
        stdin.flush()
        return int(stdout.readline()), time.perf_counter() - started

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def nursery(*modules: str) -> Iterator[Nursery]:
    with contextlib.closing(Nursery(*modules)) as made:
        yield made


def serve() -> None:
    """Be the nursery."""
    import numpy  # noqa: F401
    import psycopg  # noqa: F401
    import rich.table  # noqa: F401

    from guardlearn import collect, models  # noqa: F401
    from guardlearn.cli import import_log, main, options  # noqa: F401
    from guardlearn.dag.importers import atomicguard, log, repository  # noqa: F401
    from guardlearn.generators import server  # noqa: F401

    for name in sys.argv[1:]:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        import pydantic.type_adapter  # noqa: F401 - the command line takes it where it is installed

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        work, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                WORK[work](*arguments)
                status = 0
            finally:
                os._exit(status)
        answers.write(f"{pid}\n")
        answers.flush()
        assert sys.stdin.readline() == "wait\n"
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        answers.flush()


# -- writers

STEPS = ["append"] * 8 + ["append_many"] * 4 + ["append_event"] * 4 + ["redact", "reopen", "rebuild_facts"]


def item_named(name: str, parent: str | None = None) -> RepositoryItem:
    """Return the item of a name: its content follows from it."""
    number = zlib.crc32(name.encode())
    size = 200_000 if number % 50 == 0 else number % 4000
    return RepositoryItem(
        id=name,
        parent_id=parent,
        artifact=f"{name} " * (size // len(name)),
        specification=f"task {number % 20}",
        group=f"g{number % 5}",
        feedback=f"no {name}",
        status=ArtifactStatus.REJECTED,
        metadata={"name": name},
        created_at=datetime.fromtimestamp(number, UTC),
    )


def write(target: str, folder: str, run: str, seed: str) -> None:
    """Write for ever, in every way there is; note each acknowledgement."""
    chance = random.Random(seed)
    known = [line["item"] for line in acknowledged(Path(folder)) if "item" in line]
    dag = ArtifactDAG.load(target)
    phase = os.open(Path(folder) / "phase", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in itertools.count():
        step = chance.choice(STEPS)
        os.pwrite(phase, step.ljust(16).encode(), 0)
        lines: list[dict[str, str]] = []
        token = f"{run}-{number}"
        if step == "append":
            parent = chance.choice([None, *known[-3:]])
            dag.append(item_named(f"s-{token}", parent))
            lines = [{"item": f"s-{token}", "parent": parent or ""}]
        elif step == "append_many":
            count = chance.choice((2, 20, 200))
            names = [f"m-{token}-{place}-{count}" for place in range(count)]
            parents = [None, *names[:-1]]
            dag.append_many(item_named(*each) for each in zip(names, parents, strict=True))
            lines = [{"item": name, "parent": parent or ""} for name, parent in zip(names, parents, strict=True)]
        elif step in ("append_event", "redact") and known:
            kind = "redact" if step == "redact" else chance.choice(("review", "exclude", "include", "status"))
            value = "accepted" if kind == "status" else ""
            about = chance.choice(known)
            dag.append_event(about, kind, value=value, actor=token, reason="because")
            lines = [{"event": token, "about": about, "kind": kind}]
        elif step == "reopen":
            dag.close()  # folds the log into the file
        elif step == "rebuild_facts":
            dag.rebuild_facts()
        os.pwrite(phase, b"acknowledging   ", 0)
        if lines:
            with (Path(folder) / "told.jsonl").open("ab", buffering=0) as told:
                told.write("".join(json.dumps(line) + "\n" for line in lines).encode())
                os.fsync(told.fileno())
        known += [line["item"] for line in lines if "item" in line]


def acknowledged(folder: Path) -> list[dict[str, str]]:
    """Return what writers were told, without a last line that was cut."""
    path = folder / "told.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    return [json.loads(line) for line in whole.splitlines()]


def kill_writers(
    nursery: Nursery, target: str, folder: Path, seed: int, kills: int, seconds: float = 0.5
) -> Counter[str]:
    """Kill one writer after the other on one repository, which must be whole each time.

    Returns:
        How many were killed while they did what, what was found without being acknowledged, and how much there is.
    """
    chance, seen = random.Random(seed), Counter[str]()
    for run in range(kills):
        phase = folder / "phase"
        phase.unlink(missing_ok=True)
        begun = phase if run else folder / "told.jsonl"  # the first one gets as far as an acknowledgement
        status, _ = nursery.run(
            "write", target, folder, run, seed * 1000 + run, kill_after=chance.random() * seconds, begun=begun
        )
        assert status == -signal.SIGKILL, f"the writer ended by itself, status {status}"
        seen[f"during {phase.read_text().strip() or 'opening'}"] += 1
        seen["killed"] += 1
        if (log := Path(f"{target}-wal")).is_file() and log.stat().st_size:
            seen["left a log"] += 1
        seen["unacknowledged"] = max(seen["unacknowledged"], look_after_writers(target, folder))
    seen["acknowledged"] = len(acknowledged(folder))
    return seen


def look_after_writers(target: str, folder: Path) -> int:
    """Check a repository against what its writers were told; return how much it holds that they were not told of."""
    told = acknowledged(folder)
    items = {line["item"]: line for line in told if "item" in line}
    noted = {line["event"]: line for line in told if "event" in line}
    with ArtifactDAG.load(target) as dag:
        assert dag.verify().problems == []
        found = {item.id: item for item in dag.extract()}
        with dag.reading() as connection:
            rows = {row.actor: row for row in connection.execute(sa.select(events))}
        dag.append(item_named("after"))  # the lock went with its holder; every time the same, so stored once
    assert items.keys() <= found.keys(), sorted(items.keys() - found.keys())
    assert noted.keys() <= rows.keys(), sorted(noted.keys() - rows.keys())
    assert all((rows[n].item_id, rows[n].kind) == (line["about"], line["kind"]) for n, line in noted.items())
    blanked = {row.item_id for row in rows.values() if row.kind == "redact"}
    for name, item in found.items():
        expected = item_named(name)
        whole = (expected.artifact, expected.feedback, expected.metadata)
        assert (item.artifact, item.feedback, item.metadata) == (("", "", {}) if name in blanked else whole), name
        assert not item.facts.broken
        assert name not in items or (item.parent_id or "") == items[name]["parent"]
    batches = Counter(tuple(name.rsplit("-", 2)[::2]) for name in found if name.startswith("m-"))
    assert [batch for batch, count in batches.items() if count != int(batch[1])] == []  # all of it or nothing
    return len(found.keys() - items.keys() - {"after"}) + len(rows.keys() - noted.keys())


# -- importers


def run_command(said: str, *arguments: str) -> None:
    """Be `guardlearn` with these arguments; what it says goes into a file."""
    from guardlearn.cli import main

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["guardlearn", *arguments]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


def run_command_in(folder: str, said: str, *arguments: str) -> None:
    """Be `guardlearn`, called in a folder."""
    os.chdir(folder)
    run_command(said, *arguments)


WORK = {"write": write, "command": run_command, "command_in": run_command_in}
MAPPING = "spec=task,artifact=answer,accepted=passed,feedback=error,chain=session,time=at,group=task"


def log_lines(count: int) -> list[str]:
    """Return a log of chains of three, the third of which passes."""
    lines = []
    for number in range(count):
        passed = number % 3 == 2
        line = {"task": f"task {number % 40}", "answer": f"{number} " * (number % 70), "passed": passed}
        lines.append(json.dumps({**line, "error": "" if passed else "no", "session": number // 3, "at": number}) + "\n")
    return lines


def log_import(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """Write a log and a part of it; return the arguments that import each."""
    lines = log_lines(count)
    for name, end in (("part", count // 3), ("whole", count)):
        (folder / f"{name}.jsonl").write_text("".join(lines[:end]))
    part, whole = (["import", str(folder / f"{name}.jsonl"), "--map", MAPPING] for name in ("part", "whole"))
    return part, whole


def store_import(folder: Path, store: Path) -> tuple[list[str], list[str]]:
    """Copy a part of an AtomicGuard store, every third object; return the arguments that import each."""
    part = folder / "part"
    shutil.copytree(store, part)
    for path in sorted(part.rglob("objects/*/*.json"))[1::3]:
        path.unlink()
    return ["import", str(part)], ["import", str(store)]


class Import:
    """An import that is killed: into nothing, or into a repository that holds a part of the source."""

    def __init__(self, nursery: Nursery, folder: Path, part: list[str], whole: list[str]) -> None:
        self._nursery, self._folder, self._whole = nursery, folder, whole
        folder.mkdir(parents=True)
        self._part = self._unbroken("part", part) if part else None
        self.before = state(self._part) if self._part else None
        self.seconds = 0.0
        self.expected = state(self._unbroken("expected", whole))

    def _unbroken(self, name: str, command: list[str]) -> Path:
        target = self._folder / f"{name}.db"
        if name == "expected" and self._part is not None:
            target.write_bytes(self._part.read_bytes())
        status, self.seconds = self._nursery.run("command", self._folder / "said", *command, "--into", target)
        assert status == 0, (self._folder / "said").read_text()
        return target

    def kill(self, name: str, chance: random.Random) -> Counter[str]:
        """Kill it once, at any moment; look, then let it go through; return what was seen."""
        seen = Counter[str]()
        target = self._folder / f"{name}.db"
        if self._part is not None:
            target.write_bytes(self._part.read_bytes())
        command = ["command", self._folder / "said", *self._whole, "--into", target]
        after = chance.random() * 1.1 * self.seconds
        status, _ = self._nursery.run(*command, kill_after=after)
        if status == -signal.SIGKILL:
            seen["killed"] += 1
            seen[f"found {self._found(target)}"] += 1
        else:
            assert status == 0, (self._folder / "said").read_text()
            seen["was done before it could be killed"] += 1
            self.seconds *= 0.8  # the unbroken one was slower
        status, _ = self._nursery.run(*command)
        assert status == 0, (self._folder / "said").read_text()
        assert state(target) == self.expected
        for path in self._folder.glob(f"*{name}.db*"):
            path.unlink()
        return seen

    def _found(self, target: Path) -> str:
        if not target.exists():
            return "nothing"
        now = state(target)
        if now == self.expected:
            return "all of it"
        if self.before is not None and now == self.before:
            return "what was there before"
        assert not self.before and now["items"] == now["events"] == now["reports"] == [], "a part of it"
        return "an empty repository"


def state(target: Path) -> dict[str, Any]:
    """Return all that a repository holds, without the times at which it was told."""
    with ArtifactDAG.load(target, read_only=True) as dag:
        assert dag.verify().problems == []
        with dag.reading() as connection:
            columns = [events.c[name] for name in ("seq", "item_id", "kind", "value", "actor", "reason")]
            noted = [tuple(row) for row in connection.execute(sa.select(*columns).order_by(events.c.seq))]
        reports = {each.source: each.report for each in dag.imports()}
        return {
            "items": list(dag.extract(order_by="seq")),
            "events": noted,
            "sides": dag.sides_digest(),
            "reports": sorted((name, r.read, r.skipped, r.faults, r.unknown, r.pending) for name, r in reports.items()),
        }


if __name__ == "__main__":
    serve()
