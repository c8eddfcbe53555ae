"""Tokens per second of the batched generator on the demo's model.

    python benchmarks/generation.py [--rows 96] [--runs 3] [--profile]

The prompts are the demo's kind: one system message, short and similar user texts, about 60-130 new tokens each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from guardlearn.demo.model import demo_model
from guardlearn.generators import SamplingConfig
from guardlearn.generators.transformers import TransformersGenerator
from guardlearn.types import Generation, GenerationRequest

SYSTEM = "You are a Python programmer. Reply with code only. Use type hints and a docstring."
FEEDBACK = 'House style: the body must start with a one-line docstring such as """Return the result."""'
WORDS = ("add", "scale", "shift", "double", "mix", "fold", "blend", "score", "rank", "weigh")


def requests(rows: int, attempt: int = 1) -> list[GenerationRequest]:
    made = []
    for n in range(rows):
        name = f"{WORDS[n % len(WORDS)]}_{n}"
        text = (
            f"Write the function `def {name}(x: int, y: int) -> int:`. "
            f"It returns x times {n % 7 + 2} plus y: `return x * {n % 7 + 2} + y`"
        )
        if attempt > 1:
            text += f"\n\n{FEEDBACK}"
        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text})
        made.append(GenerationRequest(messages=messages, key=f"0/{name}/0/{attempt}"))
    return made


def measure(generator: TransformersGenerator, asked: list[GenerationRequest]) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    answers = generator.generate(asked)
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "new_tokens": sum(answer.completion_tokens for answer in answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "tokens_per_second": round(sum(answer.completion_tokens for answer in answers) / seconds, 1),
        "longest": max(answer.completion_tokens for answer in answers),
    }


def differing(first: list[Generation], second: list[Generation]) -> int:
    return sum(a.text != b.text for a, b in zip(first, second, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--batches", type=int, nargs="*", default=[], help="compare answers at these batch sizes")
    arguments = parser.parse_args()
    sampling = SamplingConfig(temperature=0.5, max_new_tokens=128, stop=("\n```\n", "\n```"))
    generator = TransformersGenerator(demo_model(), sampling=sampling)
    asked = requests(arguments.rows, arguments.attempt)
    generator.generate(asked[:2])  # first calls pay for lazy initialisation
    if arguments.profile:
        with torch.profiler.profile() as profile:
            print(json.dumps(measure(generator, asked)))
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
        return
    runs = [measure(generator, asked) for _ in range(arguments.runs)]
    for run in runs:
        print(json.dumps(run))
    print(f"median {statistics.median(run['tokens_per_second'] for run in runs)} tokens/s")
    if arguments.batches:
        whole = generator.generate(asked)
        for size in arguments.batches:
            generator._batch_size = size
            print(f"batch {size}: {differing(whole, generator.generate(asked))} of {len(asked)} answers differ")


if __name__ == "__main__":
    main()
