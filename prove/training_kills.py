"""kill -9 of trainings, ten times each of SFT, SFT then DPO, and SFT then KTO on a tiny model and four times each on
the demo's real one: at seeded steps, while a weights checkpoint is saved, while a stage ends, between the stages, while
the adapter is put together and while it is published. The same command then goes on to the adapter and metrics of a
training that nobody killed; whether to the very bytes or within 1e-6 is written down."""

import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from guardlearn.demo import demo_model
from staged import result, staged_job
from training_kills import MOMENTS, finish, kill_often, same_end
from warm import TRAINING, Nursery

METHODS = ("sft", "sft+dpo", "sft+kto")
TINY = {"max_steps": 10, "learning_rate": 2e-3, "second_learning_rate": 1e-3, "batch_size": 4, "save_steps": 1}
REAL = {"max_steps": 5, "learning_rate": 2e-4, "batch_size": 4, "save_steps": 2}
WITHIN = 1e-6


def run(work):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = work / "done.jsonl"  # a broken run goes on where it was
    with tempfile.TemporaryDirectory() as folder, closing(Nursery(Path(folder), TRAINING)) as nursery:
        for kind, model, settings in (("tiny", tiny_model(work / "tiny"), TINY), ("real", demo_model(), REAL)):
            for method in METHODS:
                name = f"{method}, {kind} model"
                if name not in told(done):
                    found = kills(nursery.python, work / kind / method, model, method, settings)
                    with done.open("a") as log:
                        log.write(json.dumps({name: found}) + "\n")
    seen = told(done)
    equal = all(each["same bytes"] or each["farthest apart"] <= WITHIN for each in seen.values())
    least = {name: 10 if "tiny" in name else 4 for name in seen}
    return seen, equal and len(seen) == 6 and all(each["killed"] >= least[name] for name, each in seen.items())


def kills(python, folder, model, method, settings):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chance = random.Random(f"{method} {settings['max_steps']}")
    whole = staged_job(folder / "whole", model, method, **settings)
    seen, ends, round_ = Counter(), [], 0
    wanted = 10 if settings is TINY else 4
    expected = shutil.copytree(whole, folder / "expected")
    finish(python, expected, model)
    while seen["killed"] < wanted:
        job = shutil.copytree(whole, folder / f"killed-{round_}")
        seen += kill_often(python, job, model, result(expected)["steps"], chance, moments(method, round_, wanted))
        ends.append(same_end(job, expected))
        round_ += 1
        if settings is TINY and round_ > 6:
            break
    same = all(each for each, _ in ends)
    return dict(sorted(seen.items())) | {"same bytes": same, "farthest apart": max(far for _, far in ends)}


def moments(method, round_, wanted):
    """Return the moments of one training's kills: steps and, in every other training, what is no step."""
    if wanted == 4:
        return [None, "while a checkpoint is saved", None, "while the adapter is put together"][: 4 - round_]
    if round_ % 2 == 0:
        return [None] * 5
    stages = [name for name in MOMENTS if "stage" in name or "second" in name]
    return [name for name in MOMENTS if name not in stages] if method == "sft" else list(MOMENTS)


def tiny_model(folder):
    """Return a random two-layer Llama with the real model's tokenizer; made once."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if not folder.is_dir():
        staged = folder.with_name("tiny.new")
        tokenizer = AutoTokenizer.from_pretrained(demo_model())
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        staged.rename(folder)
    return folder


def told(done):
    lines = done.read_text().splitlines() if done.is_file() else []
    return {name: each for line in lines for name, each in json.loads(line).items()}
