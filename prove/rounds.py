"""Three rounds of the demo in one command (`guardlearn demo --rounds 3`), with the real small model: the first is
promoted, the later ones are decided either way, each with the gain its measurement would have found. On its adapters:
`why`, `impact`, `adapters rebuild` (every job folder byte for byte), `rollback`. Then two candidates that must not go
live: one trained on shuffled completions is refused against the live adapter, one trained with a learning rate that
rounds to nothing is refused as changing nothing, before anything is sampled. Last, 20 harmful candidates with replayed
outcomes: none is promoted."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import looping
from guardlearn import forgetting, settings
from guardlearn.cli.loop import _bench
from guardlearn.dag import ArtifactDAG
from guardlearn.demo import demo_model, house_style, specifications
from guardlearn.demo.run import DEMO_TRAINING, R_MAX, SAMPLING
from guardlearn.gate import GateConfig
from guardlearn.generators import open_generator
from guardlearn.loop.config import LoopConfig, LoopSettings, read_settings
from guardlearn.loop.rounds import Bench, run_round
from guardlearn.types import RepositoryItem, Side

HARMFUL = 20


def run(work):
    folder = work / "demo"
    shown = json.loads(command("demo", "--rounds", "3", "--dir", folder, "--json"))
    rounds = shown["rounds"]
    registry = kept(work / "registry.json", lambda: on_adapters(work, folder))
    harmful = kept(work / "shuffled.json", lambda: shuffled(work, folder))
    nothing = kept(work / "zero.json", lambda: zero_step(work, folder))
    replayed = kept(work / "replayed.json", lambda: replayed_harm(work / "replayed"))
    holds = (
        len(rounds) == 3
        and rounds[0]["state"] == "promoted"
        and all(each["state"] in ("promoted", "refused") for each in rounds)
        and all(registry["rebuilt byte for byte"].values())
        and harmful["state"] == "refused"
        and harmful["gain"] < 0
        and nothing["state"] == "refused"
        and "changes nothing" in nothing["reason"]
        and nothing["sampled"] == 0
        and replayed == {"refused": HARMFUL}
    )
    keep = ("round", "state", "reason", "new_traces", "rows", "gain", "gain_low", "gain_high", "detectable", "look")
    result = {
        "rounds": [{name: each[name] for name in keep} for each in rounds],
        "first_attempts_in_collection": shown["first_attempts"],
        "registry": registry,
        "shuffled": harmful,
        "zero_step": nothing,
        "replayed_harmful": replayed,
    }
    return result, holds


def kept(path, make):
    """Return what a finished part left, or make it; a proof that was broken off goes on with the next part."""
    if not path.is_file():
        path.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "guardlearn", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"guardlearn {arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def on_adapters(work, folder):
    """Look at the adapters of the three rounds through the commands; the rollback is done on a copy."""
    db = folder / "runs.db"
    listed = json.loads(command("adapters", db, "list", "--json"))
    names = [f"demo/{number}" for number in (1, 2, 3)]
    why = {name: json.loads(command("why", name, "--db", db, "--json")) for name in names}
    with ArtifactDAG.load(db) as dag:
        item = next(iter(dag.extract(limit=1, order_by="seq")))
    impact = json.loads(command("impact", db, "--guard", f"{item.guard}@{item.guard_version}", "--json"))
    rebuilt = {}
    for number, name in enumerate(names, 1):
        to = work / f"rebuilt-{number}"
        shutil.rmtree(to, ignore_errors=True)
        command("adapters", db, "rebuild", name, "-o", to, "--json")
        job = folder / "rounds" / f"{number:03}" / "job"
        files = ("job.toml", "manifest.json", "train.jsonl", "validation.jsonl")
        rebuilt[name] = all((to / each).read_bytes() == (job / each).read_bytes() for each in files)
    copy = copied(work, db, "rollback")
    back = json.loads(command("adapters", copy, "rollback", "--reason", "proof", "--json"))
    return {
        "listed": len(listed["adapters"] if isinstance(listed, dict) else listed),
        "why": {name: sorted(each)[:40] for name, each in why.items()},
        "impact_of_guard": impact,
        "rebuilt byte for byte": rebuilt,
        "after_rollback": back,
    }


def copied(work, db, name):
    copy = work / f"{name}.db"
    copy.unlink(missing_ok=True)
    command("backup", db, copy)
    return copy


def setting(work, name, select, **training):
    return LoopSettings(
        loop=LoopConfig(
            learner="demo", folder=str(work / name), select=select, min_new_traces=8, r_max=R_MAX,
            temperature=SAMPLING.temperature, max_new_tokens=SAMPLING.max_new_tokens, stop=SAMPLING.stop,
            guard="guardlearn.demo:house_style",
        ),
        training=dataclasses.replace(DEMO_TRAINING, **training),
        promotion=GateConfig(),
    )  # fmt: skip


def bench():
    model = demo_model()
    generator = open_generator("transformers", model, sampling=SAMPLING)
    sides = (Side.TRAIN, Side.VALIDATION, Side.HELD_OUT)
    return Bench(
        model_folder=model,
        guard=house_style,
        specs=[spec for side in sides for spec in specifications(side)],
        open_generator=lambda config, manifest: (generator, None),
        texts=forgetting.default_texts(),
    )


@contextlib.contextmanager
def stage(name):
    print(f"rounds: {name}", flush=True)
    yield lambda done, total, note: None


def shuffled(work, folder):
    """Train on accepted answers that belong to other specifications, as a guard that lies would give them."""
    shutil.rmtree(work / "shuffled", ignore_errors=True)
    copy = copied(work, folder / "runs.db", "shuffled")
    with ArtifactDAG.load(copy) as dag:
        good = [
            item for item in dag.extract(order_by="seq") if item.status.value == "accepted" and item.side is Side.TRAIN
        ]
        texts = [item.artifact for item in good]
        random.Random(0).shuffle(texts)
        dag.append_many(
            RepositoryItem(
                id=f"shuffled/{number}", specification=item.specification, constraints=item.constraints,
                group=item.group, action_pair_id=item.action_pair_id, artifact=text, status="accepted",
                workflow_id="shuffled", guard="liar", guard_version="1",
            )
            for number, (item, text) in enumerate(zip(good, texts, strict=True))
        )  # fmt: skip
        wanted = setting(work, "shuffled", 'workflow("shuffled")')
        result = run_round(dag, wanted, bench(), stage, "proof")
    return msgspec.to_builtins(result)


def zero_step(work, folder):
    """Train with a learning rate that rounds to nothing, with the bare base live."""
    shutil.rmtree(work / "zero", ignore_errors=True)
    copy = copied(work, folder / "runs.db", "zero")
    command("adapters", copy, "rollback", "--to", "base", "--reason", "proof")
    with ArtifactDAG.load(copy) as dag:
        item = next(item for item in dag.extract(order_by="seq") if item.side is Side.TRAIN)
        dag.append_many(
            RepositoryItem(
                id=f"again/{number}", specification=item.specification, constraints=item.constraints,
                group=item.group, action_pair_id=item.action_pair_id, artifact=f"{item.artifact}\n# {number}\n",
                status="accepted", workflow_id="again",
            )
            for number in range(8)
        )  # fmt: skip
        wanted = setting(work, "zero", 'workflow("again")', learning_rate=1e-30, max_steps=1)
        result = run_round(dag, wanted, bench(), stage, "proof")
    return msgspec.to_builtins(result) | {"sampled": len(list((work / "zero").rglob("attempts.jsonl")))}


def replayed_harm(work):
    """Candidates that pass fewer held-out groups than the base, by 1 to 8 of 12; the trainer takes no time."""
    shutil.rmtree(work, ignore_errors=True)
    found = Counter()
    model = demo_model()
    for seed in range(HARMFUL):
        chance = random.Random(seed)
        folder = work / str(seed)
        base = chance.randint(1, 12)
        looping.write_project(folder, model, base=base, adapted=max(0, base - chance.randint(1, 8)))
        trainer = looping.write_trainer(folder)
        target = str(folder / "runs.db")
        looping.found(target)
        looping.collect(target, [f"a{number}" for number in range(6)])
        before = Path.cwd()
        os.chdir(folder)
        try:
            wanted = read_settings(settings.read())
            with ArtifactDAG.load(target) as dag:
                found[str(run_round(dag, wanted, _bench(wanted, str(trainer)), stage, "proof").state)] += 1
        finally:
            os.chdir(before)
    return dict(found)
