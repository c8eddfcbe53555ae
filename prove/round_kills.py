"""kill -9 at 100 seeded moments of `guardlearn loop` (80 on SQLite, 20 on PostgreSQL) with a trainer that takes no
time, and at 3 of rounds with the demo's real model and trainer: after each kill every digest holds and no trace is in
two rounds; the same command goes on to the one result of a round that nobody killed, its job folder byte-identical,
each trace in exactly one round. Whether a resumed real training ends in equal weights is stated, not promised."""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import killing
import looping
from databases import Files, server
from guardlearn.demo import demo_model

KILLS = {"SQLite": 80, "PostgreSQL": 20}
REAL = 3


def run(work):
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model = demo_model()
    os.environ["TRAINER_SECONDS"] = "0.3"
    seen = {}
    with killing.nursery(*looping.IMPORTED) as nursery:
        seen["SQLite"] = rounds(nursery, Files(work), work / "SQLite", model, KILLS["SQLite"])
        with server() as started:
            seen["PostgreSQL"] = rounds(nursery, started, work / "PostgreSQL", model, KILLS["PostgreSQL"])
        seen["real trainer"] = rounds(nursery, Files(work), work / "real", model, REAL, trainer=sys.executable)
    wanted = KILLS | {"real trainer": REAL}
    return seen, all(seen[name]["killed"] >= kills for name, kills in wanted.items())


def rounds(nursery, databases, folder, model, kills, trainer=None):
    with databases.new() as place, databases.new() as twin:
        seen = looping.kill_rounds(
            nursery, place.target, twin.target, folder, model, seed=kills, kills=kills, trainer=trainer
        )
    return dict(sorted(seen.items()))
