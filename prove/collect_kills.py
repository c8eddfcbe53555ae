"""kill -9 at 100 seeded moments of `guardlearn collect` (80 on SQLite, 20 on PostgreSQL), some with a budget of tokens:
after each kill every digest holds and no chain is broken, no attempt is stored twice, what was judged and not stored
was in flight, and the budget is exceeded by no more than the answers in flight; the same command ends with exactly
the attempts of a collection that nobody killed."""

import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import collecting
import killing
from databases import Files, server

KILLS = {"SQLite": 80, "PostgreSQL": 20}


def run(work):
    seen = {}
    with killing.nursery() as nursery:
        seen["SQLite"] = rounds(nursery, Files(work), work, KILLS["SQLite"])
        with server() as started:
            seen["PostgreSQL"] = rounds(nursery, started, work, KILLS["PostgreSQL"])
    holds = all(seen[name]["killed"] == kills and seen[name]["judged and lost"] > 0 for name, kills in KILLS.items())
    return {name: dict(sorted(counts.items())) for name, counts in seen.items()}, holds


def rounds(nursery, databases, work, kills):
    seen, folder = Counter(), work / "round"
    most = "tokens over a budget, at most"
    for seed in range(kills):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        over = seen[most]
        with databases.installed() as place:
            seen += collecting.kill_collections(nursery, place.target, folder, seed, kills - seen["killed"])
        seen[most] = max(over, seen[most] - over)
        seen["collections"] += 1
        if seen["killed"] >= kills:
            break
    return seen
