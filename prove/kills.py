"""kill -9 at 220 seeded moments: a writer that appends, appends many at once, notes events, redacts, closes and opens
again (100 times on SQLite, 20 on PostgreSQL), and `guardlearn import` of a log and of AtomicGuard stores, into nothing
and into a repository that holds a part (100 times). Each time the repository opens, `verify` is clean, all that was
acknowledged is there, no batch is there in part, every item is whole, and the same import again ends where an unbroken
one does."""

import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import killing
from databases import Files, server

STORES = Path(__file__).parents[1] / "tests" / "data" / "stores"
ROUND = 10
ROUNDS = {"writer, SQLite": 10, "writer, PostgreSQL": 2}
IMPORTS = 25
LINES = 2000


def run(work):
    rounds = Rounds(work)
    with killing.nursery() as nursery:
        for number in range(ROUNDS["writer, SQLite"]):
            rounds.run("writer, SQLite", number, lambda folder, seed: writers(nursery, Files(folder), folder, seed))
        if not rounds.done("writer, PostgreSQL", ROUNDS["writer, PostgreSQL"]):
            with server() as started:
                for number in range(ROUNDS["writer, PostgreSQL"]):
                    rounds.run(
                        "writer, PostgreSQL", number, lambda folder, seed: writers(nursery, started, folder, seed)
                    )
        for number in range(4):
            kind, grown = ("log", "stores")[number % 2], number > 1
            name = f"import of {'a log' if kind == 'log' else 'stores'}, {'a part was there' if grown else 'new'}"
            rounds.run(name, 0, lambda folder, seed, k=kind, g=grown: imports(nursery, folder, seed, k, g))
    seen = rounds.seen()
    return seen, sum(each["killed"] for each in seen.values()) >= 220 and len(seen) == 6


class Rounds:
    """What was seen, kept after each round, so that a broken run goes on where it was."""

    def __init__(self, work):
        self._work, self._log = work, work / "rounds.jsonl"

    def _lines(self):
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.is_file() else []

    def done(self, name, count):
        return sum(line["name"] == name for line in self._lines()) == count

    def run(self, name, number, kill):
        if any((line["name"], line["number"]) == (name, number) for line in self._lines()):
            return
        folder = self._work / "round"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        seen = kill(folder, number)
        with self._log.open("a") as log:
            log.write(json.dumps({"name": name, "number": number, "seen": seen}) + "\n")

    def seen(self):
        found = {}
        for line in self._lines():
            found[line["name"]] = found.get(line["name"], Counter()) + Counter(line["seen"])
        return {name: dict(sorted(counts.items())) for name, counts in found.items()}


def writers(nursery, databases, folder, seed):
    with databases.installed() as place:
        return killing.kill_writers(nursery, place.target, folder, seed, ROUND)


def imports(nursery, folder, seed, kind, grown):
    if kind == "log":
        part, whole = killing.log_import(folder, LINES)
    else:
        part, whole = ["import", str(STORES / "fs_2_3_0")], ["import", str(STORES)]
    killed = killing.Import(nursery, folder / "import", part if grown else [], whole)
    chance, seen = random.Random(f"{kind} {grown} {seed}"), Counter()
    while seen["killed"] < IMPORTS:
        seen += killed.kill(str(seen.total()), chance)
    return seen
