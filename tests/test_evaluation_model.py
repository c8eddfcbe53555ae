"""Evaluation over a real, tiny model: what common random numbers promise."""

from __future__ import annotations

import json
import zlib

import pytest
import torch
from safetensors.torch import save_file

from guardlearn.evaluation import evaluate
from guardlearn.generators import SamplingConfig, open_generator
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus, Specification, Verdict

SPECS = [Specification(id=f"s{n}", specification=f"Say something about {n}", group=f"g{n // 3}") for n in range(48)]


class ChecksumGuard:
    """Accepts a third of all texts, and another third if one character changes."""

    name = "checksum"
    version = "1"
    constraints = ""

    def __call__(self, artifact, context):
        accepted = zlib.crc32(artifact.encode()) % 3 == 0
        return Verdict(status=ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED, feedback="again")


def adapter(folder, size):
    """Write a LoRA adapter on one projection; `size` scales its B."""
    folder.mkdir()
    target = "base_model.model.model.layers.0.self_attn.q_proj"
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{target}.lora_A.weight": torch.randn(4, 64, generator=generator),
        f"{target}.lora_B.weight": torch.randn(64, 4, generator=generator) * size,
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def measure(tiny_model):
    def run(weights, folder, **options):
        sampling = SamplingConfig(temperature=1.0, max_new_tokens=6)
        generator = open_generator("transformers", tiny_model, sampling=sampling, dtype="float32", **options)
        renderer = Renderer(special_tokens=generator.special_tokens)
        return evaluate(SPECS, generator, ChecksumGuard(), adapter=weights, renderer=renderer, r_max=2, folder=folder)

    return run


@pytest.fixture(scope="module")
def unchanged(measure, tmp_path_factory):
    """The evidence of an adapter of zeros, and its log."""
    folder = tmp_path_factory.mktemp("unchanged")
    return measure(adapter(folder / "zero", 0.0), folder / "log"), folder


def test_an_adapter_of_zeros_gives_the_bases_outcome_on_every_specification(unchanged):
    evidence, _ = unchanged
    assert evidence.changes.chains_changed == 0
    assert 0.1 < evidence.base.first_attempt.rate < 0.6  # the guard does tell texts apart


def test_another_adapter_changes_outcomes(measure, tmp_path):
    evidence = measure(adapter(tmp_path / "other", 5.0), tmp_path / "log")
    assert evidence.changes.chains_changed > 5


@pytest.mark.parametrize(("kept", "options"), [(0, {"batch_size": 16}), (31, {})], ids=["another batch", "a resume"])
def test_another_batch_size_or_a_resume_changes_next_to_nothing(measure, unchanged, tmp_path, kept, options):
    whole, folder = unchanged
    lines = (folder / "log" / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "attempts.jsonl").write_bytes(b"".join(lines[:kept]))
    again = measure(folder / "zero", tmp_path, **options)
    differ = sum(before != after for before, after in zip(whole.per_spec, again.per_spec, strict=True))
    assert differ <= 0.02 * len(SPECS)
