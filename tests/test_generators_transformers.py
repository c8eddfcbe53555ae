"""The transformers generator on a tiny random model in float32."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from guardlearn.errors import ModelError, UsageError
from guardlearn.generators import SamplingConfig
from guardlearn.generators.drawing import draw, gumbel, row_seed
from guardlearn.generators.pace import Pace
from guardlearn.generators.steady import SteadySizes
from guardlearn.generators.transformers import TransformersGenerator, load_tokenizer
from guardlearn.prompts import encode_prompt
from guardlearn.types import GenerationRequest

TEXTS = ["add", "Write the function `def add(x: int)`.", "x" * 40, "def", "return x + y, twice", "a b c", "?", "sum"]
LIVELY = SamplingConfig(temperature=1.5, top_k=50, max_new_tokens=24)


def requests(texts=TEXTS, seed=0):
    system = {"role": "system", "content": "You are a Python programmer. Reply with code only."}
    return [
        GenerationRequest(messages=(system, {"role": "user", "content": text}), key=f"{seed}/{n}/0/1")
        for n, text in enumerate(texts)
    ]


def open_tiny(folder, sampling=LIVELY, **options):
    return TransformersGenerator(folder, sampling=sampling, dtype="float32", **options)


@pytest.fixture(scope="module")
def generator(tiny_model):
    return open_tiny(tiny_model)


def texts_of(generations):
    return [generation.text for generation in generations]


def write_adapter(folder, model_folder, up=None, **changes):
    """Write a LoRA on every q_proj and down_proj as PEFT does; `up` fills B."""
    config = json.loads((model_folder / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, inputs in (("self_attn.q_proj", hidden), ("mlp.down_proj", inner)):
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, inputs, generator=generator)
            noise = torch.randn(hidden, 4, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.zeros(hidden, 4) if up is None else up * noise
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "tiny", "bias": "none"}
    settings |= {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | changes
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def weights_of(generator):
    return {name: tensor.clone() for name, tensor in generator._network.state_dict().items()}


def same_weights(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# -- the draws -------------------------------------------------------------------------------------------------------


def test_noise_is_a_function_of_key_position_and_token():
    seeds = torch.tensor([row_seed(0, "a"), row_seed(0, "b"), row_seed(1, "a")])
    tokens = torch.arange(50).expand(3, 50)
    whole = gumbel(seeds, torch.tensor([3, 3, 3]), tokens)
    assert torch.equal(whole[1:2, 7:9], gumbel(seeds[1:2], torch.tensor([3]), tokens[1:2, 7:9]))
    other = gumbel(seeds, torch.tensor([4, 4, 4]), tokens)
    assert len(torch.cat([whole, other]).unique()) == 300  # every key, position and token has its own


def test_noise_is_gumbel_and_draws_follow_the_softmax():
    seeds = torch.arange(20_000) * 7919
    noise = gumbel(seeds, torch.zeros(20_000, dtype=torch.int64), torch.arange(4).expand(20_000, 4))
    assert noise.isfinite().all()
    assert abs(noise.mean().item() - 0.5772) < 0.02 and abs(noise.std().item() - 1.2825) < 0.02
    logits = torch.tensor([2.0, 1.0, 0.0, -30.0]).expand(20_000, 4)
    sampling = SamplingConfig(temperature=2.0, top_k=None)
    chosen = draw(logits, sampling, seeds, torch.full((20_000,), 5))
    shares = torch.bincount(chosen, minlength=4) / 20_000
    assert torch.allclose(shares, torch.softmax(logits[0] / 2.0, dim=-1), atol=0.015)


@pytest.mark.parametrize(("top_k", "top_p", "allowed"), [(2, None, {1, 3}), (None, 0.9, {1, 3}), (3, 0.5, {3})])
def test_top_k_and_top_p_leave_only_the_likeliest(top_k, top_p, allowed):
    logits = torch.tensor([0.0, 4.0, 1.0, 4.5]).expand(500, 4)
    sampling = SamplingConfig(temperature=1.0, top_k=top_k, top_p=top_p)
    chosen = draw(logits, sampling, torch.arange(500), torch.zeros(500, dtype=torch.int64))
    assert set(chosen.tolist()) == allowed


# -- the answers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_answer_depends_on_its_key_alone_not_on_its_batch(generator, tiny_model):
    whole = texts_of(generator.generate(requests()))
    assert len(set(whole)) == len(TEXTS)
    assert [texts_of(generator.generate([one]))[0] for one in requests()] == whole
    assert texts_of(generator.generate(requests()[::-1]))[::-1] == whole
    assert texts_of(generator.generate(requests()[5:])) == whole[5:]  # what a resumed run asks for
    assert texts_of(open_tiny(tiny_model, batch_size=3).generate(requests())) == whole
    assert texts_of(generator.generate(requests(seed=1))) != whole


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_temperature_zero_is_the_librarys_greedy_decoding(tiny_model, batch_size):
    from transformers import AutoModelForCausalLM

    sampling = SamplingConfig(temperature=0, max_new_tokens=20)
    generator = open_tiny(tiny_model, sampling, batch_size=batch_size)
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for request, answer in zip(requests(), generator.generate(requests()), strict=True):
        prompt = encode_prompt(generator.tokenizer, request.messages)
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        expected = reference.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=20)[0, len(prompt) :]
        assert answer.completion_tokens == len(expected) and answer.prompt_tokens == len(prompt)
        assert answer.text == generator.tokenizer.decode(expected, skip_special_tokens=True)


def test_long_prompts_are_computed_in_pieces(generator, monkeypatch):
    whole = texts_of(generator.generate(requests()))
    monkeypatch.setattr("guardlearn.generators.decoding._PACK_TOKENS", 7)
    assert texts_of(generator.generate(requests())) == whole


def test_answers_end_at_eos_at_stop_strings_or_at_the_limit(tiny_model):
    greedy = open_tiny(tiny_model, SamplingConfig(temperature=0, max_new_tokens=12))
    free = greedy.generate(requests())
    assert {answer.finish for answer in free} == {"length"}
    assert {answer.completion_tokens for answer in free} == {12}
    stops = tuple(answer.text[4:6] for answer in free)
    for answer in open_tiny(tiny_model, SamplingConfig(temperature=0, max_new_tokens=12, stop=stops)).generate(
        requests()
    ):
        assert answer.finish == "stop" and answer.text.endswith(stops)
        assert not any(stop in answer.text[:-1] for stop in stops)


def test_eos_ends_an_answer_and_is_not_in_its_text(tiny_model, tmp_path):
    greedy = open_tiny(tiny_model, SamplingConfig(temperature=0, max_new_tokens=12))
    tokens = greedy.tokenizer(greedy.generate(requests()[:1])[0].text, add_special_tokens=False)["input_ids"]
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [tokens[3]]}))
    first = tokens.index(tokens[3])
    answer = open_tiny(folder, SamplingConfig(temperature=0, max_new_tokens=12)).generate(requests()[:1])[0]
    assert answer.finish == "stop" and answer.completion_tokens == first + 1
    assert answer.text == greedy.tokenizer.decode(tokens[:first])


def test_each_answer_is_handed_over_as_it_finishes(generator):
    done = {}
    answers = generator.generate(requests(), done.__setitem__)
    assert done == dict(enumerate(answers))
    assert sum(answer.seconds for answer in answers) > 0
    assert generator.generate([]) == []


def test_what_is_stored_with_an_item_is_json_and_changes_with_the_tokenizer(generator, tiny_model):
    described = dict(generator.describe())
    assert json.loads(json.dumps(described)) == described
    assert described["dtype"] == "float32" and described["temperature"] == 1.5
    assert generator.model == tiny_model.name and len(generator.prompt_digest) == 64
    assert "<|im_end|>" in generator.special_tokens


# -- adapters --------------------------------------------------------------------------------------------------------


def test_a_zero_adapter_changes_no_bit(generator, tiny_model, tmp_path):
    before, answers = weights_of(generator), texts_of(generator.generate(requests()))
    generator.use_adapter(write_adapter(tmp_path / "zero", tiny_model))
    assert same_weights(before, weights_of(generator))
    assert texts_of(generator.generate(requests())) == answers


def test_an_adapter_is_merged_as_peft_does_and_taken_out_bit_for_bit(tiny_model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = write_adapter(tmp_path / "adapter", tiny_model, up=0.05, alpha_pattern={"layers.1.mlp.down_proj": 2})
    generator = open_tiny(tiny_model)
    before, answers = weights_of(generator), texts_of(generator.generate(requests()))
    generator.use_adapter(str(folder))
    adapted = texts_of(generator.generate(requests()))
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    merged = weights_of(generator)
    assert all(torch.allclose(merged[name], expected[name], atol=1e-6) for name in expected)
    assert adapted != answers
    generator.use_adapter(folder)  # again: the second replaces the first, it does not add up
    assert same_weights(merged, weights_of(generator))
    generator.use_adapter(None)
    assert same_weights(before, weights_of(generator))
    assert texts_of(generator.generate(requests())) == answers


def test_in_bfloat16_too_an_adapter_takes_effect_and_leaves_no_trace(tiny_model, tmp_path):
    """There the layers multiply with rearranged copies of their weights, which must follow."""
    generator = TransformersGenerator(tiny_model, sampling=LIVELY, dtype="bfloat16")
    answers = texts_of(generator.generate(requests()))
    generator.use_adapter(write_adapter(tmp_path / "adapter", tiny_model, up=0.05))
    assert texts_of(generator.generate(requests())) != answers
    generator.use_adapter(write_adapter(tmp_path / "zero", tiny_model))
    assert texts_of(generator.generate(requests())) == answers
    generator.use_adapter(None)
    assert texts_of(generator.generate(requests())) == answers


def test_an_adapter_of_another_base_is_refused_and_leaves_the_base(generator, tiny_model, tmp_path):
    before = weights_of(generator)
    for name, wrong in {"wider": {"hidden_size": 96}, "deeper": {"num_hidden_layers": 3}}.items():
        other = tmp_path / name
        other.mkdir()
        config = json.loads((tiny_model / "config.json").read_text()) | wrong
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="another base"):
            generator.use_adapter(write_adapter(tmp_path / f"{name}-adapter", other, up=1.0))
        assert same_weights(before, weights_of(generator))


def test_adapters_that_cannot_be_merged_are_refused(generator, tiny_model, tmp_path):
    with pytest.raises(ModelError, match="no adapter folder"):
        generator.use_adapter(tmp_path)
    for n, wrong in enumerate([{"use_dora": True}, {"peft_type": "LOHA"}, {"modules_to_save": ["lm_head"]}]):
        with pytest.raises(ModelError, match="cannot be merged"):
            generator.use_adapter(write_adapter(tmp_path / str(n), tiny_model, **wrong))
    broken = write_adapter(tmp_path / "broken", tiny_model)
    (broken / "adapter_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        generator.use_adapter(broken)


# -- bad input -------------------------------------------------------------------------------------------------------


def one_line(caught):
    assert "\n" not in str(caught.value)


def test_a_prompt_that_fills_the_context_is_named(generator):
    with pytest.raises(ModelError, match=r"'0/0/0/1' has .* context of tiny is 2048") as caught:
        generator.generate(requests(["word " * 2100]))
    one_line(caught)


def test_a_prompt_near_the_context_gets_what_room_is_left(generator):
    length = len(encode_prompt(generator.tokenizer, requests(["x"])[0].messages))
    asked = requests(["x" + "?" * (2048 - length - 5)])
    answer = generator.generate(asked)[0]
    assert answer.prompt_tokens + answer.completion_tokens == 2048 and answer.finish == "length"


@pytest.mark.parametrize(
    ("missing", "message"),
    [("model.safetensors", "no weights"), ("config.json", "config.json"), ("tokenizer.json", "tokenizer")],
)
def test_an_incomplete_model_folder_is_refused(tiny_model, tmp_path, missing, message):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=message) as caught:
        open_tiny(folder)
    one_line(caught)


def test_weights_that_are_not_whole_are_refused(tiny_model, tmp_path):
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors, model\.layers\.1\.mlp\.up_proj"):
        open_tiny(folder)
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        open_tiny(folder)
    one_line(caught)


def test_settings_that_do_not_exist_are_refused(tiny_model, tmp_path):
    with pytest.raises(UsageError, match="batch_size"):
        open_tiny(tiny_model, batch_size=0)
    with pytest.raises(UsageError, match="dtype"):
        TransformersGenerator(tiny_model, dtype="int3")
    with pytest.raises(ModelError, match="no model folder"):
        load_tokenizer(tmp_path / "nowhere")


# -- the same numbers whatever the batch -----------------------------------------------------------------------------


def test_sizes_called_steady_give_a_row_the_same_bits_anywhere(tiny_model):
    generator = TransformersGenerator(tiny_model, sampling=LIVELY, dtype="bfloat16")
    sizes = generator._decoder._sizes
    for layer in (m for m in generator._network.modules() if isinstance(m, torch.nn.Linear)):
        rows = torch.randn(512, layer.in_features, generator=torch.Generator().manual_seed(3)).bfloat16()
        for chosen in (sizes.step, sizes.prompt) if layer is not generator._network.lm_head else (sizes.step,):
            expected = layer(rows[None, : chosen[-1]])[0] if chosen else None
            for size in chosen:
                assert torch.equal(layer(rows[None, :size])[0], expected[:size])


@pytest.mark.slow
def test_in_bfloat16_too_answers_do_not_depend_on_the_batch(tiny_model):
    whole = texts_of(TransformersGenerator(tiny_model, sampling=LIVELY, dtype="bfloat16").generate(requests()))
    for batch_size in (1, 3):
        generator = TransformersGenerator(tiny_model, sampling=LIVELY, dtype="bfloat16", batch_size=batch_size)
        assert texts_of(generator.generate(requests())) == whole


def test_padding_goes_to_the_next_steady_size_or_to_multiples_of_the_largest():
    sizes = (48, 64, 128)
    assert [SteadySizes.padded(n, sizes) for n in (1, 48, 49, 100, 128, 129, 300)] == [48, 48, 64, 128, 128, 256, 384]
    assert SteadySizes.padded(5, ()) == 5


def test_the_pace_keeps_the_faster_count_and_restores_torchs_own(monkeypatch):
    clock = [0.0]  # other processes on the cores must not decide this test
    monkeypatch.setattr("guardlearn.generators.pace.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    before = torch.get_num_threads()
    pace = Pace((2, 1))
    used = []
    for _ in range(40):
        with pace.step():
            used.append(torch.get_num_threads())
            clock[0] += 0.004 if used[-1] == 2 else 0.001  # as if two threads waited for each other
    assert used.count(1) > 30 and used[0] == 2
    assert torch.get_num_threads() == before
    used.clear()
    for _ in range(120):
        with pace.step():
            used.append(torch.get_num_threads())
            clock[0] += 0.001 if used[-1] == 2 else 0.004  # the other processes have gone
    assert used[-20:].count(2) > 15
