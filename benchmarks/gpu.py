"""What training and generation come to on a CUDA device.

    python benchmarks/gpu.py WORK [STAGE ...]

Each stage runs in a process of its own, leaves WORK/STAGE.json, and is not run again; what is there goes into
docs/gpu.json, and docs/gpu.md shows it. device: versions and ceiling. demo: the whole demo, by unsloth in 16 bit.
trained: its traces by the trl backend, by unsloth in 4 bit, and with the rejected attempts (sft+kto, sft+dpo).
evaluated: their first attempts. speeds: tokens a second and memory on a random model of 1.7 billion parameters. memory:
a batch that the device cannot hold. generation: the local generator beside the library's own `generate`.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from guardlearn.dag import ArtifactDAG
from guardlearn.demo import demo_model, specifications
from guardlearn.demo.run import DEMO_TRAINING, SAMPLING
from guardlearn.jobs import TrainingConfig, write_job
from guardlearn.traces import Checkpoint, Extraction, extract_traces
from guardlearn.types import ArtifactStatus, GenerationRequest, RepositoryItem, Side, TrainingTrace

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "gpu.json"
LIBRARIES = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo", "bitsandbytes", "triton")
WIDTH = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
"""The shape of SmolLM2-1.7B; its weights are random here, which no speed depends on."""
ROWS, BATCH, STEPS = 400, 16, 20
SPEED_ARMS = {
    "trl 16 bit": ("trl", {}),
    "unsloth 16 bit": ("unsloth", {}),
    "unsloth 4 bit": ("unsloth", {"load_in_4bit": True}),
    "trl 16 bit, gradient checkpointing": ("trl", {"gradient_checkpointing": True}),
    "trl 4 bit": ("trl", {"load_in_4bit": True}),
}
KEPT = (
    "backend", "loss", "validation_loss", "precision", "optimizer", "load_in_4bit", "steps", "seconds",
    "tokens_per_second", "completion_tokens_per_second", "share_of_ceiling", "micro_batch_size", "notes",
)  # fmt: skip


def device(work):
    import torch

    from guardlearn.training.ceiling import matmul_ceiling

    size = 8192
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(15):
        torch.cuda.synchronize()
        started = time.perf_counter()
        one @ other
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    asked = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return {
        "name": torch.cuda.get_device_name(),
        "driver, memory": driver.strip(),
        "cuda": torch.version.cuda,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "matmul_tflops_8192": round(2 * size**3 / statistics.median(times[5:]) / 1e12, 1),
        "ceiling_tflops": round(matmul_ceiling("bf16", torch.device("cuda")) / 1e12, 1),
    }


def demo(work):
    """The whole demo; `auto` takes unsloth there."""
    out, seconds = command("demo", "--dir", work / "demo", "--json")
    shown = json.loads(out)
    training = {name: shown["training"].get(name) for name in KEPT}
    return {"wall": seconds, "seconds": shown["seconds"], "training": training, **rates(shown["evidence"])}


def trained(work):
    """The demo's traces by trl, by unsloth in 4 bit, and with the rejected attempts; side by side, nothing is timed."""
    with ArtifactDAG.load(str(work / "demo" / "runs.db")) as dag:
        found = extract_traces(dag, "refinement")
    write_job(fresh(work / "trl-16"), found, demo_model(), DEMO_TRAINING)
    write_job(fresh(work / "unsloth-4"), found, demo_model(), dataclasses.replace(DEMO_TRAINING, load_in_4bit=True))
    first = json.loads((work / "demo" / "job" / "result.json").read_text())
    shown = {"unsloth 16 bit": {name: first.get(name) for name in KEPT}}
    side_by_side(
        shown,
        {
            "trl 16 bit": lambda: train(work / "trl-16", demo_model(), "trl"),
            "unsloth 4 bit": lambda: train(work / "unsloth-4", demo_model(), "unsloth"),
            "sft+kto": lambda: learn_rejections(work, "sft+kto"),
            "sft+dpo": lambda: learn_rejections(work, "sft+dpo"),
        },
    )
    return shown


def learn_rejections(work, method):
    _, seconds = command(
        "train", work / "demo" / "runs.db", "-o", work / method, "--model", "demo", "--policy", "refinement", "--view",
        "first_attempt", "--max-steps", 25, "--batch-size", 4, "--learning-rate", 5e-4, "--method", method, "--json",
    )  # fmt: skip
    result = json.loads((work / method / "job" / "result.json").read_text())
    return {name: result[name] for name in KEPT if name in result} | {"seconds": seconds}


def evaluated(work):
    import msgspec

    specs = work / "held_out.jsonl"
    specs.write_bytes(b"".join(msgspec.json.encode(spec) + b"\n" for spec in specifications("held_out")))

    def measured(folder, name):
        out, seconds = command(
            "evaluate", specs, "--guard", "guardlearn.demo:house_style", "-o", work / f"measured-{name}", "--model",
            "demo", "--adapter", folder, "--rmax", 4, "--temperature", SAMPLING.temperature, "--max-new-tokens",
            SAMPLING.max_new_tokens, "--stop", SAMPLING.stop[0], "--json",
        )  # fmt: skip
        return rates(json.loads(out)) | {"seconds": seconds}

    places = {
        "unsloth 16 bit": work / "demo" / "adapter",
        "trl 16 bit": work / "trl-16" / "adapter",
        "unsloth 4 bit": work / "unsloth-4" / "adapter",
        "sft+kto": work / "sft+kto" / "adapter",
        "sft+dpo": work / "sft+dpo" / "adapter",
    }
    shown = {}
    tasks = {arm: lambda arm=arm, to=to: measured(to, arm.replace(" ", "-")) for arm, to in places.items()}
    side_by_side(shown, tasks)
    return shown


def speeds(work):
    found, model = long_rows(), wide_model(work / "wide")
    shown = {}
    for arm, (backend, more) in SPEED_ARMS.items():
        folder = fresh(work / f"speed-{arm.replace(' ', '-').replace(',', '')}")
        config = TrainingConfig(
            views=("first_attempt",), batch_size=BATCH, max_steps=STEPS, max_length=2048, save_steps=1000, **more
        )
        write_job(folder, found, model, config)
        shown[arm] = train(folder, model, backend)
        print(json.dumps({arm: shown[arm]}), flush=True)
    return shown


def memory(work):
    """A batch that the device cannot hold."""
    folder = fresh(work / "out-of-memory")
    config = TrainingConfig(views=("first_attempt",), batch_size=380, max_steps=1, max_length=2048, save_steps=1000)
    write_job(folder, long_rows(), wide_model(work / "wide"), config)
    return train(folder, work / "wide", "trl")


def generation(work):
    import torch

    from guardlearn.generators.transformers import TransformersGenerator
    from guardlearn.prompts import Renderer

    chats = [Renderer().messages(spec.specification, spec.constraints, ()) for spec in specifications("held_out")]
    asked = [
        GenerationRequest(messages=tuple(chat), key=f"{number}/{again}")
        for again in range(10)
        for number, chat in enumerate(chats)
    ]
    shown = {}
    for rows in (None, 128, 512, 1024):
        generator = TransformersGenerator(demo_model(), sampling=SAMPLING, batch_size=rows)
        generator.generate(asked[:8])
        started = time.perf_counter()
        answers = generator.generate(asked)
        shown[f"local generator, {rows or 'default'} rows"] = speed(
            sum(answer.completion_tokens for answer in answers), time.perf_counter() - started
        )
    tokenizer = generator.tokenizer
    del generator, answers
    torch.cuda.empty_cache()
    return shown | by_the_library(chats, tokenizer)


def by_the_library(chats, tokenizer):
    """`generate` as the guide calls it, one prompt at a time, and in one padded batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from guardlearn.prompts import encode_prompt

    model = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.bfloat16).to("cuda")
    ids = [encode_prompt(tokenizer, chat) for chat in chats]
    shown = {}
    for batch, count in ((1, 12), (len(ids), len(ids))):
        tokens, started = 0, 0.0
        for warm in (True, False):
            tokens, started = 0, time.perf_counter()
            for first in range(0, 1 if warm else count, batch):
                part = ids[first : first + batch]
                longest = max(map(len, part))
                given = torch.tensor([[2] * (longest - len(row)) + row for row in part], device="cuda")
                mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in part], device="cuda")
                answers = model.generate(
                    input_ids=given, attention_mask=mask, do_sample=True, temperature=SAMPLING.temperature, top_k=50,
                    max_new_tokens=SAMPLING.max_new_tokens, eos_token_id=2, pad_token_id=2,
                )[:, longest:]  # fmt: skip
                tokens += int((answers != 2).sum()) + len(part)
        shown[f"library, {batch} at once"] = speed(tokens, time.perf_counter() - started)
    return shown


def speed(tokens, seconds):
    return {"tokens": tokens, "seconds": round(seconds, 2), "tokens_per_second": round(tokens / seconds)}


def train(folder, model, backend):
    """Train a job in a process of its own; return its figures, the device's memory at its most among them."""
    watched = Watched()
    asked = [sys.executable, "-m", "guardlearn.training", str(folder), "--model", str(model), "--backend", backend]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    steps = [event["tokens_per_second"] for event in said if "tokens_per_second" in event][5:]  # the first compile
    shown = {"returned": done.returncode, "said": done.stderr[-300:], "device_memory_mib": watched.stop()}
    if (folder / "result.json").is_file():
        result = json.loads((folder / "result.json").read_text())
        shown |= {name: result[name] for name in KEPT if name in result}
    if steps:
        shown["tokens_per_second_of_a_step"] = round(statistics.median(steps))
    return shown


class Watched(threading.Thread):
    """The most memory of the device that was in use at once, in MiB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.ended = 0, threading.Event()
        self.start()

    def run(self):
        asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self.ended.wait(0.2):
            self.most = max(self.most, int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout))

    def stop(self):
        self.ended.set()
        self.join()
        return self.most


def long_rows():
    """Rows of 600-1100 tokens of English-like words, two thirds of them completion."""
    from transformers import AutoTokenizer

    tokenizer, chance = AutoTokenizer.from_pretrained(demo_model()), random.Random(0)
    words = [word.strip() for word in map(tokenizer.decode, range(1000, 20000)) if word.strip().isalpha()]

    def text(count):
        return " ".join(chance.choice(words) for _ in range(count))

    traces = [
        TrainingTrace(
            item=RepositoryItem(
                id=f"item-{number:04}", artifact=text(chance.randint(230, 390)),
                specification=text(chance.randint(110, 170)), status=ArtifactStatus.ACCEPTED,
            ),
            history=(), group=f"family-{number}", side=Side.VALIDATION if number % 40 == 0 else Side.TRAIN,
        )
        for number in range(ROWS)
    ]  # fmt: skip
    return Extraction(
        traces=traces, dropped={}, selected=ROWS, predicate="made up", checkpoint=Checkpoint(seq=0, item_id=""),
        sides_digest="",
    )  # fmt: skip


def wide_model(folder):
    """Write a random Llama with the demo model's tokenizer, once."""
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=8192, tie_word_embeddings=True,
        num_key_value_heads=WIDTH["num_attention_heads"], bos_token_id=1, eos_token_id=2, pad_token_id=2, **WIDTH,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def side_by_side(shown, tasks):
    def one(name):
        shown[name] = tasks[name]()
        print(json.dumps({name: shown[name]}), flush=True)

    threads = [threading.Thread(target=one, args=(name,)) for name in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def command(*arguments):
    started = time.perf_counter()
    asked = [sys.executable, "-m", "guardlearn", *map(str, arguments)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"guardlearn {arguments[0]} ended with {done.returncode}: {done.stderr[-600:]}")
    return done.stdout, round(time.perf_counter() - started, 1)


def rates(evidence):
    difference = {name: evidence["difference"][name] for name in ("rate", "low", "high")}
    return {
        "base": evidence["base"]["first_attempt"]["rate"],
        "candidate": evidence["candidate"]["first_attempt"]["rate"],
        "difference": difference,
        "specs": evidence["specs"],
    }


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return folder


STAGES = {each.__name__: each for each in (device, demo, trained, evaluated, speeds, memory, generation)}


def main():
    work, stages = Path(sys.argv[1]), sys.argv[2:] or list(STAGES)
    work.mkdir(parents=True, exist_ok=True)
    if len(stages) == 1:
        figures = STAGES[stages[0]](work)
        (work / f"{stages[0]}.json").write_text(json.dumps(figures))
        print(json.dumps({stages[0]: figures}), flush=True)
    else:
        for stage in stages:
            if not (work / f"{stage}.json").is_file():
                subprocess.run([sys.executable, __file__, str(work), stage], check=False)
    found = {
        stage: json.loads((work / f"{stage}.json").read_text())
        for stage in STAGES
        if (work / f"{stage}.json").is_file()
    }
    RECORD.write_text(json.dumps({"date": datetime.date.today().isoformat(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
