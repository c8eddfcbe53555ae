"""Common random numbers on the real model: an adapter that changes nothing gives the base's outcome on every
specification; another batch size, or a run interrupted half way, changes at most 2 % of outcomes."""

from guardlearn.demo.guard import house_style
from guardlearn.demo.model import demo_model
from guardlearn.demo.run import R_MAX, SAMPLING
from guardlearn.demo.tasks import specifications
from guardlearn.evaluation import evaluate
from guardlearn.generators import open_generator
from guardlearn.prompts import Renderer
from guardlearn.training import add_lora_adapters, load_model_for_training, save_trained_model


def run(work):
    model = demo_model()
    specs = specifications("train")
    zero = zero_adapter(model, work / "zero")
    with_zero = measure(model, specs, work / "zero-run", adapter=zero)
    whole = {pair.id: pair.base for pair in with_zero.per_spec}
    small = {pair.id: pair.base for pair in measure(model, specs, work / "batch-16", batch_size=16).per_spec}
    resumed = interrupted(model, specs, work / "interrupted")
    result = {
        "specs": len(specs),
        "zero_adapter_chains_changed": with_zero.changes.chains_changed,
        "batch_16_outcomes_changed": sum(small[name] != whole[name] for name in whole),
        "interrupted_outcomes_changed": sum(resumed[name] != whole[name] for name in whole),
        "first_attempts_passed": with_zero.base.first_attempt.passed,
        "expected_attempts": with_zero.base.expected_attempts,
    }
    most = 0.02 * len(specs)
    holds = (
        result["zero_adapter_chains_changed"] == 0
        and result["batch_16_outcomes_changed"] <= most
        and result["interrupted_outcomes_changed"] <= most
    )
    return result, holds


def zero_adapter(model, folder):
    network, tokenizer = load_model_for_training(str(model))
    save_trained_model(add_lora_adapters(network), tokenizer, str(folder))  # LoRA's B starts at zero
    return folder


def measure(model, specs, folder, adapter=None, **options):
    generator = open_generator("transformers", model, sampling=SAMPLING, **options)
    renderer = Renderer(special_tokens=generator.special_tokens)
    return evaluate(specs, generator, house_style, adapter=adapter, renderer=renderer, r_max=R_MAX, folder=folder)


def interrupted(model, specs, folder):
    """Keep the first half of an evaluation's attempts, as a kill would, and go on from there."""
    measure(model, specs, folder)
    log = folder / "attempts.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    return {pair.id: pair.base for pair in measure(model, specs, folder).per_spec}
