"""kill -9 at random moments of `guardlearn collect`, and what must be true afterwards.

`test_collect_kills.py` does it ten times, `prove/collect_kills.py` a hundred times. A guard of this module judges; it
notes each verdict it gives, so that what was judged can be held against what was stored.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from guardlearn.dag import ArtifactDAG
from guardlearn.types import ArtifactStatus, GuardContext, Verdict
from killing import Nursery

CHAINS = 60
R_MAX = 4
IN_FLIGHT = 6
PATIENCE_SECONDS = 0.02


class NotingGuard:
    """Accepts "done"; takes a while, and notes on disk what it judged."""

    name = "noting"
    version = "1"
    constraints = ""

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        time.sleep(PATIENCE_SECONDS * (zlib.crc32(artifact.encode()) % 4) / 4)
        file = os.open(context.specification.metadata["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{context.specification.id} {len(context.history) + 1}\n".encode())
        os.close(file)
        Path(context.specification.metadata["begun"]).touch()
        if artifact.endswith("done"):
            return Verdict(status=ArtifactStatus.ACCEPTED)
        return Verdict(status=ArtifactStatus.REJECTED, feedback=f"not {artifact}", fatal=artifact.endswith("lost"))


guard = NotingGuard()


def answers(number: int) -> list[str]:
    """Return the answers of a chain: some are accepted at the first to fourth attempt, some never, some are lost."""
    last = ("done", "done", "done", "no", "lost")[number % 5]
    return [f"{number} {k} no" for k in range(number % R_MAX)] + [f"{number} {last}"] * R_MAX


def expected() -> dict[tuple[str, int], str]:
    """Return every attempt of an unbroken collection: (specification id, attempt) → artifact."""
    made = {}
    for number in range(CHAINS):
        for attempt, text in enumerate(answers(number)[:R_MAX], 1):
            made[f"s{number}", attempt] = text
            if text.endswith(("done", "lost")):
                break
    return made


def prepare(folder: Path) -> None:
    """Write specifications and answers."""
    specs = [
        {
            "id": f"s{number}",
            "specification": f"Task {number}.",
            "group": f"g{number}",
            "metadata": {"log": str(folder / "judged.log"), "begun": str(folder / "begun")},
        }
        for number in range(CHAINS)
    ]
    told = [{"specification": f"Task {number}.", "answers": answers(number)} for number in range(CHAINS)]
    for name, lines in (("specs", specs), ("answers", told)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def command(target: str, folder: Path, *more: str) -> list[str]:
    """Return the arguments that collect into a repository."""
    return [
        "collect", str(folder / "specs.jsonl"), "--db", target, "--guard", "collecting:guard", "--generator", "replay",
        "--model", str(folder / "answers.jsonl"), "--rmax", str(R_MAX), "--in-flight", str(IN_FLIGHT), *more,
    ]  # fmt: skip


def kill_collections(nursery: Nursery, target: str, folder: Path, seed: int, kills: int) -> Counter[str]:
    """Kill a collection time and again until it is done, or was killed often enough; then let it go through.

    Returns:
        How many were killed, the attempts they left, those judged and lost, and how far a budget was exceeded.
    """
    prepare(folder)
    chance, seen, stored = random.Random(seed), Counter[str](), look_after(target, folder, 0)
    while seen["killed"] < kills and len(stored) < len(expected()):
        before = tokens(stored)
        budget = chance.choice((None, before + chance.randint(1, 60)))
        (folder / "begun").unlink(missing_ok=True)
        more = ["--budget-tokens", str(budget)] if budget else []
        status, _ = nursery.run(
            "command",
            folder / "said",
            *command(target, folder, *more),
            kill_after=chance.random() * 0.3,
            begun=folder / "begun",
        )
        if status == -signal.SIGKILL:
            seen["killed"] += 1
        else:
            assert status == 0, (folder / "said").read_text()
            seen["came to its end first"] += 1
        stored = look_after(target, folder, seen["killed"])
        if budget and status == 0:
            assert tokens(stored) >= budget or len(stored) == len(expected())
        if budget:
            assert tokens(stored) - budget <= 3 * IN_FLIGHT  # an answer has three tokens at most
            seen["tokens over a budget, at most"] = max(seen["tokens over a budget, at most"], tokens(stored) - budget)
    status, _ = nursery.run("command", folder / "said", *command(target, folder))
    assert status == 0, (folder / "said").read_text()
    assert look_after(target, folder, seen["killed"]) == expected()
    judged = (folder / "judged.log").read_text().splitlines()
    seen["stored"], seen["judged and lost"] = len(expected()), len(judged) - len(expected())
    return seen


def tokens(attempts: dict[tuple[str, int], str]) -> int:
    """Return what the answers cost."""
    return sum(len(text.split()) for text in attempts.values())


def look_after(target: str, folder: Path, kills: int) -> dict[tuple[str, int], str]:
    """Check a repository after `kills` kills; return its attempts."""
    if not Path(target).exists() and "://" not in target:
        return {}
    found: dict[tuple[str, int], str] = {}
    parents: dict[str, Any] = {}
    with ArtifactDAG.load(target) as dag:
        assert dag.verify().problems == []
        for item in dag.extract(order_by="seq"):
            place = item.metadata["spec_id"], item.facts.attempt
            assert place not in found, f"{place} twice"
            found[place] = item.artifact
            parents[item.id] = place
            before = parents[item.parent_id] if item.parent_id else None  # stored before its child
            assert before == ((place[0], place[1] - 1) if place[1] > 1 else None)
            assert not item.facts.broken
    assert found.items() <= expected().items()
    log = folder / "judged.log"
    judged = Counter(log.read_text().splitlines()) if log.exists() else Counter[str]()
    assert {f"{name} {attempt}" for name, attempt in found} <= judged.keys()
    assert judged.total() <= len(found) + kills * IN_FLIGHT  # a kill loses what was in flight and no more
    return found
