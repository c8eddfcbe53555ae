"""Chooses the demo's families by what the bare base model can code with the style rule off, and writes the data files.

    python benchmarks/select_families.py --answers /tmp/answers.jsonl

Run once, before any training: it looks at no adapter. Every candidate family gets one sample of each of its 4
specifications; a family is kept with at least 3 right, and kept ones are dealt to the sides at random within their
category. About 3 minutes on two cores.
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
from guardlearn.types import GuardContext, Side

SAMPLING = SamplingConfig(temperature=0.5, max_new_tokens=128, stop=("\n```\n",))
SEED = 7
KEPT_FROM = 3
"""Right answers of 4 that keep a family."""
SPECIFICATIONS_PER_FAMILY = 3
SIZES = {Side.TRAIN: 40, Side.HELD_OUT: 40, Side.VALIDATION: 6}


def measure(model: Path, answers: Path) -> list[Attempt]:
    """Answer and judge every candidate specification once; what `answers` holds already is not asked again."""
    generator = open_generator("transformers", model, sampling=SAMPLING)
    guard = HouseStyle(style=False)
    before = [judged_anew(line, guard) for line in answers.read_bytes().splitlines()] if answers.exists() else []
    with answers.open("ab", buffering=0) as file:
        return attempt_chains(
            [spec for family in candidates() for spec in specifications_of(family)],
            generator,
            guard,
            renderer=Renderer(special_tokens=generator.special_tokens),
            r_max=1,
            seed=SEED,
            done={attempt.chain: [attempt] for attempt in before},
            on_attempt=lambda attempt: file.write(msgspec.json.encode(attempt) + b"\n") and None,
            on_progress=lambda done, total, note: print(f"\r{done}/{total}", end="", flush=True),
        )


def judged_anew(line: bytes, guard: HouseStyle) -> Attempt:
    """Return a kept answer with this guard's verdict: the guard may have been mended since."""
    attempt = msgspec.json.decode(line, type=Attempt)
    verdict = guard(attempt.generation.text, GuardContext(specification=attempt.specification))
    return msgspec.structs.replace(attempt, verdict=verdict)


def deal(kept: list[Family]) -> dict[str, Side]:
    """Give each side its number of families, every category in proportion, at random within it."""
    if len(kept) < sum(SIZES.values()):
        raise SystemExit(f"{len(kept)} families kept, {sum(SIZES.values())} needed: write more candidates")
    chance = random.Random(SEED)
    by_category = collections.defaultdict(list)
    for family in kept:
        by_category[family.category].append(family.name)
    # a family's place within its category, as a share: cutting all categories at the same share keeps proportions
    places = {}
    for names in by_category.values():
        chance.shuffle(names)
        places.update({name: (index + 0.5) / len(names) for index, name in enumerate(names)})
    ordered = sorted(places, key=lambda name: (places[name], name))[: sum(SIZES.values())]
    # dealt in a cycle, so that the sides interleave along that order
    cycle = [side for side, size in SIZES.items() for _ in range(size)]
    slots = sorted(range(len(cycle)), key=lambda i: (cycle[:i].count(cycle[i]) + 0.5) / SIZES[cycle[i]])
    return {name: cycle[slot] for name, slot in zip(ordered, slots, strict=True)}


def write(folder: Path, model: Path, attempts: list[Attempt]) -> None:
    passed = collections.Counter(a.specification.group for a in attempts if a.verdict.passed)
    sampled = collections.Counter(a.specification.group for a in attempts)
    sides = deal([family for family in candidates() if passed[family.name] >= KEPT_FROM])
    record = {
        "what": "families kept where the bare base model was right in at least `kept_from` of its samples, style rule off",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": DEMO_MODEL_NAME,
        "model_digest": digest_file(model / "model.safetensors"),
        "sampling": SAMPLING.describe(),
        "constraints": HouseStyle.constraints,
        "seed": SEED,
        "kept_from": KEPT_FROM,
        "candidates": len(candidates()),
        "kept": sum(passed[family.name] >= KEPT_FROM for family in candidates()),
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
    tasks = [spec for family in candidates() if family.name in sides for spec in specifications_of(family)[:SPECIFICATIONS_PER_FAMILY]]
    (folder / FAMILIES_FILE).write_text("".join(json.dumps(row) + "\n" for row in [record, *rows]), encoding="utf-8")
    (folder / TASKS_FILE).write_bytes(b"".join(msgspec.json.encode(msgspec.to_builtins(spec)) + b"\n" for spec in tasks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="answers and verdicts, as JSON lines; it continues from them")
    arguments = parser.parse_args()
    model = demo_model()
    attempts = measure(model, arguments.answers)
    write(Path(next(iter(demo.__path__))), model, attempts)
    by_category = collections.Counter(row for row in (f.category for f in candidates()))
    print(f"\n{sum(a.verdict.passed for a in attempts)} of {len(attempts)} right; candidates {dict(by_category)}")


if __name__ == "__main__":
    main()
