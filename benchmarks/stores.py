"""Writes AtomicGuard filesystem stores of any size: realistic attempts, the same bytes for the same seed.

    python benchmarks/stores.py FOLDER [--items 10000] [--seed 0]

Objects and index are what AtomicGuard 2.39.1 writes (indent 2, ASCII-escaped). 40 % of the attempts are in chains of
2-6, artifacts have 0.5-4 kB, an object 4 kB on average; there is one specification for every 200 attempts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

ATTEMPTS_PER_SPECIFICATION = 200
"""About: a benchmark of tasks is run again and again."""

IN_CHAINS = 0.4
"""Share of the attempts that are in a chain of two or more."""

_LENGTHS = (2, 2, 2, 3, 3, 4, 5, 6)
_PAIRS = ("g_add", "g_config", "g_test", "g_impl", "ap_singleshot")
_WORDS = (
    "graph token cursor schema socket replica parser invoice router cache stack queue ledger matrix bucket shard "
    "digest window signal branch vertex packet tenant quota lease"
).split()
_PHRASES = (
    "naïve café",
    "期待値と一致しません",
    "Ψ ∧ Ω ⟹ ⊤",
    "🙂 emoji ✓",
    "line\u2028sep",
    "é (combining)",
    *["plain ASCII"] * 14,
)
_FEEDBACK = (
    "Syntax error at line {n}: unexpected indent",
    "Missing import: name '{word}' is not defined (line {n})",
    "Tests failed:\n  FAILED test_{word}.py::test_{word}_empty - IndexError: pop from empty list\n"
    "  FAILED test_{word}.py::test_{word}_none - TypeError",
    "AssertionError: {word}({n}) returned None, expected {n}",
)
_FUNCTION = '''def {word}_{other}_{number}(items: list[int], limit: int = {n}) -> dict[str, int]:
    """Return the {other} of *items*: {phrase}."""
    seen: dict[str, int] = {{}}
    for i, x in enumerate(items):
        if x % {m} == 0 and i < limit:
            seen[f'{other}-{{x}}'] = seen.get(f'{other}-{{x}}', 0) + {m}

    return seen


'''
_START = datetime.datetime(2026, 1, 1, 8)


def write_store(folder: str | os.PathLike[str], items: int, seed: int = 0) -> Path:
    """Write a store of exactly `items` attempts into `folder`, which is made; returns its path.

    Args:
        folder: becomes one FilesystemArtifactDAG: index.json and objects/.
        items: how many attempts.
        seed: equal seeds and sizes give equal bytes.
    """
    root = Path(folder)
    for number in range(256):
        (root / "objects" / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    lists: dict[str, dict[str, list[str]]] = {"action_pairs": {}, "workflows": {}}
    with (root / "index.json").open("w", encoding="ascii") as index:
        index.write('{\n  "version": "1.0",\n  "artifacts": {')
        for number, value in enumerate(attempts(items, seed)):
            name = value["artifact_id"]
            path = f"objects/{name[:2]}/{name}.json"
            with open(root / path, "w", encoding="ascii") as file:  # noqa: PTH123 - a third of the time of Path.open
                file.write(json.dumps(value, indent=2))
            _enter(index, number, path, value)
            lists["action_pairs"].setdefault(value["action_pair_id"], []).append(name)
            lists["workflows"].setdefault(value["workflow_id"], []).append(name)
        index.write("\n  },\n" if items else "},\n")
        index.write(json.dumps(lists, indent=2)[2:])
    return root


def attempts(items: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the objects of a store, in the order in which an agent stored them."""
    draw = random.Random(seed)
    tasks = [_task(draw, number) for number in range(max(10, items // ATTEMPTS_PER_SPECIFICATION))]
    functions = [_function(draw, number) for number in range(1000)]
    wanted = sum(_LENGTHS) / len(_LENGTHS)
    chained = IN_CHAINS / wanted / (IN_CHAINS / wanted + 1 - IN_CHAINS)  # so that IN_CHAINS of the attempts are
    made, workflow, before, now = 0, "", "", _START
    while made < items:
        if made == 0 or draw.random() < 0.4:
            workflow, before = _uuid(draw), ""
        task, pair = draw.choice(tasks), draw.choice(_PAIRS)
        length = min(draw.choice(_LENGTHS) if draw.random() < chained else 1, items - made)
        solved, history = draw.random() < 0.85, []
        for attempt in range(1, length + 1):
            now += datetime.timedelta(seconds=draw.randrange(5, 90), microseconds=draw.randrange(1_000_000))
            accepted = solved and attempt == length
            value = _attempt(draw, (workflow, pair, task), history, accepted, now)
            value["content"] = _artifact(draw, draw.choice(_WORDS), functions)
            value["context"]["dependency_artifacts"] = {"g_add": before} if before and pair != "g_add" else {}
            history.append({"artifact_id": value["artifact_id"], "feedback": value["guard_result"]["feedback"]})
            before = value["artifact_id"] if accepted else before
            yield value
        made += length


def _attempt(
    draw: random.Random,
    of: tuple[str, str, tuple[str, str]],
    history: list[dict[str, str]],
    accepted: bool,
    now: datetime.datetime,
) -> dict[str, Any]:
    workflow, pair, (specification, constraints) = of
    word = draw.choice(_WORDS)
    feedback = "" if accepted else draw.choice(_FEEDBACK).format(n=draw.randrange(99), word=word)
    checks = [("SyntaxGuard", True, ""), ("DynamicTestGuard", accepted, feedback)]
    return {
        "artifact_id": _uuid(draw),
        "workflow_id": workflow,
        "content": "",
        "previous_attempt_id": history[-1]["artifact_id"] if history else None,
        "parent_action_pair_id": None,
        "action_pair_id": pair,
        "created_at": now.isoformat(),
        "attempt_number": len(history) + 1,
        "status": "accepted" if accepted else "rejected",
        "guard_result": {
            "passed": accepted,
            "feedback": feedback,
            "fatal": False,
            "guard_name": "DynamicTestGuard",
            "metadata": None,
            "sub_results": [
                {
                    "guard_name": name,
                    "passed": passed,
                    "feedback": said,
                    "execution_time_ms": draw.randrange(99999) / 1e3,
                }
                for name, passed, said in checks
            ],
        },
        "context": {
            "workflow_id": workflow,
            "specification": specification,
            "constraints": constraints,
            "feedback_history": list(history),
            "dependency_artifacts": {},
            "escalation_feedback": [],
            "dependency_types": {},
        },
        "metadata": {
            "prompt_tokens": draw.randrange(200, 4000),
            "completion_tokens": draw.randrange(50, 1200),
            "total_tokens": 0,
        },
        "artifact_type": "code",
    }


def _task(draw: random.Random, number: int) -> tuple[str, str]:
    """Return a Ψ and its Ω."""
    rules = [
        f"- {draw.choice(_WORDS)} {draw.choice(_WORDS)} {draw.choice(_WORDS)} {draw.randrange(999)}" for _ in range(3)
    ]
    lines = [
        f"# Task {number}: {draw.choice(_WORDS)}",
        "",
        f"Implement a {draw.choice(_WORDS)} of {draw.choice(_WORDS)}.",
    ]
    return "\n".join([*lines, *rules, f"- {draw.choice(_PHRASES)}", ""]), "Ω: no network; no eval"


def _function(draw: random.Random, number: int) -> str:
    chosen = {"word": draw.choice(_WORDS), "other": draw.choice(_WORDS), "phrase": draw.choice(_PHRASES)}
    return _FUNCTION.format(**chosen, number=number, n=draw.randrange(100), m=draw.randrange(2, 10))


def _artifact(draw: random.Random, word: str, functions: list[str]) -> str:
    """Return a module of 0.5-4 kB; its first line is its own."""
    length = draw.randrange(500, 4000)
    start = f'"""{word.title()} module {draw.randrange(10**9)}. {draw.choice(_PHRASES)}"""\n\n'
    return (start + "".join(draw.choices(functions, k=16)))[:length]


def _enter(index: TextIO, number: int, path: str, value: dict[str, Any]) -> None:
    """Write one entry of index.json, so that no index is held in memory."""
    entry = {"path": path}
    names = ("workflow_id", "action_pair_id", "parent_action_pair_id", "status", "created_at")
    entry |= {name: value[name] for name in names}
    text = json.dumps({value["artifact_id"]: entry}, indent=2)
    index.write("," * bool(number) + text[1:-2].replace("\n", "\n  "))


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def main() -> None:
    """Write one store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_store(options.folder, options.items, options.seed)


if __name__ == "__main__":
    main()
