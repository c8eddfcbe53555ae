"""Appending to and extracting from ℛ, as ratios to a bare sqlite3 loop over one plain table, in one run.

python benchmarks/repository.py [--items 20000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from guardlearn import ArtifactDAG, RepositoryItem, refinement
from guardlearn.types import ArtifactStatus

TEXT = "def f(x: int) -> int:\n    return x\n" * 55  # about 2 kB, the median of real artifacts


def chain_items(count: int) -> list[RepositoryItem]:
    """40 % of the attempts are in chains of five, the rest are accepted at once."""
    items: list[RepositoryItem] = []
    while len(items) < count:
        number = len(items)
        length = 5 if number % 12 < 5 else 1
        parent = None
        for attempt in range(length):
            accepted = attempt == length - 1
            item = RepositoryItem(
                id=f"i{len(items):09}",
                parent_id=parent,
                artifact=f"{number} {attempt} {TEXT}",
                specification=f"Task {number % 500}",
                group=f"g{number % 500}",
                status=ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED,
                feedback="" if accepted else "wrong",
            )
            parent = item.id
            items.append(item)
    return items


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bare(items: list[RepositoryItem], path: Path) -> tuple[float, float]:
    """Seconds to insert into one plain table, and to read it whole."""
    rows = [(i.id, i.parent_id, i.specification, i.artifact, i.status.value, i.feedback) for i in items]
    connection = sqlite3.connect(path)
    connection.execute("create table attempts (id text primary key, parent, specification, artifact, status, feedback)")

    def insert() -> None:
        connection.executemany("insert into attempts values (?, ?, ?, ?, ?, ?)", rows)
        connection.commit()

    written = seconds(insert)
    read = seconds(lambda: connection.execute("select * from attempts order by id").fetchall())
    connection.close()
    return written, read


def ours(items: list[RepositoryItem], path: Path) -> tuple[float, float, int]:
    """Seconds to append, and to extract refinements with full histories; how many there are."""
    with ArtifactDAG.create(path) as dag:
        written = seconds(lambda: dag.append_many(items))
    with ArtifactDAG.load(path, read_only=True) as dag:
        found: list[RepositoryItem] = []
        read = seconds(lambda: found.extend(dag.extract(refinement())))
    return written, read, len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    items = chain_items(options.items)
    appends, extracts = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            plain_write, plain_read = bare(items, Path(folder) / "bare.db")
            write, read, found = ours(items, Path(folder) / "runs.db")
        appends.append(plain_write / write)
        extracts.append((read / found) / (plain_read / len(items)))
    print(
        json.dumps(
            {
                "items": len(items),
                "append_many_of_bare_speed": round(statistics.median(appends), 3),
                "extracted_refinement_times_a_bare_row": round(statistics.median(extracts), 1),
                "rounds": options.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
