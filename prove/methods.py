"""SFT alone against SFT then KTO and SFT then DPO, on one collection of the demo with its real small model: 3 seeds
each, equal wall time of training, measured on the validation side (six families that the demo keeps there and fourteen
of its training families; held-out is not read). First-attempt rates with intervals clustered by group, and the paired
differences to SFT alone. The default method is the one that this supports: SFT, unless another's interval lies above it
and its p-value, adjusted by Holm, is below 0.05."""

import dataclasses
import json
import random
import shutil
import time

from guardlearn import statistics
from guardlearn.attempts import attempt_chains
from guardlearn.collect import collect
from guardlearn.dag import ArtifactDAG
from guardlearn.demo import demo_model, house_style, specifications
from guardlearn.demo.run import DEMO_TRAINING, R_MAX, SAMPLING
from guardlearn.generators import open_generator
from guardlearn.jobs import TrainingConfig, run_job, write_job
from guardlearn.prompts import Renderer
from guardlearn.traces import extract_traces
from guardlearn.types import ArtifactStatus, Side

ARMS = ("sft", "sft+kto", "sft+dpo")
SEEDS = (0, 1, 2)
SAMPLES = 2
FIRST_STEPS = 25
"""Of SFT where a second stage follows; the demo's own."""
SECOND_STEPS = 12
"""Of the slower second stage; the others get what the same time holds."""
SHORT = (2, 6)
"""Steps of the two short trainings that tell what a step and what the rest costs."""
MORE_VALIDATION = 14
"""Training families that this proof moves to its validation side."""
EVEN = 0.2
"""How far an arm's wall time may lie from the median of all."""


def run(work):
    model = demo_model()
    generator = open_generator("transformers", model, sampling=SAMPLING)
    renderer = Renderer(special_tokens=generator.special_tokens)
    with ArtifactDAG.open_or_create(str(work / "runs.db")) as dag:
        by_side = place(dag)
        collect(
            dag, by_side[Side.TRAIN] + by_side[Side.VALIDATION], generator, house_style, renderer=renderer, r_max=R_MAX
        )
        costs = kept(work / "costs.json", lambda: calibrate(dag, model, work / "short"))
        plans = plan(costs)
        arms = {}
        for seed in SEEDS:
            for arm in ARMS:
                arms[arm, seed] = kept(
                    work / f"{arm}-{seed}.json",
                    lambda arm=arm, seed=seed: measure(
                        dag, model, generator, renderer, by_side[Side.VALIDATION], work / f"{arm}-{seed}",
                        settings(arm, seed, plans[arm]),
                    ),
                )  # fmt: skip
    return account(arms, plans, by_side)


def place(dag):
    """Give each family of the demo a side in this proof's own repository; held-out stays where it is."""
    families = sorted({spec.group for spec in specifications(Side.TRAIN)})
    moved = set(random.Random(20).sample(families, MORE_VALIDATION))
    specs = specifications(Side.TRAIN) + specifications(Side.VALIDATION)
    kept_back = {spec.group for spec in specifications(Side.VALIDATION)} | moved
    by_side = {
        Side.TRAIN: [spec for spec in specs if spec.group not in kept_back],
        Side.VALIDATION: [spec for spec in specs if spec.group in kept_back],
        Side.HELD_OUT: specifications(Side.HELD_OUT),
    }
    for side, own in by_side.items():
        for group in sorted({spec.group for spec in own}):
            dag.assign_side(group, side)
    dag.register([spec for own in by_side.values() for spec in own])
    return by_side


def kept(path, make):
    """Return what `path` holds, or make it and keep it there."""
    if not path.is_file():
        staged = path.with_suffix(".new")
        staged.write_text(json.dumps(make()), encoding="utf-8")
        staged.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def settings(arm, seed, steps):
    """Return how an arm trains; `steps` of its one or two stages."""
    return dataclasses.replace(DEMO_TRAINING, method=arm, seed=seed, max_steps=None), steps


def train(dag, model, folder, config, steps):
    """Train a job of so many steps a stage; return its result and the wall seconds of the training process."""
    extraction = extract_traces(dag, "refinement", sides=(Side.TRAIN,), **config.extraction)
    timed = folder.with_name(f"{folder.name}-wall.json")
    if not timed.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # a training that was cut off would not be timed as a whole
    probe = folder.with_name(f"{folder.name}-probe")
    shutil.rmtree(probe, ignore_errors=True)
    write_job(probe, extraction, model, config)
    passes = [-(-len((probe / name).read_text("utf-8").splitlines()) // config.batch_size) for name in files(config)]
    shutil.rmtree(probe)
    names = ("epochs", "second_epochs")
    epochs = {name: count / per_pass for name, count, per_pass in zip(names, steps, passes, strict=False)}
    write_job(folder, extraction, model, dataclasses.replace(config, **epochs))
    started = time.perf_counter()
    trained = run_job(folder, model)
    return trained, kept(timed, lambda: time.perf_counter() - started)


def files(config):
    return ["train.jsonl", "train.second.jsonl"][: len(config.methods)]


def calibrate(dag, model, folder):
    """Return by arm the seconds of a step of its last stage, and those that are there without any step."""
    costs = {}
    for arm in ARMS:
        walls = []
        for count in SHORT:
            config, steps = settings(arm, 0, [count] * len(arm.split("+")))
            walls.append(train(dag, model, folder / f"{arm}-{count}", config, steps)[1])
        slope = max(1e-3, (walls[1] - walls[0]) / (SHORT[1] - SHORT[0]))
        costs[arm] = {"step": slope, "rest": max(0.0, walls[0] - SHORT[0] * slope)}
    shutil.rmtree(folder)
    first = costs["sft"]["step"]
    return {
        arm: {"step": cost["step"] if arm == "sft" else max(1e-3, cost["step"] - first), "rest": cost["rest"]}
        for arm, cost in costs.items()
    }


def plan(costs):
    """Return each arm's steps: the same wall time for all, that of the slower second stage's `SECOND_STEPS`."""
    first = costs["sft"]["step"]
    begun = {arm: costs[arm]["rest"] + FIRST_STEPS * first for arm in ARMS}
    seconds = max(begun[arm] + SECOND_STEPS * costs[arm]["step"] for arm in ARMS if arm != "sft")
    more = {arm: max(1, round((seconds - begun[arm]) / costs[arm]["step"])) for arm in ARMS}
    return {arm: [FIRST_STEPS + more[arm]] if arm == "sft" else [FIRST_STEPS, more[arm]] for arm in ARMS}


def measure(dag, model, generator, renderer, specs, folder, asked):
    """Train an arm, let its adapter answer the validation side; return verdicts by specification and sample."""
    config, steps = asked
    trained, wall = train(dag, model, folder / "job", config, steps)
    generator.use_adapter(str(trained.adapter))
    try:
        attempts = attempt_chains(specs, generator, house_style, renderer=renderer, r_max=1, samples=SAMPLES, seed=7)
    finally:
        generator.use_adapter(None)
    said = {
        f"{each.specification.id}/{each.sample}": None if each.verdict.status is ArtifactStatus.PENDING
        else each.verdict.passed for each in attempts
    }  # fmt: skip
    return {"wall": wall, "steps": trained.result["steps"], "loss": trained.result["loss"], "passed": said}


def account(arms, plans, by_side):
    groups = {spec.id: spec.group for spec in by_side[Side.VALIDATION]}
    walls = sorted(each["wall"] for each in arms.values())
    middle = walls[len(walls) // 2]
    uneven = max(abs(wall - middle) / middle for wall in walls)
    rates, differences = {}, {}
    for arm in ARMS:
        found = statistics.clustered_mean(by_group(groups, [arms[arm, seed]["passed"] for seed in SEEDS]))
        rates[arm] = {
            "rate": found.rate, "low": found.low, "high": found.high,
            "by_seed": [rate(arms[arm, seed]["passed"]) for seed in SEEDS],
            "steps": plans[arm], "wall_seconds": [round(arms[arm, seed]["wall"], 1) for seed in SEEDS],
            "no_verdict": sum(value is None for seed in SEEDS for value in arms[arm, seed]["passed"].values()),
        }  # fmt: skip
    for arm in ARMS[1:]:
        pairs = [minus(arms[arm, seed]["passed"], arms["sft", seed]["passed"]) for seed in SEEDS]
        differences[arm] = dataclasses.asdict(statistics.clustered_difference(by_group(groups, pairs)))
    adjusted = statistics.holm({arm: each["p_value"] for arm, each in differences.items()})
    better = [arm for arm, each in differences.items() if each["low"] > 0 and adjusted[arm] < 0.05]
    result = {
        "specs": len(groups), "groups": len(set(groups.values())), "samples": SAMPLES, "seeds": list(SEEDS),
        "first_attempts": rates, "minus_sft": differences, "p_adjusted": adjusted,
        "largest_deviation_of_wall_time": round(uneven, 3),
        "says": [sentence(arm, differences[arm], adjusted[arm]) for arm in ARMS[1:]],
        "default": TrainingConfig().method,
    }  # fmt: skip
    return result, uneven <= EVEN and TrainingConfig().method in (better or ["sft"])


def minus(one, other):
    """Return differences of verdicts; None where either is none."""
    return {
        name: None if None in (value, other[name]) else int(value) - int(other[name]) for name, value in one.items()
    }


def by_group(groups, runs):
    found = {}
    for values in runs:
        for name, value in values.items():
            if value is not None:
                found.setdefault(groups[name.rsplit("/", 1)[0]], []).append(float(value))
    return found


def rate(passed):
    judged = [value for value in passed.values() if value is not None]
    return sum(judged) / len(judged) if judged else None


def sentence(arm, found, p_value):
    points = [round(100 * found[name], 1) for name in ("rate", "low", "high")]
    told = "{} minus sft: {} points of first attempts, 95 % interval {} to {}".format(arm, *points)
    if found["low"] <= 0 <= found["high"]:
        least = found["minimum_detectable"]
        seen = "no difference at all" if least is None else f"differences of {100 * least:.1f} points and more"
        return f"{told}: not told apart; these groups could have shown {seen}"
    if p_value >= 0.05:
        return f"{told}: not told apart once p is adjusted for two comparisons ({p_value:.3f})"
    return f"{told}: {'better' if found['low'] > 0 else 'worse'}"
