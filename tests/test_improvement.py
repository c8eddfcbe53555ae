"""The guide's section 8 on real, tiny models: `generate` and `evaluate_improvement` (errata 46-52)."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace

import pytest

from guardlearn import (
    Specification,
    add_lora_adapters,
    evaluate_improvement,
    format_prompt,
    generate,
    load_model_for_training,
)
from guardlearn.errors import LeakageError, ModelError, UsageError
from guardlearn.prompts import Renderer, encode_prompt, special_tokens, template_digest
from guardlearn.training.weights import PROVENANCE

SPECS = [f"Say something about {n}" for n in range(12)]


def checksum(artifact):
    """A guard as the guide has it: one argument, an object with `passed`."""
    return SimpleNamespace(passed=zlib.crc32(artifact.encode()) % 3 == 0)


def loaded(folder):
    return load_model_for_training(str(folder), 512, load_in_4bit=False)


def adapted(folder, size):
    """A model with adapters whose effect grows with `size`; 0 changes nothing."""
    import torch

    model, _ = loaded(folder)
    model = add_lora_adapters(model)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=chance) * size)
    return model


@pytest.fixture(scope="module")
def models(tiny_model):
    base, tokenizer = loaded(tiny_model)
    return SimpleNamespace(
        base=base, tokenizer=tokenizer, zero=adapted(tiny_model, 0.0), other=adapted(tiny_model, 0.5)
    )


def measured(models, before, after, guard=checksum, specs=SPECS, **options):
    given = {"num_samples": 2, "r_max": 1, "temperature": 1.0, "max_new_tokens": 6} | options
    return evaluate_improvement(before, after, models.tokenizer, specs, guard, **given)


def test_erratum_46_the_answer_does_not_hold_the_prompt(models):
    import torch

    prompt = format_prompt("Write the function add", [])
    answer = generate(models.base, models.tokenizer, prompt, 8, temperature=0)
    ids = encode_prompt(models.tokenizer, [{"role": "user", "content": prompt}])
    made = models.base.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=2)[0].tolist()
    with_prompt = models.tokenizer.decode(made, skip_special_tokens=True)
    assert prompt in with_prompt and prompt not in answer
    assert answer and with_prompt.endswith(answer)


def test_generate_is_seeded_or_not_and_leaves_the_model_as_it_was(models):
    models.base.train()
    first, second = (generate(models.base, models.tokenizer, "hello", 12, seed=3) for _ in range(2))
    assert first == second
    assert len({generate(models.base, models.tokenizer, "hello", 12) for _ in range(4)}) > 1
    assert models.base.training
    models.base.eval()
    with pytest.raises(ModelError, match="leaves no room"):
        generate(models.base, models.tokenizer, "x" * 3000, 4)


def test_the_guides_keys_with_intervals_beside_them(models):
    found = measured(models, models.base, models.other)
    assert found["improvement"] == pytest.approx(found["after_success_rate"] - found["before_success_rate"])
    relative = found["improvement"] / found["before_success_rate"]
    assert found["relative_improvement"] == pytest.approx(relative)
    assert found["improvement_low"] <= found["improvement"] <= found["improvement_high"]
    assert found["evidence"]["pairing"] == "common random numbers"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_erratum_47_retries_are_measured_by_running_the_loop(models):
    def second_time(artifact, context):
        return bool(context.history), "again"

    found = measured(models, models.base, models.other, second_time, SPECS[:4], r_max=3, num_samples=1)
    assert found["before_success_rate"] == 0.0
    assert (found["before_expected_retries"], found["after_expected_retries"]) == (1.0, 1.0)
    assert found["before_solved_within_r_max"] == 1.0
    never = measured(models, models.base, models.other, lambda artifact: False, SPECS[:4], r_max=2, num_samples=1)
    assert never["before_expected_retries"] == 1.0  # censored at R_max 2
    assert never["before_solved_within_r_max"] == 0.0


def test_erratum_48_one_object_before_and_after_is_measured_with_its_adapters_off_and_on(models, tiny_model):
    apart = measured(models, models.base, models.other)
    same = measured(models, models.other, models.other)
    inner = measured(models, models.other.get_base_model(), models.other)
    assert apart["evidence"]["per_spec"] == same["evidence"]["per_spec"] == inner["evidence"]["per_spec"]
    assert apart["evidence"]["changes"]["chains_changed"] > 0
    with pytest.raises(UsageError, match="share their weights"):
        measured(models, models.base, models.base)


def test_erratum_49_what_was_trained_on_is_refused(models, tiny_model):
    from guardlearn.digests import digest_text

    model = adapted(tiny_model, 0.5)
    renderer = Renderer(special_tokens=special_tokens(models.tokenizer))
    manifest = {
        "specification_digests": [digest_text(SPECS[3])],
        "groups": ["family"],
        "prompts": renderer.settings(),
        "template_digest": template_digest(models.tokenizer, renderer),
    }
    setattr(model, PROVENANCE, manifest)
    with pytest.raises(LeakageError, match="'test-0004' was trained on"):
        measured(models, model, model)
    kin = Specification(id="kin", specification="quite another", group="family")
    with pytest.raises(LeakageError, match="group 'family'"):
        measured(models, model, model, specs=[kin])
    assert "no text and no group" in measured(models, model, model, specs=SPECS[4:8])["evidence"]["leakage"]
    with pytest.raises(ModelError, match="was trained with prompts"):
        measured(models, model, model, specs=SPECS[4:8], manifest=manifest | {"template_digest": "another"})


def test_erratum_50_pairs_share_their_noise_and_nothing_divides_by_zero(models):
    found = measured(models, models.base, models.zero)
    assert found["improvement"] == 0.0
    assert found["evidence"]["changes"]["chains_changed"] == 0
    once, again = (measured(models, models.base, models.other) for _ in range(2))
    evidences = [each.pop("evidence") for each in (once, again)]
    assert once == again and evidences[0]["per_spec"] == evidences[1]["per_spec"]  # the rest holds a clock's seconds
    none = measured(models, models.base, models.other, lambda artifact: False)
    assert (none["before_success_rate"], none["relative_improvement"]) == (0.0, None)
    for wrong in ([], "one text"):
        with pytest.raises(UsageError):
            measured(models, models.base, models.other, specs=wrong)
    with pytest.raises(UsageError, match="at least 1"):
        measured(models, models.base, models.other, num_samples=0)


def test_erratum_51_a_guard_that_breaks_gives_no_verdict(models):
    def broken(artifact):
        raise RuntimeError("the checker's own fault")

    found = measured(models, models.base, models.other, broken)
    assert (found["before_success_rate"], found["improvement"]) == (None, None)
    assert found["evidence"]["base"]["outcomes"] == {"no verdict": 24}


def test_erratum_52_cut_answers_are_counted(models):
    found = measured(models, models.base, models.other, max_new_tokens=1)
    assert found["evidence"]["base"]["truncated"] > 0


def test_a_model_in_memory_answers_as_the_same_model_from_its_folder(models, tiny_model):
    from guardlearn.generators import SamplingConfig, open_generator
    from guardlearn.generators.in_memory import InMemoryGenerator
    from guardlearn.types import GenerationRequest

    sampling = SamplingConfig(temperature=0.7, max_new_tokens=8, seed=5)
    requests = [GenerationRequest(messages=({"role": "user", "content": text},), key=f"0/{text}/0/1") for text in SPECS]
    one = InMemoryGenerator(models.base, None, models.tokenizer, sampling=sampling).generate(requests)
    two = open_generator("transformers", tiny_model, sampling=sampling, dtype="float32").generate(requests)
    same = sum(a.text == b.text for a, b in zip(one, two, strict=True))
    assert same >= len(SPECS) - 1  # rounding may flip one
    assert {(a.finish, b.finish) for a, b in zip(one, two, strict=True) if a.text == b.text} <= {
        ("stop", "stop"),
        ("length", "length"),
    }
