"""Processes that append to one repository at once, an item a transaction, and a reader that polls: run and checked.

`test_dag_writers.py` does it for a second or two, `prove/writers.py` for half a minute. Each writer notes what was
acknowledged in a file of its own; afterwards every line of it is looked for in ℛ.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.tables import events, facts, items
from guardlearn.types import ArtifactStatus, RepositoryItem

CHAIN = 6
"""Every so many items a writer begins a chain; one between hangs on another writer's, one arrives before its parent."""

LEAST = 2 * CHAIN
"""So many items each writer appends, however slow the machine."""


def name_of(writer: int, number: int) -> str:
    return f"w{writer:02}-{number:07}"


LINE = len(name_of(0, 0)) + 1


def attempt(name: str) -> RepositoryItem:
    given = {"specification": "s", "group": "g", "status": ArtifactStatus.REJECTED}
    return RepositoryItem(id=name, artifact=f"artifact {name}", **given)


def run_writers(target: str, folder: Path, writers: int, seconds: float) -> dict[str, Any]:
    """Let `writers` processes append for so long while a reader polls; return what is to be seen of it."""
    command = [sys.executable, __file__, target, str(folder), str(writers), str(seconds)]
    with contextlib.ExitStack() as processes:
        started = [
            processes.enter_context(subprocess.Popen([*command, str(w)], stderr=subprocess.PIPE, text=True))
            for w in range(writers)
        ]
        while len(list(folder.glob("ready-*"))) < writers:
            failed = [process.stderr.read() for process in started if process.poll() not in (None, 0)]
            assert not failed, failed[0]
            time.sleep(0.01)
        (folder / "go").touch()
        polled = list(poll(target, started))
        errors = [said for process in started if (said := process.communicate()[1])]
    assert not errors, errors[0]
    return look(target, folder, writers, polled)


def poll(target: str, processes: list[subprocess.Popen[str]]) -> Iterator[str]:
    """Yield the ids that a reader gets who asks for what came after the last seq it has seen, until all have ended."""
    seen, alive = 0, True
    with ArtifactDAG.load(target, read_only=True) as dag:
        while alive:
            alive = any(process.poll() is None for process in processes)  # looked at first: then one more poll
            with dag.reading() as connection:
                query = sa.select(items.c.seq, items.c.id).where(items.c.seq > seen).order_by(items.c.seq)
                rows = connection.execute(query).all()
            seen = max([seen, *(row.seq for row in rows)])
            yield from (row.id for row in rows)
            time.sleep(0.03)


def look(target: str, folder: Path, writers: int, polled: list[str]) -> dict[str, Any]:
    """Compare ℛ with what each writer was told."""
    told = [[json.loads(line) for line in (folder / f"{w}.jsonl").read_text().splitlines()] for w in range(writers)]
    acknowledged = {line["id"]: line for lines in told for line in lines}
    waits = [line["seconds"] for lines in told for line in lines]
    lasted = max(lines[-1]["at"] for lines in told)
    with ArtifactDAG.load(target, read_only=True) as dag:
        with dag.reading() as connection:
            rows = {
                row.id: row
                for row in connection.execute(sa.select(items, facts).join(facts, facts.c.seq == items.c.seq))
            }
            noted = connection.execute(sa.select(sa.func.count()).select_from(events)).scalar_one()
        report, last = dag.verify(), dag.last_seq
    order = [row.id for row in sorted(rows.values(), key=lambda row: row.seq)]
    return {
        "writers": writers,
        "items": len(rows),
        "events": noted,
        "last_seq": last,
        "lost": len(acknowledged.keys() - rows.keys()),
        "unasked": len(rows.keys() - acknowledged.keys()),
        "another_seq": sum(line["seq"] != rows[name].seq for name, line in acknowledged.items() if name in rows),
        "broken_links": sum(
            row.broken or row.parent_seq != (rows[row.parent_id].seq if row.parent_id else 0) for row in rows.values()
        ),
        "linked_to_another_writer": sum(row.parent_id[:3] not in ("", row.id[:3]) for row in rows.values()),
        "problems": report.problems,
        "polled_each_once_in_order": polled == order,
        "items_per_second": round(len(rows) / lasted, 1),
        "items_by_writer": [len(lines) for lines in told],
        "seconds_an_append": {
            "median": round(statistics.median(waits), 5),
            "99 of 100 below": round(statistics.quantiles(waits, n=100)[-1], 4),
            "longest": round(max(waits), 4),
        },
    }


def intact(found: dict[str, Any]) -> bool:
    """Whether nothing was lost, doubled, unlinked or late."""
    nothing = ("lost", "unasked", "another_seq", "broken_links", "problems")
    return (
        not any(found[name] for name in nothing)
        and found["items"] + found["events"] == found["last_seq"]
        and found["polled_each_once_in_order"]
        and min(found["items_by_writer"]) > LEAST
        and found["linked_to_another_writer"] > 0
    )


def append_for(target: str, folder: Path, writers: int, seconds: float, writer: int) -> None:
    """Be one writer."""
    with ArtifactDAG.load(target) as dag, (folder / f"{writer}.jsonl").open("w") as told:
        ids = (folder / f"{writer}.ids").open("wb", buffering=0)
        (folder / f"ready-{writer}").touch()
        while not (folder / "go").exists():
            time.sleep(0.001)
        started, number, now = time.perf_counter(), 0, 0.0
        while now < seconds or number <= LEAST or number % CHAIN == 0:
            item = RepositoryItem(
                id=name_of(writer, number),
                parent_id=parent_of(folder, writers, writer, number),
                artifact=f"artifact {writer} {number} " + "x" * 1000,
                specification=f"task {number % 50}",
                group=f"g{number % 5}",
                feedback="no",
                status=ArtifactStatus.REJECTED,
                created_at=datetime.now(UTC),
            )
            begun = time.perf_counter()
            seq = dag.append(item)
            ended = time.perf_counter()
            now = ended - started
            line = {"id": item.id, "seq": seq, "seconds": ended - begun, "at": now}
            told.write(json.dumps(line) + "\n")
            ids.write(item.id.encode() + b"\n")
            number += 1
        ids.close()


def parent_of(folder: Path, writers: int, writer: int, number: int) -> str | None:
    """Return the own item before, another writer's last acknowledged one, or the own next one, which comes later."""
    place = number % CHAIN
    if place == 0:
        return None
    if place == CHAIN - 1:
        return name_of(writer, number + 1)
    if place == 3 and writers > 1:
        other = (writer + 1 + number // CHAIN % (writers - 1)) % writers
        with contextlib.suppress(FileNotFoundError):
            count = (folder / f"{other}.ids").stat().st_size // LINE
            return name_of(other, count - 1) if count else None
    return name_of(writer, number - 1)


if __name__ == "__main__":
    append_for(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
