"""Eight processes append to one repository for 30 seconds, an item a transaction, in chains that hang on each other's
items, while a reader polls for what came after the last seq it has seen: on SQLite and on PostgreSQL (writing each
commit to disk) no error, nothing lost, every link and seq as acknowledged, no gap, `verify` clean, and the reader gets
every item once and in order. How many items a second, how evenly, and the longest wait are stated, not promised."""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import writing
from databases import Files, server

WRITERS = 8
SECONDS = 30


def run(work):
    result = {"sqlite": once(work / "sqlite", in_file), "postgresql": once(work / "postgresql", on_server)}
    return result, all(writing.intact(found) for found in result.values())


def once(folder, measure):
    """Measure, unless that was done in this folder already."""
    done = folder / "found.json"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = measure(folder)
        done.write_text(json.dumps(found))
    return json.loads(done.read_text())


def in_file(folder):
    with Files(folder).installed() as place:
        return writing.run_writers(place.target, folder, WRITERS, SECONDS)


def on_server(folder):
    with server(durable=True) as started, started.installed() as place:
        return writing.run_writers(place.target, folder, WRITERS, SECONDS)
