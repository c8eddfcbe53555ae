"""One byte of a closed repository file is another, two thousand times: every byte of its header, and seeded ones of
each page, of every kind (table, index, overflow, freed, schema). Each time opening is refused with one line, or
`verify` reports it, or the byte carries no meaning: every item, every cell and the structure read as before. None
differs silently."""

import json
import multiprocessing
import os
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import flipping

EACH_PAGE = 31


def run(work):
    log = work / "flips.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    if not (work / "runs.db").is_file():
        flipping.fill(work / "making.db")
        (work / "making.db").replace(work / "runs.db")
    content = (work / "runs.db").read_bytes()
    chance = random.Random(1)
    wanted = [
        (kind, offset, flipping.flipped(content[offset], chance))
        for kind, offset in flipping.places(content, chance, EACH_PAGE)
    ]
    left = wanted[len(done) :]
    with (
        multiprocessing.Pool(len(os.sched_getaffinity(0)), flipping.prepare, (work / "runs.db",)) as pool,
        log.open("a") as file,
    ):
        for flip, (outcome, said) in zip(left, pool.imap(flipping.flip_one, left), strict=True):
            done.append({"kind": flip[0], "offset": flip[1], "byte": flip[2], "outcome": outcome, "said": said})
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
    seen = Counter((each["kind"], each["outcome"]) for each in done)
    result = {
        "file_bytes": len(content),
        "pages": Counter(flipping.page_kinds(content).values()),
        "flips": len(done),
        "outcomes": Counter(each["outcome"] for each in done),
        "by_kind": {
            kind: {outcome: n for (k, outcome), n in sorted(seen.items()) if k == kind}
            for kind in sorted({each["kind"] for each in done})
        },
        "silent": [each for each in done if each["outcome"] == flipping.SILENT],
    }
    kinds = {"header", "schema page", "table leaf", "table interior", "index leaf", "index interior", "overflow"}
    return result, not result["silent"] and len(done) >= 2000 and kinds <= result["by_kind"].keys()
