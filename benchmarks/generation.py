"""Generating: ours, the guide's one-by-one `generate`, and the library's in batches, for the same prompts.

    python benchmarks/generation.py [--json FILE]
    python benchmarks/generation.py --profile          # where ours spends its time
    python benchmarks/generation.py --batches 1 16     # do answers depend on the batch size?

First attempts of the demo's model on the demo's held-out specifications. All sides have the same weights in the same
precision, temperature and top-k, and may write 128 tokens; they take turns. One by one a prompt takes as long whatever
the number of prompts, so that side gets a few in each turn; ours gets all of them, as an evaluation does. Answers are
then judged by the demo's guard with its style rule off: the bare base passes too rarely with it to compare anything.
Greedy answers in 32 bit must be the library's, token for token. About 12 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from figures_models import generation_summary
from machine import keep, measured, note

from guardlearn.chains import constraints_of
from guardlearn.demo.guard import HouseStyle, house_style
from guardlearn.demo.model import demo_model
from guardlearn.demo.run import SAMPLING
from guardlearn.demo.tasks import specifications
from guardlearn.generators import SamplingConfig
from guardlearn.generators.stops import cut_after_stop
from guardlearn.generators.transformers import TransformersGenerator
from guardlearn.prompts import Renderer, encode_prompt
from guardlearn.statistics import clustered_difference
from guardlearn.types import GenerationRequest, GuardContext, Side, Specification

ONE_BY_ONE = 4
"""Prompts a turn for the guide's way."""
BATCH = 32
"""Prompts a batch, and a turn, for the library's."""
GREEDY = 6
GREEDY_TOKENS = 64

Record = dict[str, Any]
Answers = list[tuple[Specification, str]]


class Bench:
    """The three sides on one model."""

    def __init__(self, path: Path, prompts: int | None = None) -> None:
        from transformers import AutoModelForCausalLM

        self.path = path
        self.generator = TransformersGenerator(path, sampling=SAMPLING)
        dtype = self.generator._network.dtype
        device = self.generator._network.device
        self.network = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
        self.renderer = Renderer(special_tokens=self.generator.special_tokens)
        self.specs = specifications(Side.HELD_OUT)[:prompts]
        torch.manual_seed(SAMPLING.seed)

    def requests(self, specs: Sequence[Specification], sample: int = 0) -> list[GenerationRequest]:
        return [GenerationRequest(messages=self.messages(spec), key=f"{sample}/{spec.id}/0/1") for spec in specs]

    def messages(self, spec: Specification) -> Any:
        return self.renderer.messages(spec.specification, constraints_of(spec, house_style), (), about=spec)

    def ours(self, specs: Sequence[Specification], turn: int) -> tuple[int, Answers]:
        made = self.generator.generate(self.requests(specs, turn))
        answers = [(spec, each.text) for spec, each in zip(specs, made, strict=True)]
        return sum(each.completion_tokens for each in made), answers

    def library(self, specs: Sequence[Specification], turn: int = 0) -> tuple[int, Answers]:
        """Generate for all prompts at once, padded on the left."""
        tokenizer = self.generator.tokenizer
        prompts = [encode_prompt(tokenizer, self.messages(spec)) for spec in specs]
        longest = max(map(len, prompts))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.network.device
        with torch.no_grad():
            outputs = self.network.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=SAMPLING.max_new_tokens,
                temperature=SAMPLING.temperature,
                top_k=SAMPLING.top_k,
                do_sample=True,
                pad_token_id=tokenizer.eos_token_id,
            )[:, longest:]
        drawn = [_until_end(row, tokenizer.eos_token_id) for row in outputs.tolist()]
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in drawn]
        return sum(map(len, drawn)), list(zip(specs, texts, strict=True))

    def guide(self, specs: Sequence[Specification], turn: int = 0) -> tuple[int, Answers]:
        """Generate as section 8 does: one prompt after another."""
        one_by_one = [self.library([spec]) for spec in specs]
        return sum(tokens for tokens, _ in one_by_one), [answer for _, answers in one_by_one for answer in answers]


def _until_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def compare(bench: Bench) -> Record:
    """Let the sides take turns."""
    specs = bench.specs
    starts = range(0, len(specs), BATCH)
    few = iter(specs[:: max(1, len(specs) // (ONE_BY_ONE * len(starts)))])  # spread over all families
    sides: Record = {name: {"turns": [], "new_tokens": 0, "prompts": 0} for name in ("guide", "library", "ours")}
    answers: dict[str, Answers] = {name: [] for name in sides}
    entry: Record = {"measured": measured(bench.path), "sides": sides}
    for warm in (bench.ours, bench.library):
        warm(specs[:2], 0)
    for turn, first in enumerate(starts):
        asked = {"guide": [next(few) for _ in range(ONE_BY_ONE)], "library": specs[first : first + BATCH]}
        for name in sides if turn % 2 == 0 else [*sides][::-1]:
            note(f"{name}, turn {turn + 1} of {len(starts)}")
            _turn(sides[name], answers[name], getattr(bench, name), asked.get(name, specs), turn)
    note("judging")
    entry["verdicts"] = verdicts(answers["library"], answers["ours"])
    note("greedy answers in 32 bit")
    entry["greedy"] = greedy(bench)
    entry["measured"]["load_average"].append(round(os.getloadavg()[0], 1))
    return entry


def _turn(side: Record, answers: Answers, generate: Callable[..., Any], specs: Sequence[Any], turn: int) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    tokens, made = generate(specs, turn)
    side["turns"].append(
        {"seconds": round(time.perf_counter() - began, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
    )
    side["new_tokens"] += tokens
    side["prompts"] += len(specs)
    answers += made


def verdicts(library: Answers, ours: Answers) -> Record:
    """Return how many answers of each the guard accepts, and the difference of the rates, by family."""
    guard = HouseStyle(style=False)
    passed: dict[str, dict[str, list[float]]] = {}
    for name, answers in (("library", library), ("ours", ours)):
        for spec, text in answers:
            verdict = guard(text, GuardContext(specification=spec))
            passed.setdefault(spec.group or spec.id, {}).setdefault(name, []).append(float(verdict.passed))
    counts = {
        name: {
            "accepted": int(sum(sum(of[name]) for of in passed.values())),
            "prompts": sum(len(of[name]) for of in passed.values()),
        }
        for name in ("library", "ours")
    }
    means = {group: [_mean(of["ours"]) - _mean(of["library"])] for group, of in passed.items()}
    found = clustered_difference(means)
    return counts | {"difference": {"estimate": found.rate, "interval": [found.low, found.high]}}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def greedy(bench: Bench) -> Record:
    """Return how many greedy answers, in a batch of all prompts, equal the library's one by one."""
    from transformers import AutoModelForCausalLM

    sampling = SamplingConfig(temperature=0, max_new_tokens=GREEDY_TOKENS, stop=SAMPLING.stop)
    generator = TransformersGenerator(bench.path, sampling=sampling, dtype="float32")
    network = AutoModelForCausalLM.from_pretrained(bench.path, dtype=torch.float32).to(generator._network.device)
    specs = bench.specs[:: max(1, len(bench.specs) // GREEDY)][:GREEDY]
    whole = generator.generate(bench.requests(bench.specs))
    ours = {spec.id: each.text for spec, each in zip(bench.specs, whole, strict=True)}
    equal = 0
    for spec in specs:
        prompt = torch.tensor([encode_prompt(generator.tokenizer, bench.messages(spec))], device=network.device)
        with torch.no_grad():
            drawn = network.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=GREEDY_TOKENS,
                pad_token_id=generator.tokenizer.eos_token_id,
            )[0, prompt.shape[1] :]
        text = generator.tokenizer.decode(drawn, skip_special_tokens=True)
        equal += (cut_after_stop(text, SAMPLING.stop) or text) == ours[spec.id]
    return {"equal": equal, "prompts": len(specs), "batch": len(bench.specs)}


def profile(bench: Bench) -> None:
    """Print where ours spends its time."""
    bench.ours(bench.specs[:2], 0)
    with torch.profiler.profile() as found:
        bench.ours(bench.specs, 0)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))


def batches(bench: Bench, sizes: Sequence[int]) -> Record:
    """Return how many answers differ at each batch size from those at the usual one."""
    whole, differing = bench.ours(bench.specs, 0)[1], {}
    for size in sizes:
        bench.generator._batch_size = size
        again = bench.ours(bench.specs, 0)[1]
        differing[size] = sum(a != b for a, b in zip(whole, again, strict=True))
    return {"answers": len(whole), "differing": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to put the records in; other benchmarks' in it stay")
    parser.add_argument("--model", type=Path, help="model folder; None: the demo's")
    parser.add_argument("--prompts", type=int, help="fewer specifications than all")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+")
    arguments = parser.parse_args()
    bench = Bench(arguments.model or demo_model(), arguments.prompts)
    if arguments.profile:
        profile(bench)
    elif arguments.batches:
        print(json.dumps(batches(bench, arguments.batches)))
    else:
        entry = compare(bench)
        if arguments.json:
            keep(arguments.json, "generation", entry)
        print(json.dumps(generation_summary(entry)))


if __name__ == "__main__":
    main()
