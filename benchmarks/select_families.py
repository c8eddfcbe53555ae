"""Chooses the demo's families by what the bare base model can code with the style rule off, and writes the data files.

    python benchmarks/select_families.py --answers answers.jsonl

Run once, before any training: it looks at no adapter. Every candidate family gets one sample of each of its 4
specifications, and with at least 3 right a second one; it is kept with at least 6 of 8 right. Kept families are dealt
to the sides at random within their category. About 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import random
from pathlib import Path

import msgspec

from guardlearn import demo
from guardlearn.attempts import Attempt, attempt_chains
from guardlearn.demo.families import Family, candidates, specifications_of
from guardlearn.demo.guard import HouseStyle
from guardlearn.demo.model import DEMO_MODEL_NAME, demo_model
from guardlearn.demo.tasks import FAMILIES_FILE, TASKS_FILE
from guardlearn.digests import digest_file
from guardlearn.generators import SamplingConfig, open_generator
from guardlearn.prompts import Renderer
from guardlearn.types import Generator, GuardContext, Side

SAMPLING = SamplingConfig(temperature=0.5, max_new_tokens=128, stop=("\n```\n",))
SEED = 7
KEPT_FROM = 0.75
"""Share of right answers that keeps a family."""
SPECIFICATIONS_PER_FAMILY = 3
SIZES = {Side.TRAIN: 40, Side.HELD_OUT: 40, Side.VALIDATION: 6}


def measure(model: Path, answers: Path) -> list[Attempt]:
    """Answer and judge each candidate once a specification, and those that did well once more."""
    generator = open_generator("transformers", model, sampling=SAMPLING)
    first = answer(generator, candidates(), answers, samples=1)
    return answer(generator, [*kept(first)], answers, samples=2) + [
        attempt for attempt in first if attempt.specification.group not in {family.name for family in kept(first)}
    ]


def answer(generator: Generator, families: list[Family], answers: Path, samples: int) -> list[Attempt]:
    """Return judged answers; what the file `answers` holds already is not asked again."""
    guard = HouseStyle(style=False)
    before = [judged_anew(line, guard) for line in answers.read_bytes().splitlines()] if answers.exists() else []
    with answers.open("a", encoding="utf-8", buffering=1) as file:
        attempts = attempt_chains(
            [spec for family in families for spec in specifications_of(family)],
            generator,
            guard,
            renderer=Renderer(special_tokens=generator.special_tokens),
            r_max=1,
            samples=samples,
            seed=SEED,
            done={attempt.chain: [attempt] for attempt in before},
            on_attempt=lambda attempt: print(msgspec.json.encode(attempt).decode(), file=file),
            on_progress=lambda done, total, note: print(f"\r{done}/{total}", end="", flush=True),
        )
    print()
    return attempts


def kept(attempts: list[Attempt]) -> list[Family]:
    """Return the candidates with at least 3 of 4 samples right."""
    passed = collections.Counter(a.specification.group for a in attempts if a.verdict.passed)
    sampled = collections.Counter(a.specification.group for a in attempts)
    return [family for family in candidates() if passed[family.name] >= KEPT_FROM * max(1, sampled[family.name])]


def judged_anew(line: bytes, guard: HouseStyle) -> Attempt:
    """Return a kept answer with this guard's verdict: the guard may have been mended since."""
    attempt = msgspec.json.decode(line, type=Attempt)
    verdict = guard(attempt.generation.text, GuardContext(specification=attempt.specification))
    return msgspec.structs.replace(attempt, verdict=verdict)


def deal(kept: list[Family]) -> dict[str, Side]:
    """Give each side its number of families: every category in proportion, at random within it."""
    wanted = sum(SIZES.values())
    if len(kept) < wanted:
        raise SystemExit(f"{len(kept)} families kept, {wanted} needed: write more candidates")
    chance = random.Random(SEED)
    places = {}
    for category in sorted({family.category for family in kept}):
        names = [family.name for family in kept if family.category == category]
        chance.shuffle(names)
        # a place within the category as a share: cutting all categories at the same share keeps their proportions
        places.update({name: ((index + 0.5) / len(names), category) for index, name in enumerate(names)})
    chosen = sorted(sorted(places, key=lambda name: places[name])[:wanted], key=lambda name: places[name][::-1])
    # the sides take turns along the categories, the small one every so often
    turns = [side for side, size in SIZES.items() for _ in range(size)]
    order = sorted(range(wanted), key=lambda n: (turns[:n].count(turns[n]) + 0.5) / SIZES[turns[n]])
    return {name: turns[turn] for name, turn in zip(chosen, order, strict=True)}


def write(folder: Path, model: Path, attempts: list[Attempt]) -> None:
    passed = collections.Counter(a.specification.group for a in attempts if a.verdict.passed)
    sampled = collections.Counter(a.specification.group for a in attempts)
    sides = deal(kept(attempts))
    record = {
        "what": "families of which the bare base model gets the share kept_from right or more, style rule off",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": DEMO_MODEL_NAME,
        "model_digest": digest_file(model / "model.safetensors"),
        "sampling": SAMPLING.describe(),
        "constraints": HouseStyle.constraints,
        "seed": SEED,
        "kept_from": KEPT_FROM,
        "candidates": len(candidates()),
        "kept": len(kept(attempts)),
        "right": sum(passed.values()),
        "sampled": len(attempts),
        "sides": {side.value: size for side, size in SIZES.items()},
        "specifications_per_family": SPECIFICATIONS_PER_FAMILY,
    }
    rows = [
        {
            "family": family.name,
            "category": family.category,
            "passed": passed[family.name],
            "sampled": sampled[family.name],
            "side": sides[family.name].value if family.name in sides else "",
        }
        for family in candidates()
    ]
    tasks = [
        spec
        for family in candidates()
        if family.name in sides
        for spec in specifications_of(family)[:SPECIFICATIONS_PER_FAMILY]
    ]
    (folder / FAMILIES_FILE).write_text("".join(json.dumps(row) + "\n" for row in [record, *rows]), encoding="utf-8")
    (folder / TASKS_FILE).write_bytes(
        b"".join(msgspec.json.encode(msgspec.to_builtins(spec)) + b"\n" for spec in tasks)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--answers", type=Path, required=True, help="answers and verdicts, as JSON lines; it continues from them"
    )
    arguments = parser.parse_args()
    model = demo_model()
    attempts = measure(model, arguments.answers)
    write(Path(next(iter(demo.__path__))), model, attempts)
    by_category = collections.Counter(row for row in (f.category for f in candidates()))
    print(f"\n{sum(a.verdict.passed for a in attempts)} of {len(attempts)} right; candidates {dict(by_category)}")


if __name__ == "__main__":
    main()
