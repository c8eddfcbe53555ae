"""Forgetting: loss and divergence against a direct computation in torch; what is called unchanged; the texts."""

from __future__ import annotations

import collections
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.errors import DataError, LogError, UsageError
from guardlearn.forgetting import (
    GeneralText,
    compare_outputs,
    default_texts,
    measure_forgetting,
    obstacle,
    read_texts,
)
from guardlearn.generators import ReplayGenerator, SamplingConfig
from guardlearn.prompts import Renderer, encode_completion, encode_prompt
from guardlearn.types import ArtifactStatus, GenerationRequest, Specification, Verdict
from small_loras import write_lora, write_pairs


class Silent:
    """A guard that is never asked."""

    name, version, constraints = "silent", "1", "Reply with code only."

    def __call__(self, artifact, context):
        return Verdict(status=ArtifactStatus.PENDING)


TEXTS = [
    GeneralText("Write the function that returns the sum of x and y.", "code"),
    GeneralText("def double(x): return x * 2", "code"),
    GeneralText("The previous answer was rejected, and the next one as well. " * 3, "prose"),
    GeneralText("Ünï¢ode, too.\n\nA second paragraph."),
]
KEPT = [Specification(id=f"v{n}", specification=f"Return {'x ' * n}plus {n}", group=f"g{n // 2}") for n in range(5)]
SAMPLING = SamplingConfig(temperature=1.0, max_new_tokens=9)


def open_tiny(folder, sampling=SAMPLING, dtype="float32", **options):
    from guardlearn.generators.transformers import TransformersGenerator

    return TransformersGenerator(folder, sampling=sampling, dtype=dtype, **options)


@pytest.fixture(scope="module")
def generator(tiny_model):
    return open_tiny(tiny_model)


@pytest.fixture(scope="module")
def loras(tiny_model, tmp_path_factory):
    """Adapters that add nothing, a little, and much."""
    folder = tmp_path_factory.mktemp("loras")
    sizes = {"zero": 0.0, "little": 0.002, "much": 0.1}
    return {name: write_lora(folder / name, tiny_model, size) for name, size in sizes.items()}


def run(generator, candidate, **options):
    options = {"texts": TEXTS, "kept": KEPT, "renderer": Renderer(), "guard": Silent()} | options
    return measure_forgetting(generator, candidate, **options)


def prompts(texts):
    return [[{"role": "user", "content": text}] for text in texts]


ASKED = prompts(["add", "Write the function `def add(x: int)`.", "x" * 40, "def", "return x + y, twice", "sum"])


# -- the figures


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_adds_nothing_has_forgotten_nothing(tiny_model, loras, dtype):
    found = run(open_tiny(tiny_model, dtype=dtype), loras["zero"])
    assert all(each.base == each.candidate for each in found.texts)
    assert all(each.kl == 0.0 for each in found.prompts)
    assert (found.loss_rise, found.kl) == (0.0, 0.0)
    assert found.loss_base == found.loss_candidate
    assert 3 < found.loss_base < 9  # an untrained model of some 400 tokens: about log 400


def test_figures_are_those_of_a_direct_computation(generator, tiny_model, loras):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = run(generator, loras["much"], seed=3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    other = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(other, loras["much"]).eval()

    def chances(model, tokens):
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)

    for each, text in zip(found.texts, TEXTS, strict=True):
        tokens = generator.tokenizer(text.text)["input_ids"]
        assert each.tokens == len(tokens) - 1
        for figure, model in ((each.base, base), (each.candidate, adapted)):
            expected = -chances(model, tokens)[:-1].gather(1, torch.tensor(tokens[1:])[:, None]).mean()
            assert figure == pytest.approx(float(expected), abs=1e-5)
    for each, spec in zip(found.prompts, KEPT, strict=True):
        messages = Renderer().messages(spec.specification, Silent.constraints)
        answer = generator.generate([GenerationRequest(messages=tuple(messages), key=f"3/{spec.id}/0/1")])[0]
        prompt = encode_prompt(generator.tokenizer, messages)
        completion = encode_completion(generator.tokenizer, answer.text)[:-1]  # each runs into its limit
        assert answer.finish == "length" and each.tokens == len(completion)
        p, q = (chances(model, prompt + completion)[len(prompt) - 1 : -1] for model in (base, adapted))
        assert each.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-6)
        assert each.kl > 0.001


def test_means_are_of_groups_and_the_gate_gets_every_text(generator, loras):
    found = run(generator, loras["much"])
    rises = [each.candidate - each.base for each in found.texts]
    by_group = {"code": (rises[0] + rises[1]) / 2, "prose": rises[2]}
    assert {group: found.rise_by_group[group] for group in by_group} == pytest.approx(by_group)
    assert len(found.rise_by_group) == 3  # a text without a group stands for itself
    assert found.loss_rise == pytest.approx((by_group["code"] + rises[2] + rises[3]) / 3)
    assert found.general_loss()["code"] == rises[:2]
    assert {group: len(each) for group, each in found.divergences().items()} == {"g0": 2, "g1": 2, "g2": 1}
    expected = {
        group: sum(each.kl for each in found.prompts if each.group == group) / n
        for group, n in {"g0": 2, "g1": 2, "g2": 1}.items()
    }
    assert found.kl_by_group == pytest.approx(expected)


def test_an_answer_that_ended_itself_counts_its_end(generator, tiny_model, loras, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    ended = SamplingConfig(temperature=0, max_new_tokens=9)
    tokens = [each.tokens for each in run(open_tiny(folder, ended), loras["much"]).prompts]
    assert set(tokens) == {9}
    first = open_tiny(folder, ended).generate(
        [GenerationRequest(messages=tuple(Renderer().messages(KEPT[0].specification, Silent.constraints)), key="x")]
    )[0]
    stop = first.text[2:4]
    stopped = run(open_tiny(folder, SamplingConfig(temperature=0, max_new_tokens=9, stop=(stop,))), loras["much"])
    kept = first.text[: first.text.index(stop) + len(stop)]
    assert stopped.prompts[0].tokens == len(encode_completion(generator.tokenizer, kept)) - 1


@given(size=st.floats(0, 0.3), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_divergence_is_never_negative_and_the_bases_loss_never_moves(
    generator, tiny_model, loras, tmp_path_factory, size, seed
):
    candidate = write_lora(tmp_path_factory.mktemp("any") / "lora", tiny_model, size, seed)
    before, found = run(generator, loras["zero"]), run(generator, candidate)
    assert [each.base for each in found.texts] == [each.base for each in before.texts]
    assert all(each.kl >= 0 for each in found.prompts)
    assert [each.tokens for each in found.prompts] == [each.tokens for each in before.prompts]


def test_memory_is_bounded_by_taking_less_at_once_and_the_figures_are_the_same(generator, loras, monkeypatch):
    whole = run(generator, loras["much"])
    monkeypatch.setattr("guardlearn.generators.decoding._PACK_TOKENS", 7)
    monkeypatch.setattr("guardlearn.generators.decoding._SCORED_POSITIONS", 3)
    monkeypatch.setattr("guardlearn.generators.decoding._SCORED_ROWS_TOKENS", 40)
    monkeypatch.setattr("guardlearn.forgetting.scoring._HELD_BYTES", 1)
    pieces = run(generator, loras["much"])
    for one, other in zip(whole.texts, pieces.texts, strict=True):
        assert (one.base, one.candidate) == pytest.approx((other.base, other.candidate), abs=1e-5)
    for one, other in zip(whole.prompts, pieces.prompts, strict=True):
        assert one.kl == pytest.approx(other.kl, abs=1e-6)


def test_distributions_along_rows_are_those_of_the_model(generator, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rows = [([5, 9, 2], 0), ([7] * 300, 290), (list(range(20, 320)), 0), ([11], 0), (list(range(3, 60)), 56)]
    found = collections.defaultdict(list)
    for row, position, chances in generator.log_probabilities(rows):
        assert position == rows[row][1] + sum(map(len, found[row]))
        found[row].append(chances)
    for row, (tokens, first) in enumerate(rows):
        with torch.no_grad():
            expected = torch.log_softmax(reference(torch.tensor([tokens])).logits[0, first:], -1)
        assert torch.allclose(torch.cat(found[row]), expected, atol=1e-4)


def test_a_text_longer_than_the_context_is_cut_there(generator, loras):
    found = run(generator, loras["much"], texts=[GeneralText("word " * 3000)], kept=[])
    assert found.texts[0].tokens == 2047
    assert (found.kl, found.prompts, found.kl_by_group) == (None, [], {})


def test_the_base_is_left_in_use_bit_for_bit_and_equal_calls_give_equal_figures(generator, loras):
    first = run(generator, loras["much"])
    assert generator.weights_digest() == open_digest_of_nothing()
    assert run(generator, loras["much"]) == first
    with pytest.raises(DataError, match="one token"):
        run(generator, loras["much"], texts=[GeneralText("x")])
    assert generator.weights_digest() == open_digest_of_nothing()


def open_digest_of_nothing():
    import hashlib

    return hashlib.sha256().hexdigest()


def test_progress_counts_every_text_and_prompt_once_a_model(generator, loras):
    seen = []
    run(generator, loras["much"], on_progress=lambda done, total, note: seen.append((done, total, note)))
    assert {total for _, total, _ in seen} == {2 * len(TEXTS) + 3 * len(KEPT)}
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_generator_without_probabilities_says_so(tmp_path):
    replay = ReplayGenerator({})
    assert "'replay' gives no probabilities" in obstacle(replay)
    with pytest.raises(UsageError, match="gives no probabilities"):
        run(replay, tmp_path)


# -- whether anything changed


def test_what_adds_nothing_is_unchanged_without_looking_at_the_model(loras):
    silent = ReplayGenerator({})
    found = compare_outputs(silent, None, loras["zero"], ASKED)
    assert not found.changed and "zero: it is the base, bit for bit" in found.checked
    assert compare_outputs(silent, loras["zero"], None, ASKED).changed is False
    assert compare_outputs(silent, loras["much"], loras["zero"], ASKED).changed


def test_a_copy_of_what_is_live_is_unchanged(generator, loras, tmp_path):
    copy = shutil.copytree(loras["much"], tmp_path / "copy")
    found = compare_outputs(generator, loras["much"], copy, ASKED)
    assert not found.changed and "the same: it is what is live" in found.checked


def test_equal_weights_under_another_setting_are_a_change(generator, loras, tmp_path):
    copy = shutil.copytree(loras["much"], tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))
    assert compare_outputs(generator, loras["much"], copy, ASKED).changed
    (copy / "adapter_config.json").write_text(json.dumps(config | {"inference_mode": True}))  # means nothing to a merge
    found = compare_outputs(generator, loras["much"], copy, ASKED)
    assert not found.changed and "merged, every weight" in found.checked


@pytest.mark.parametrize("size", [0.1, 0.002, 1e-5])
def test_an_adapter_that_acts_is_a_change_however_small(generator, tiny_model, tmp_path, size):
    acting = write_lora(tmp_path / "acting", tiny_model, size)
    for incumbent in (None, write_lora(tmp_path / "other", tiny_model, 0.05, seed=8)):
        found = compare_outputs(generator, incumbent, acting, ASKED)
        assert found.changed and "on 4 prompts log-probabilities" in found.checked
    assert generator.weights_digest() == open_digest_of_nothing()


def test_what_rounding_swallows_is_unchanged(generator, tiny_model, tmp_path):
    swallowed = write_lora(tmp_path / "swallowed", tiny_model, 1e-30)
    found = compare_outputs(generator, None, swallowed, ASKED)
    assert not found.changed and "merged, every weight is that of the base" in found.checked


def test_weights_that_are_no_numbers_are_no_base(generator, tiny_model, tmp_path):
    broken = write_lora(tmp_path / "broken", tiny_model, float("nan"))
    generator.use_adapter(broken)
    try:
        assert generator.weights_digest() != open_digest_of_nothing()
    finally:
        generator.use_adapter(None)


def test_what_rounding_swallows_is_unchanged_where_the_base_has_zeros(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "zeros")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "proj" in name:
            weight[::3] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    generator = open_tiny(folder)
    found = compare_outputs(generator, None, write_lora(tmp_path / "swallowed", folder, 1e-30), ASKED)
    assert not found.changed and "merged, every weight is that of the base" in found.checked
    assert compare_outputs(generator, None, write_lora(tmp_path / "acting", folder, 1e-5), ASKED).changed


@pytest.fixture(scope="module")
def untied(tiny_model, tmp_path_factory):
    """The tiny model with a vocabulary matrix of its own, and a last attention layer whose output is thrown away."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("untied") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    weights = {name: weight.clone().contiguous() for name, weight in model.state_dict().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.1.self_attn.o_proj.weight"].zero_()
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_that_reach_no_output_are_said_to_differ_in_vain(untied, tmp_path):
    import torch

    idle = write_pairs(tmp_path / "idle", {"model.layers.1.self_attn.q_proj": (torch.ones(4, 64), torch.ones(64, 4))})
    found = compare_outputs(open_tiny(untied), None, idle, ASKED)
    assert not found.changed
    assert found.checked.startswith("its weights differ, yet on 6 prompts not one log-probability")


def test_a_change_that_only_the_last_prompt_shows_is_found(untied, tmp_path):
    import torch

    generator = open_tiny(untied)
    (token,) = generator.tokenizer("~", add_special_tokens=False)["input_ids"]
    up = torch.zeros(generator.vocabulary, 4)
    up[token] = 1.0
    rare = write_pairs(tmp_path / "rare", {"model.embed_tokens": (torch.ones(4, 64), up)})
    asked = [*ASKED, *prompts(["only here: ~ and no more of it in any other prompt"])]
    assert compare_outputs(generator, None, rare, asked).changed
    assert not compare_outputs(generator, None, rare, ASKED).changed


def test_files_that_cannot_be_read_are_never_called_unchanged(loras, tmp_path):
    silent = ReplayGenerator({})
    for name, damage in {
        "weights": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no tensors"),
        "config": lambda folder: (folder / "adapter_config.json").write_text("{"),
        "kind": lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}'),
        "none": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    }.items():
        folder = shutil.copytree(loras["zero"], tmp_path / name)
        damage(folder)
        found = compare_outputs(silent, None, folder, ASKED)
        assert found.changed and "not compared before sampling" in found.checked, name


def test_adapters_on_a_server_are_compared_by_name_and_by_folder(loras):
    server = ReplayGenerator({})
    assert compare_outputs(server, "live", "next", ASKED).changed
    assert compare_outputs(server, None, "next", ASKED).changed
    assert not compare_outputs(server, "live", "live", ASKED).changed
    much = loras["much"]
    assert not compare_outputs(server, f"live={much}", f"next={much}", ASKED).changed
    assert compare_outputs(server, f"live={loras['little']}", f"next={much}", ASKED).changed


# -- texts


def test_the_shipped_texts_are_of_many_kinds_and_moderate_length():
    texts = default_texts()
    groups = collections.Counter(each.group for each in texts)
    assert len(texts) == 40 and len(groups) == 12 and min(groups.values()) >= 3
    assert len({each.text for each in texts}) == 40
    assert all(40 <= len(each.text.split()) <= 150 for each in texts)


def test_texts_of_ones_own_are_read(json_lines):
    path = json_lines("texts.jsonl")([{"text": "one\u2028line", "group": "g"}, "", {"text": "two"}])
    assert [(each.text, each.group) for each in read_texts(path)] == [("one\u2028line", "g"), ("two", "")]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"text": "fine"}, "{"], "line 2"),
        ([{"texts": "typo"}], r'line 1.*\{"text", "group"\?\}'),
        ([{"text": "fine", "weight": 1}], "line 1.*weight"),
        ([{"text": " \n"}], "line 1: the text is empty"),
    ],
)
def test_a_malformed_line_is_named(json_lines, lines, said):
    with pytest.raises(LogError, match=said) as caught:
        read_texts(json_lines("texts.jsonl")(lines))
    assert "\n" not in str(caught.value)


def test_no_texts_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no general texts at"):
        read_texts(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no texts"):
        read_texts(tmp_path / "empty.jsonl")
