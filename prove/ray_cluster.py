"""A Ray cluster of three nodes on one machine, one of which is removed in the middle of a collection: with the replay
generator it ends with the very items of the local engine, each stored once; a guard that kills its worker every time
has no verdict and costs no other attempt anything; with the demo's model the first-attempt rate lies in the interval
that the local engine measured."""

import contextlib
import json
import os
import secrets
import signal
import tempfile
import time
import zlib

from guardlearn.attempts import run_chains
from guardlearn.collect import collect
from guardlearn.dag import ArtifactDAG
from guardlearn.demo.guard import house_style
from guardlearn.demo.model import demo_model
from guardlearn.demo.run import SAMPLING
from guardlearn.demo.tasks import specifications
from guardlearn.engines.ray import RayEngine
from guardlearn.evaluation import evaluate
from guardlearn.generators import ReplayGenerator, open_generator
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus, Side, Specification, Verdict

CHAINS = 150
SPECS = [
    Specification(id=f"s{number}", specification=f"Task {number}.", group=f"g{number}") for number in range(CHAINS)
]
MODEL_SPECS = 24
STORE_BYTES = 100 * 2**20


def answer(request):
    """Return what follows from the key alone: every third answer is right."""
    number = zlib.crc32(request.key.encode())
    return f"right {number}" if number % 3 == 0 else f"wrong {number}"


def replay():
    return ReplayGenerator(answer)


class SlowGuard:
    """Takes a while; an answer to s-deadly kills whoever judges it."""

    name, version, constraints = "slow", "1", ""

    def __call__(self, artifact, context):
        if context.specification.id == "s-deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        if artifact.startswith("right"):
            return Verdict(status=ArtifactStatus.ACCEPTED)
        return Verdict(status=ArtifactStatus.REJECTED, feedback=f"not {artifact}", cause="wrong")


class DocumentedGuard:
    """Accepts answers with a docstring: the demo's base model writes one about half the time."""

    name, version, constraints = "documented", "1", house_style.constraints

    def __call__(self, artifact, context):
        if '"""' in artifact:
            return Verdict(status=ArtifactStatus.ACCEPTED)
        return Verdict(status=ArtifactStatus.REJECTED, feedback="Add a docstring.", cause="docstring")


def run(work):
    with cluster() as nodes:
        seen = removed(work, nodes)
    with cluster() as nodes:
        seen["deadly guard"] = deadly()
        seen["model"] = model(work)
    replayed, measured = seen["replay"], seen["model"]
    holds = (
        replayed["same items"]
        and replayed["nodes after"] == 2
        and replayed["attempts when a node went"] < replayed["attempts"]
        and seen["deadly guard"] == {"chains": 5, "no verdict": 1, "finished": 4}
        and 0 < measured["here"] < 1
        and measured["low"] <= measured["on the cluster"] <= measured["high"]
    )
    return seen, holds


@contextlib.contextmanager
def cluster():
    """Start three nodes of one processor each; this process is on the first."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": folder})
        try:
            for _ in range(2):
                nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
            ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


def content(dag):
    """Return all that the engine may not change."""
    assert dag.verify().problems == []
    timed = ("generation_seconds", "latency_seconds", "guard_seconds")
    return {
        item.id: (
            item.parent_id,
            item.artifact,
            item.status,
            item.feedback,
            item.facts.attempt,
            {name: value for name, value in item.metadata.items() if name not in timed},
        )
        for item in dag.extract()
    }


def removed(work, nodes):
    """Collect on the cluster, take a node away in the middle, compare with the local engine."""
    import ray

    guard = SlowGuard()
    for name in ("here.db", "there.db"):
        for path in work.glob(f"{name}*"):
            path.unlink()
    with ArtifactDAG.create(work / "here.db") as here:
        collect(here, SPECS, replay(), guard, renderer=Renderer())
        expected = content(here)
    gone, before = [], len([node for node in ray.nodes() if node["Alive"]])

    def watch(done, total, note):
        if not gone and done > total / 3:
            gone.append(there.count())
            nodes.remove_node(nodes.list_all_nodes()[-1], allow_graceful=False)

    with ArtifactDAG.create(work / "there.db") as there, RayEngine(replay, guard) as engine:
        summary = collect(there, SPECS, engine.generator, guard, renderer=Renderer(), on_progress=watch, engine=engine)
        found = content(there)
    deadline = time.monotonic() + 60
    while len([node for node in ray.nodes() if node["Alive"]]) > 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    return {
        "replay": {
            "nodes": before,
            "nodes after": len([node for node in ray.nodes() if node["Alive"]]),
            "attempts": len(expected),
            "attempts when a node went": gone[0] if gone else None,
            "stored by the driver": summary.new_attempts,
            "same items": found == expected and summary.new_attempts == len(expected),
        }
    }


def deadly():
    """Run five chains, one of which kills each worker that judges it."""
    guard = SlowGuard()
    specs = [*SPECS[:4], Specification(id="s-deadly", specification="Kill.")]
    with RayEngine(replay, guard) as engine:
        outcome = run_chains(specs, engine.generator, guard, renderer=Renderer(), engine=engine)
    last = {attempt.chain[0]: attempt for attempt in outcome.attempts}
    silent = [name for name, each in last.items() if each.verdict.status is ArtifactStatus.PENDING]
    return {"chains": len(last), "no verdict": len(silent), "finished": len(last) - len(silent)}


def model(work):
    """Measure the demo's model with both engines on the same specifications."""
    folder = demo_model(lambda done, total, note: None)
    specs = specifications(Side.TRAIN)[:MODEL_SPECS]

    def opened():
        return open_generator("transformers", folder, sampling=SAMPLING)

    guard = DocumentedGuard()

    def measured(generator, name, engine=None):
        renderer = Renderer(special_tokens=generator.special_tokens)
        return evaluate(
            specs, generator, guard, adapter=None, renderer=renderer, folder=work / name, r_max=1, engine=engine
        )

    with RayEngine(opened, guard, actor_cpus=1.0) as engine:
        there = measured(engine.generator, "there", engine).base
    here = measured(opened(), "here").base
    return {
        "specifications": len(specs),
        "here": here.first_attempt.rate,
        "low": here.first_attempt.low,
        "high": here.first_attempt.high,
        "on the cluster": there.first_attempt.rate,
        "equal answers": len(answers(work / "here") & answers(work / "there")),
    }


def answers(folder):
    """Return the answers an evaluation noted."""
    lines = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()[1:]]
    return {(line["spec"], line["attempt"], line["generation"]["text"]) for line in lines}
