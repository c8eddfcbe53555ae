"""`guardlearn ui` on a large repository, beside the bare SQL that each page needs.

    python benchmarks/browsing.py [--sizes 10000] [--rounds 15] [--db FILE] [--json FILE]

For each size: a repository of generated attempts (`stores.py`, appended by `ours.py`), a server of its own process, one
client. In each round every page is asked for once, next to the SQL a careful programmer would write for it by hand with
sqlite3, on a connection that stays open; both must find the same items. A page may take 3 times its SQL plus 50 ms, in
the median; the server's memory, at its peak, 200 MiB. What is counted of all of ℛ comes after a page and is measured
once, cold, without a limit. --db takes a repository that is there; its size is what it holds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import http.client
import json
import os
import platform
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from figures_browsing import summary
from machine import keep, note

HERE = Path(__file__).parent
BYTES_PER_ATTEMPT = 9_000
"""Of disk, with the log of the last transaction."""
ROWS, LAST = 50, 10
DEADLINE_SECONDS = 600

_FIELDS = (
    "i.seq, i.id, i.created_at, i.source, f.status, s.side, s.spec_group, f.attempt, f.rejected_ancestors, "
    "i.action_pair_id, i.workflow_id, i.guard, i.guard_version, i.cause, i.model, i.adapter, f.excluded, f.reviewed, "
    "f.stale, f.redacted, f.broken, substr(t.body, 1, 160)"
)
_JOINED = (
    "items i JOIN facts f ON f.seq = i.seq LEFT JOIN specifications s ON s.key = i.specification "
    "JOIN texts t ON t.key = i.specification"
)
_CHAIN = """
    SELECT i.seq, i.id, i.parent_id, f.parent_seq, f.status, f.attempt, b.artifact, b.feedback, b.details, psi.body,
        omega.body FROM facts f JOIN items i ON i.seq = f.seq JOIN bodies b ON b.seq = f.seq
        JOIN texts psi ON psi.key = i.specification JOIN texts omega ON omega.key = i.constraints
    WHERE f.root_seq = (SELECT root_seq FROM facts WHERE seq = (SELECT seq FROM items WHERE id = ?)) ORDER BY f.seq"""
_EVENTS = "SELECT * FROM events WHERE item_id = ?"
_SEQ = "SELECT seq FROM head WHERE name = 'log'"

FILTERS = {
    "filter: common": ("refinement()", "newest", "f.status = 'accepted' AND f.rejected_ancestors >= 1"),
    "filter: rare": (
        "refinement() & retries(at_least=5)",
        "newest",
        "f.status = 'accepted' AND f.rejected_ancestors >= 5",
    ),
    "filter: without an index": (
        'action_pair("g_add") & status("rejected") & side("held_out")',
        "latest",
        "i.action_pair_id = 'g_add' AND f.status = 'rejected' AND s.side = 'held_out'",
    ),
    "filter: nothing": ('source("human")', "newest", "i.source = 'human'"),
    "no filter": ("", "latest", "1"),
}
"""Name → (predicate, order, WHERE of the SQL)."""

_SORTED = {"newest": "i.seq DESC", "latest": "i.created_at DESC, i.id DESC"}
PARTS = {
    "count: common": "/listing/count?where=" + quote("refinement()"),
    "count: rare": "/listing/count?where=" + quote("refinement() & retries(at_least=5)"),
    "why not: common": "/listing/drops?where=" + quote("refinement()"),
    "by status": "/overview/status",
    "policies": "/overview/policies",
    "figures": "/overview/figures",
}
"""What comes after a page."""


class Refused(Exception):
    """One line for the user."""


class Case(NamedTuple):
    """A page, and the SQL that it needs."""

    path: Callable[[], str]
    bare: Callable[[sqlite3.Connection], list[str]]
    """Returns the ids that the page must show."""


class Client:
    """One connection to the server."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_SECONDS)

    def get(self, path: str) -> tuple[float, str]:
        """Return how long an answer took, and its text."""
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise Refused(f"{path} was answered with {answer.status}")
        return seconds, body.decode()


def shown(text: str) -> list[str]:
    """Return the ids in a page's table of items."""
    return [unquote(found) for found in re.findall(r'<td class="id"><a href="/items/([^"]*)"', text)]


def cases(connection: sqlite3.Connection) -> Iterator[tuple[str, Case]]:
    """Yield the pages; those of chains and later pages are others each time."""
    last = connection.execute("SELECT max(seq) FROM items").fetchone()[0]
    step = iter(range(1, 10**9))

    def first(bare: sqlite3.Connection) -> list[str]:
        bare.execute(_SEQ).fetchone()
        bare.execute("SELECT side, count(*) FROM specifications GROUP BY side").fetchall()
        return [row[1] for row in bare.execute(f"SELECT {_FIELDS} FROM {_JOINED} ORDER BY i.seq DESC LIMIT {LAST}")]

    yield "first page", Case(lambda: "/", first)
    for name, (predicate, order, where) in FILTERS.items():
        path = f"/items?where={quote(predicate)}&order={order}"
        yield name, Case(lambda path=path: path, _listed(where, order))
    place = {"seq": last}

    def later() -> str:
        place["seq"] = last * (next(step) * 37 % 89 + 5) // 100
        return f"/items?where={quote('refinement()')}&order=newest&after={place['seq']}"

    def later_rows(bare: sqlite3.Connection) -> list[str]:
        where = f"{FILTERS['filter: common'][2]} AND i.seq < {place['seq']}"
        return _listed(where, "newest")(bare)

    yield "filter: a later page", Case(later, later_rows)
    longest = "SELECT id FROM items i JOIN facts f ON f.seq = i.seq WHERE f.rejected_ancestors = ? LIMIT 400"
    depth = connection.execute("SELECT max(rejected_ancestors) FROM facts").fetchone()[0]
    ids = [row[0] for row in connection.execute(longest, (depth,))]
    chosen = {"id": ids[0]}

    def chain() -> str:
        chosen["id"] = ids[next(step) * 37 % len(ids)]
        return f"/items/{quote(chosen['id'], safe='')}"

    def chain_rows(bare: sqlite3.Connection) -> list[str]:
        bare.execute(_SEQ).fetchone()
        rows = bare.execute(_CHAIN, (chosen["id"],)).fetchall()
        for row in rows:
            bare.execute(_EVENTS, (row[1],)).fetchall()
        return [row[1] for row in rows]

    yield "chain", Case(chain, chain_rows)


def _listed(where: str, order: str) -> Callable[[sqlite3.Connection], list[str]]:
    query = f"SELECT {_FIELDS} FROM {_JOINED} WHERE {where} ORDER BY {_SORTED[order]} LIMIT {ROWS + 1}"

    def rows(bare: sqlite3.Connection) -> list[str]:
        bare.execute(_SEQ).fetchone()
        return [row[1] for row in bare.execute(query)][:ROWS]

    return rows


def measure(db: Path, rounds: int, python: str) -> dict[str, Any]:
    """Return the times of every page and its SQL, what follows the pages, and the server's memory."""
    with serving(db, python) as (url, pid), contextlib.closing(_reading(db)) as bare:
        client = Client(url)
        listed = dict(cases(bare))
        taken: dict[str, dict[str, list[float]]] = {name: {"page": [], "sql": []} for name in listed}
        for number in range(rounds + 1):
            note(f"{bare_size(bare):,} attempts, round {number} of {rounds}")
            for name, case in listed.items():
                path = case.path()
                turns: dict[str, Callable[[], Any]] = {
                    "sql": lambda case=case: _timed(lambda: case.bare(bare)),
                    "page": lambda path=path: client.get(path),
                }
                found = {side: turns[side]() for side in sorted(turns, reverse=bool(number % 2))}
                _must_agree(name, path, found["sql"][1], found["page"][1])
                if number:  # the first round fills caches, on both sides
                    for side, (seconds, _) in found.items():
                        taken[name][side].append(round(seconds, 6))
        parts = {name: round(client.get(path)[0], 4) for name, path in PARTS.items()}
        return {"pages": taken, "parts": parts, "peak_mib": _peak_mib(pid), "size": bare_size(bare)}


def _must_agree(name: str, path: str, ids: list[str], text: str) -> None:
    missing = [item for item in ids if item not in unquote(text)] if name == "chain" else ids != shown(text)
    if missing or (name == "chain" and not ids):
        raise Refused(f"{name}: {path} does not show what its SQL finds")


@contextlib.contextmanager
def serving(db: Path, python: str) -> Iterator[tuple[str, int]]:
    """Yield the address and the process id of a server."""
    command = [python, "-m", "guardlearn", "ui", str(db), "--port", "0", "--read-only", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        lines = ""
        while not lines.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                raise Refused(f"the server ended: {' '.join(command)}")
            lines += line
        yield json.loads(lines)["url"], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def fill(db: Path, size: int, python: str) -> None:
    """Make a repository of generated attempts."""
    note(f"{size:,} attempts, making the repository")
    done = subprocess.run(
        [python, str(HERE / "ours.py"), "append", str(size), str(db)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Refused((done.stderr.strip().splitlines() or ["ours.py failed"])[-1])


def bare_size(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM items").fetchone()[0])


def _reading(db: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{db.absolute().as_uri()}?mode=ro", uri=True)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def _peak_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def _measured(rounds: int) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "rounds": rounds,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load_average": round(os.getloadavg()[1], 1),
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every size; returns the entries by size."""
    if options.db:
        entry = measure(options.db, options.rounds, options.python) | {"measured": _measured(options.rounds)}
        return {str(entry["size"]): entry}
    need, free = max(options.sizes) * BYTES_PER_ATTEMPT, shutil.disk_usage(options.work).free
    if need > free:
        said = f"{max(options.sizes):,} attempts need {need / 1e9:.1f} GB in {options.work}, {free / 1e9:.1f} are free"
        raise Refused(f"{said}; name another folder with --work, or smaller --sizes")
    entries = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="guardlearn-browsing-", dir=options.work) as work:
            db = Path(work) / "runs.db"
            fill(db, size, options.python)
            entries[str(size)] = measure(db, options.rounds, options.python) | {"measured": _measured(options.rounds)}
    return entries


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; refused ones end the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = os.environ.get("BENCH_SIZES", "10000")
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=sizes)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--db", type=Path, help="a repository that is there already")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--work", default=tempfile.gettempdir(), help="folder for the repositories")
    parser.add_argument("--json", type=Path, help="file to put the records in; others in it stay")
    options = parser.parse_args(arguments)
    if min(options.sizes) < 500:
        parser.error("below 500 attempts there are no chains to look at")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the medians as one JSON object; returns 1 where something is missed."""
    options = parse(arguments)
    try:
        entries = run(options)
    except Refused as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what it made is removed", file=sys.stderr)
        return 130
    if options.json:
        keep(options.json, "browsing", entries)
    found = {size: summary(entry) for size, entry in entries.items()}
    print(json.dumps(found, indent=1))
    return 0 if all(each["holds"] for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
