"""What one or more AtomicGuard stores hold, in the order to store it: ids, links, times, and what is wrong.

`objects/` is the truth; `index.json` is a hint, and where the two differ that is a fault, because two writers lose
index entries and a crash leaves an object without one. A survey may be of any size: it lies in a temporary file that
vanishes with the process. Errata 6, 7 and 16.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from guardlearn.dag.importers import atomicguard_object as objects
from guardlearn.dag.importers.atomicguard_index import Hints, Listed, read_index
from guardlearn.dag.importers.atomicguard_records import Head
from guardlearn.dag.rows import storable_name, to_micros
from guardlearn.errors import RepositoryError

__all__ = ["Entry", "Faults", "Survey"]

MOST_FAULTS = 10_000
"""Faults that a report names; of those beyond it gives the number."""

_CACHE_KIB = 6_144
_SCHEMA = """
CREATE TABLE entries (
    n INTEGER PRIMARY KEY, id TEXT, store INTEGER, folder INTEGER, name BLOB, parent_id TEXT, created_at INTEGER,
    time_known INTEGER, status TEXT, second INTEGER DEFAULT 0
);
CREATE TABLE hints (store INTEGER, id TEXT, status TEXT, created_at TEXT);
CREATE TABLE listed (place TEXT, id TEXT);
CREATE TABLE seen (store INTEGER, name TEXT, PRIMARY KEY (store, name)) WITHOUT ROWID;
"""
_ENTRY = "e.n, e.id, e.store, e.folder, e.name, e.parent_id, e.created_at, e.time_known, p.n"
_ENTRIES = f"SELECT {_ENTRY} FROM entries e LEFT JOIN entries p ON p.id = e.parent_id AND NOT p.second"


class Entry(NamedTuple):
    """One object: where it lies and what decides its place."""

    n: int
    id: str
    store: int
    folder: int
    name: bytes | None
    """Of its file; None: its id and ".json"."""
    parent_id: str
    created_at: int
    """Microseconds since 1970; from the index or the file where the object has none."""
    time_known: int
    parent: int | None
    """Its parent's n; None where the stores do not hold it."""
    circle: bool = False
    """Its links run in a circle."""


class Faults:
    """What is odd, one sentence each with an id; the first ones are kept."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._more = 0

    def add(self, name: str, fault: str) -> None:
        """Note a fault."""
        if len(self._kept) < MOST_FAULTS:
            self._kept.append(f"{name}: {fault}")
        else:
            self._more += 1

    def named(self) -> list[str]:
        """Return the faults, and how many more there are."""
        more = f"and {self._more} more faults; mend these, and import again to see the next"
        return [*self._kept, *([more] if self._more else [])]


class Survey:
    """Every object of one or more stores; fill it with `index` and `take`, then `complete` it. Close it after use."""

    def __init__(self) -> None:
        self.index_faults, self.faults = Faults(), Faults()
        self.skipped = 0
        self.count = 0
        """Objects with a place in the order."""
        self._last = 0
        self._stores: dict[int, str] = {}
        self._folders: list[str] = []
        self._without_index: set[int] = set()
        self._time_unknown = False
        with _room():
            self._database = sqlite3.connect("", isolation_level=None)  # a temporary file, in TMPDIR or /var/tmp
            for setting in (f"cache_size = -{_CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
                self._database.execute(f"PRAGMA {setting}")
            self._database.executescript(_SCHEMA)
            self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    # -- filling

    def index(self, number: int, store: Path, name: str) -> Iterator[None]:
        """Read a store's index.json, a step with each `next`; all of it before the survey is complete.

        Args:
            number: of the store, counted up from 1.
            store: its folder.
            name: the store's as the report names it.
        """
        self._stores[number] = name
        if (store / "index.tmp").exists():
            self.index_faults.add(name, "index.tmp was left by a crash; it is not read")
        try:
            for part in read_index(store / "index.json"):
                self._note_index(number, part)
                yield
        except ValueError:
            self._note_index(number, None)
            self._without_index.add(number)
            self.index_faults.add(name, "index.json cannot be read; objects are read without it")
        repeated = "SELECT id, place, COUNT(*) FROM listed GROUP BY place, id HAVING COUNT(*) > 1 ORDER BY MIN(rowid)"
        for each, place, times in self._database.execute(repeated):
            self.index_faults.add(each, f"the index lists it {times} times under {place}")
        self._database.execute("DELETE FROM listed")

    def pass_over(self, number: int, names: Iterable[str]) -> None:
        """Note object files of a store that are not read, because ℛ has what they hold."""
        self._see([(number, storable_name(name.removesuffix(".json"))) for name in names])

    def take(self, number: int, folder: str, names: list[str], heads: list[Head]) -> None:
        """Note what some objects are.

        Args:
            number: of their store.
            folder: theirs.
            names: of their files.
            heads: one for each.
        """
        if not self._folders or self._folders[-1] != folder:
            self._folders.append(folder)
        rows: list[tuple[Any, ...]] = []
        odd: list[tuple[int, str]] = []
        for name, head in zip(names, heads, strict=True):
            usual = name == f"{head.id}.json"
            if not (usual and head.id):
                odd.append((number, storable_name(name.removesuffix(".json"))))
            if not head.id:
                self.skipped += 1
                self.faults.add(odd[-1][1], head.fault)
                continue
            if not usual:
                self.faults.add(head.id, f"its file is named {name!r}; the id inside is taken")
            self._last += 1
            self._time_unknown |= not head.time_known
            place = (number, len(self._folders) - 1, None if usual else os.fsencode(name))
            rows.append((self._last, head.id, *place, head.parent_id, head.created_at, head.time_known, head.status))
        with _room():
            self._database.executemany(_INSERT, rows)
        self._see(odd)

    def add_faults(self, faults: Iterable[tuple[str, str]]) -> None:
        """Note what is odd beside the objects, by id."""
        for each in faults:
            self.faults.add(*each)

    def complete(self) -> None:
        """Compare what was taken: second copies, and what the indexes say."""
        with _room():
            self._database.execute("CREATE INDEX entries_id ON entries (id)")
        self._note_copies()
        if self._time_unknown:
            self._note_times()
        self._compare_indexes()
        query = "SELECT COUNT(*) FROM entries WHERE NOT second"
        self.count = int(self._database.execute(query).fetchone()[0])
        self._database.execute("PRAGMA cache_size = -4096")  # from now on it is read in order

    # -- reading

    def in_order(self) -> Iterator[Entry]:
        """Yield the entries, parents first, then by (created_at, id); who is in a circle is marked, and a fault."""
        done = bytearray(self._last + 1)
        for row in self._database.execute(f"{_ENTRIES} WHERE NOT e.second ORDER BY e.created_at, e.id"):
            entry = Entry(*row)
            above = entry.parent
            if done[entry.n]:
                continue
            if above is None or done[above]:  # most of them
                done[entry.n] = 1
                yield entry
                continue
            path = {entry.n: entry}
            while above is not None and not done[above]:
                if above in path:
                    numbers = list(path)
                    for number in numbers[numbers.index(above) :]:
                        path[number] = path[number]._replace(circle=True)
                    break
                path[above] = self._entry(above)
                above = path[above].parent
            for each in reversed(path.values()):
                done[each.n] = 1
                if each.circle:
                    self.faults.add(each.id, f"its links run in a circle, by way of {each.parent_id}")
                yield each

    def path(self, entry: Entry) -> str:
        """Return an entry's file."""
        return f"{self._folders[entry.folder]}/{os.fsdecode(entry.name) if entry.name else f'{entry.id}.json'}"

    def store(self, entry: Entry) -> str:
        """Return an entry's store as the report names it."""
        return self._stores[entry.store]

    def find(self, item_id: str) -> Entry | None:
        """Return the entry of an id, None where the stores do not hold it."""
        row = self._database.execute(f"{_ENTRIES} WHERE e.id = ? AND NOT e.second", (item_id,)).fetchone()
        return Entry(*row) if row else None

    def known(self, ids: Iterable[str]) -> set[str]:
        """Return those of `ids` that the stores hold; at most 30,000 are asked for."""
        wanted = list(ids)
        places = ", ".join("?" * len(wanted))
        return {name for (name,) in self._database.execute(f"SELECT id FROM entries WHERE id IN ({places})", wanted)}

    # -- helpers

    def _entry(self, n: int) -> Entry:
        return Entry(*self._database.execute(f"{_ENTRIES} WHERE e.n = ?", (n,)).fetchone())

    def _see(self, names: list[tuple[int, str]]) -> None:
        if names:
            self._database.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", names)

    def _note_index(self, number: int, part: Hints | Listed | None) -> None:
        if part is None:
            self._database.execute("DELETE FROM hints WHERE store = ?", (number,))
            self._database.execute("DELETE FROM listed")
        elif isinstance(part, Hints):
            rows = [
                (
                    number,
                    name,
                    storable_name(str(hint.status)),
                    told if isinstance(told := hint.created_at, str) else None,
                )
                for name, hint in part.by_id.items()
            ]
            self._database.executemany("INSERT INTO hints VALUES (?, ?, ?, ?)", rows)
        elif len(part.ids) > 1 or not part.whole:
            place = f"{part.kind} {part.key!a}"
            if part.whole and len(set(part.ids)) == len(part.ids):
                return
            self._database.executemany("INSERT INTO listed VALUES (?, ?)", [(place, each) for each in part.ids])

    def _note_copies(self) -> None:
        """Leave out every object whose id came before."""
        found = self._database.execute(
            "SELECT n, id FROM entries "
            "WHERE id IN (SELECT id FROM entries GROUP BY id HAVING COUNT(*) > 1) ORDER BY id, n"
        )
        first = 0, ""
        for n, name in found:
            if name != first[1]:
                first = n, name
                continue
            self._database.execute("UPDATE entries SET second = 1 WHERE n = ?", (n,))
            self.skipped += 1
            one, other = self._entry(first[0]), self._entry(n)
            if not _equal(self.path(one), self.path(other)):
                places = f"in {self.store(one)} and in {self.store(other)}"
                self.faults.add(name, f"is {places} with another content; the first is taken")

    def _note_times(self) -> None:
        """Take from the index what objects do not say."""
        self._database.execute("CREATE INDEX hints_id ON hints (id)")
        found = self._database.execute(
            "SELECT e.n, e.id, h.created_at FROM entries e LEFT JOIN hints h ON h.id = e.id AND h.store = e.store "
            "WHERE NOT e.time_known AND NOT e.second ORDER BY e.n"
        )
        for n, name, told in found:
            self.faults.add(name, "created_at is no time; taken from the index or the file")
            if (moment := objects.time_of(told)) is not None:
                self._database.execute("UPDATE entries SET created_at = ? WHERE n = ?", (to_micros(moment), n))

    def _compare_indexes(self) -> None:
        listed = bytearray(self._last + 1)
        found = self._database.execute(
            "SELECT h.store, h.id, h.status, e.n, e.store, e.status FROM hints h "
            "LEFT JOIN entries e ON e.id = h.id AND NOT e.second ORDER BY h.rowid"
        )
        for number, name, said, n, own, status in found:
            if own == number:
                listed[n] = 1
                if said != status:
                    self.faults.add(name, f"the index says {said!a}, the object {status!a}; the object is taken")
            elif (own is None or own > number) and not self._is_seen(number, name):
                self.skipped += 1
                self.faults.add(name, f"the index of {self._stores[number]} lists it, but its object is missing")
        for n, name, number in self._database.execute("SELECT n, id, store FROM entries WHERE NOT second ORDER BY n"):
            if not listed[n] and number not in self._without_index:
                self.faults.add(name, "the index does not list it (a crash, or two writers)")

    def _is_seen(self, number: int, name: str) -> bool:
        query = "SELECT 1 FROM seen WHERE store = ? AND name = ?"
        return self._database.execute(query, (number, name)).fetchone() is not None


_INSERT = (
    "INSERT INTO entries (n, id, store, folder, name, parent_id, created_at, time_known, status) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def _equal(one: str, other: str) -> bool:
    try:
        return objects.read_bytes(one) == objects.read_bytes(other)
    except ValueError:  # one went meanwhile
        return False


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RepositoryError(
            f"what an import keeps in a temporary file while it runs cannot be written ({error}); make room in "
            f"{os.environ.get('TMPDIR') or '/var/tmp'}, or set TMPDIR to a folder that has more"
        ) from error
