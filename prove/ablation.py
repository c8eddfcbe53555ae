"""Four ablations of the demo with its real small model, two training seeds each: views of a trace, the share of traces,
two policies, and two ways of asking a retry (with up to four attempts). Every training of an ablation gets the same
wall time; measured is on the validation side (six families that the demo keeps there and fourteen of its training
families), paired by specification, with intervals by family and p-values adjusted for the number of arms. What was
told apart is said, and what was not is said with the difference that could have been shown. It holds where no training
lies more than 20 % from the median wall time of its ablation, no reading of held-out is on record, and the same command
run again trains nothing and says the same."""

import dataclasses
import json
import random

import msgspec

from guardlearn.ablation import AblationConfig, AblationSettings, ablate
from guardlearn.cli import console
from guardlearn.collect import collect
from guardlearn.dag import ArtifactDAG
from guardlearn.demo import demo_model, house_style, specifications
from guardlearn.demo.run import DEMO_TRAINING, R_MAX, SAMPLING
from guardlearn.generators import open_generator
from guardlearn.loop.config import LoopConfig
from guardlearn.loop.rounds import Bench
from guardlearn.prompts import Renderer
from guardlearn.report.ablation import UNEVEN
from guardlearn.report.ablation_files import write_ablation
from guardlearn.types import Side

MORE_VALIDATION = 14
"""Training families that these proofs move to their validation side."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What an ablation of the demo compares."""

    names: tuple[str, ...] = ()
    """Arms; none: the axis's usual ones."""
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 20
    """Of the reference; the others get what the same time holds."""
    first_stage: float = AblationConfig().first_stage
    views: tuple[str, ...] = DEMO_TRAINING.views


AXES = {
    "views": Asked(names=("first_attempt", "repair", "both")),
    "budget": Asked(names=("25", "50", "100")),
    "policy": Asked(names=("refinement", "high_value")),
    "retry_prompt": Asked(views=("first_attempt", "repair")),
}


def run(work):
    result = compare(work, AXES)
    even = all(each is None or each <= UNEVEN for each in result["largest_deviation_of_wall_time"].values())
    return result, even and result["the_same_when_run_again"] and result["readings_of_held_out"] == 0


def compare(work, axes):
    """Run ablations of the demo, each on its own axis, or go on with them; return what they came to."""
    model = demo_model()
    with ArtifactDAG.open_or_create(str(work / "runs.db")) as dag:
        by_side = place(dag)
        fill(dag, model, by_side)
        found = {over: compared(dag, model, by_side, over, asked, work / over) for over, asked in axes.items()}
        again = {over: compared(dag, None, by_side, over, asked, work / over) for over, asked in axes.items()}
        readings = len(dag.readings())
    return {
        "ablations": found,
        "largest_deviation_of_wall_time": {over: each["uneven"] for over, each in found.items()},
        "the_same_when_run_again": again == found,
        "readings_of_held_out": readings,
    }


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


def fill(dag, model, by_side):
    """Collect on the training families, as the demo does; a collection that was broken off goes on."""
    generator = open_generator("transformers", model, sampling=SAMPLING)
    renderer = Renderer(special_tokens=generator.special_tokens)
    with console.progress("collect") as progress:
        collect(dag, by_side[Side.TRAIN], generator, house_style, renderer=renderer, r_max=R_MAX, on_progress=progress)


def compared(dag, model, by_side, over, asked, folder):
    """Run the ablation over an axis, or go on with it; with no model, find it done."""
    training = dataclasses.replace(DEMO_TRAINING, max_steps=asked.steps, views=asked.views)

    def opened(config, manifest):
        if model is None:
            raise RuntimeError("a finished ablation asks nothing of a model")
        return open_generator("transformers", model, sampling=SAMPLING), None

    bench = Bench(
        model_folder=demo_model() if model is None else model,
        guard=house_style,
        specs=[spec for own in by_side.values() for spec in own],
        open_generator=opened,
    )
    sampled = {name: getattr(SAMPLING, name) for name in ("temperature", "max_new_tokens", "stop")}
    settings = AblationSettings(
        ablation=AblationConfig(seeds=asked.seeds, first_stage=asked.first_stage),
        loop=LoopConfig(model="demo", **sampled),
        training=training,
    )
    ablation = ablate(dag, settings, bench, over, asked.names, folder=folder, stage=console.progress)
    write_ablation(folder, ablation)
    return json.loads(json.dumps(msgspec.to_builtins(ablation)))
