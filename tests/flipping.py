"""One flipped byte in the closed SQLite file of a repository: what reading it then gives.

`test_dag_flips.py` flips some of them, `prove/flips.py` many more. There is no fourth outcome: opening is refused with
one line, or `verify` reports something, or the byte carries no meaning and everything reads as before.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from guardlearn.dag import ArtifactDAG, checkpoints, imports, rounds
from guardlearn.dag.tables import metadata
from guardlearn.errors import GuardlearnError
from guardlearn.types import ArtifactStatus, RepositoryItem, Specification

REFUSED, REPORTED, MEANINGLESS, SILENT = "refused", "reported by verify", "carries no meaning", "DIFFERS SILENTLY"


def fill(path: Path, items: int = 240) -> None:
    """Make a repository that has every kind of row, and every kind of page, one that was freed included."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    with ArtifactDAG.create(path) as dag:
        dag.assign_side("pinned", "train")
        dag.register(
            Specification(id=f"s{n}", specification=f"Sort the list number {n} of {n * 7} names") for n in range(12)
        )
        dag.append_many(
            RepositoryItem(
                id=f"item-{n:04}",
                parent_id=f"item-{n - 1:04}" if n % 4 else ("gone" if n == 8 else None),
                artifact=f"artifact {n} " * (9000 if n in (5, 17) else n % 90),
                specification=f"Write the function number {n // 4} that adds {n // 4} to x",
                constraints="type hints",
                group=f"g{n % 3}" if n % 8 < 4 else None,
                feedback="no" if n % 4 < 3 else "",
                status=ArtifactStatus.REJECTED if n % 4 < 3 else ArtifactStatus.ACCEPTED,
                fatal=n == 50,
                created_at=start + timedelta(seconds=n),
                metadata={"n": n},
            )
            for n in range(items)
        )
        for n in range(0, items, 9):
            kind = ("review", "exclude", "stale", "status")[n % 4]
            dag.append_event(f"item-{n:04}", kind, value="superseded" if kind == "status" else "", actor="me")
        dag.redact("item-0017", "me", "a password")  # frees pages
        dag.record_reading("adapter", dag.sides_digest(), 2, "demo")
        with dag.writing() as connection:
            about = {"seq": 5, "adapter": "out/1", "adapter_digest": "d1", "parent_adapter": "", "traces_processed": 1}
            checkpoints.append(connection, "me", {"item-0003": b"x"}, about)
            report = imports.ImportReport(read=5, new=5, unchanged=0, faults=["odd"], unknown={})
            imports.record(connection, "a store", report)
            rounds.append(connection, "me", 1, rounds.State.PLANNED, {"traces": 1})
            rounds.promote(
                connection, "me", action="promote", adapter="out/1", adapter_digest="d1", actor="me", reason=""
            )
        assert dag.verify().problems == []


def everything(dag: ArtifactDAG) -> Any:
    """Return all that a repository says: items through the public way, every cell, the structure."""
    with dag.reading() as connection:
        tables = {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }
        catalogue = "SELECT type, name, rootpage FROM sqlite_master ORDER BY name"
        structure = [tuple(row) for row in connection.exec_driver_sql(catalogue)]
        for table in metadata.sorted_tables:
            for pragma in ("table_xinfo", "index_list"):
                structure += [tuple(row) for row in connection.exec_driver_sql(f"PRAGMA {pragma}({table.name})")]
    return list(dag.extract(order_by="seq")), [each.id for each in dag.extract()], tables, structure


class Flipping:
    """Flips single bytes of one file in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        with ArtifactDAG.load(path, read_only=True) as dag:
            self._before = everything(dag)

    def outcome(self, offset: int, byte: int) -> tuple[str, str]:
        """Return what comes of the byte at `offset` being another, and what was said."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes([byte]))
        try:
            return self._look()
        finally:
            for ending in ("", "-wal", "-shm", "-journal"):
                Path(f"{self.path}{ending}").unlink(missing_ok=True)
            self.path.write_bytes(self.content)

    def _look(self) -> tuple[str, str]:
        try:
            dag = ArtifactDAG.load(self.path, read_only=True)
        except GuardlearnError as error:
            assert "\n" not in str(error)
            return REFUSED, str(error)
        with dag:
            if problems := dag.verify().problems:
                return REPORTED, problems[0]
            try:
                now = everything(dag)
            except Exception as error:  # what verify passed cannot be read
                return SILENT, f"{type(error).__name__}: {error}"
        return (MEANINGLESS, "") if now == self._before else (SILENT, "reads otherwise")


def prepare(path: Path) -> None:
    """Give this process a copy of a repository's file, for `flip_one`."""
    global _own
    copy = path.with_name(f"copy-{os.getpid()}.db")
    copy.write_bytes(path.read_bytes())
    _own = Flipping(copy)


def flip_one(flip: tuple[str, int, int]) -> tuple[str, str]:
    """Return what comes of a flip: (kind of page, offset, other byte)."""
    return _own.outcome(*flip[1:])


_own: Flipping


def page_kinds(content: bytes) -> dict[int, str]:
    """Return the kind of each page by its number, 1-based; what no b-tree names is an overflow or a free page."""
    size = int.from_bytes(content[16:18], "big")
    kinds = {2: "index interior", 5: "table interior", 10: "index leaf", 13: "table leaf"}
    free = free_pages(content, size)
    found = {}
    for number in range(1, len(content) // size + 1):
        start = (number - 1) * size + (100 if number == 1 else 0)
        found[number] = free.get(number) or kinds.get(content[start], "overflow")
    return found


def free_pages(content: bytes, size: int) -> dict[int, str]:
    found, trunk = {}, int.from_bytes(content[32:36], "big")
    while trunk:
        start = (trunk - 1) * size
        following, count = (int.from_bytes(content[start + at : start + at + 4], "big") for at in (0, 4))
        leaves = [int.from_bytes(content[start + 8 + 4 * n : start + 12 + 4 * n], "big") for n in range(count)]
        found |= {trunk: "free trunk", **dict.fromkeys(leaves, "free leaf")}
        trunk = following
    return found


def places(content: bytes, chance: random.Random, by_page: int) -> Iterator[tuple[str, int]]:
    """Yield (kind, offset) of the whole file header, and of some bytes of each page: its start, its cells, the rest."""
    size = int.from_bytes(content[16:18], "big")
    for offset in range(100):
        yield "header", offset
    for number, kind in page_kinds(content).items():
        start = (number - 1) * size + (100 if number == 1 else 0)
        end = number * size
        name = "schema page" if number == 1 else kind
        for _ in range(by_page):
            ranges = ((start, start + 12), (start + 12, start + 80), (end - 2000, end), (start, end))
            yield name, chance.randrange(*chance.choice(ranges))


def flipped(byte: int, chance: random.Random) -> int:
    """Return another byte: one bit turned, or all, or any."""
    return chance.choice((byte ^ (1 << chance.randrange(8)), byte ^ 0xFF, (byte + chance.randrange(1, 256)) % 256))
