"""Merging an adapter for good: what is saved is base + adapter, or nothing is saved."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from guardlearn import (
    MergeReport,
    add_lora_adapters,
    load_model_for_training,
    merge_adapter,
    save_trained_model,
    train_on_traces,
)
from guardlearn.adapters import MANIFEST, read_manifest
from guardlearn.cli import app
from guardlearn.digests import digest_files, digest_text
from guardlearn.errors import ModelError, UsageError
from guardlearn.merging.agreement import PROBES
from guardlearn.merging.report import judge
from guardlearn.prompts import Renderer, encode_prompt, template_digest
from guardlearn.training import load_trained_model
from guardlearn.training.saving import placed

pytestmark = pytest.mark.slow

FEW = ["Write a function.", [{"role": "user", "content": "Say hello"}]]
"""Prompts for tests of what is refused."""
PROJECTION = "model.layers.0.self_attn.q_proj.weight"


def weights_digest(folder):
    return digest_files(folder, "config.json", "*.safetensors", "pytorch_model*.bin")


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """An adapter folder, trained for three steps, with a manifest."""
    folder = tmp_path_factory.mktemp("merging") / "adapter"
    model, tokenizer = load_model_for_training(str(tiny_model), load_in_4bit=False)
    model = add_lora_adapters(model, r=4, lora_alpha=8)
    rows = [{"prompt": f"Write the number {n}", "completion": f"def f(): return {n}"} for n in range(6)]
    train_on_traces(model, tokenizer, rows, str(folder.with_name("work")), max_steps=3, learning_rate=2e-2)
    model.guardlearn_manifest = {
        "base_model": "tiny",
        "base_model_digest": weights_digest(tiny_model),
        "prompts": Renderer().settings(),
        "template_digest": template_digest(tokenizer, Renderer()),
    }
    save_trained_model(model, tokenizer, str(folder))
    return folder


@pytest.fixture(scope="module")
def merged(tiny_model, adapter, tmp_path_factory):
    """Folder and report by dtype."""
    folder = tmp_path_factory.mktemp("merged")
    return {
        dtype: (folder / dtype, merge_adapter(tiny_model, adapter, folder / dtype, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    }


def altered(adapter, to, change, manifest=False):
    """A copy of an adapter whose tensors are what `change` makes of them."""
    shutil.copytree(adapter, to)
    save_file({name: change(name, t) for name, t in load_file(adapter / "adapter_model.safetensors").items()},
              to / "adapter_model.safetensors")  # fmt: skip
    if not manifest:
        (to / MANIFEST).unlink()
    return to


def rewritten(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def answers(model, tokenizer, prompt):
    """Greedy tokens and the logits of the prompt's last token, as a user of the libraries would get them."""
    ids = torch.tensor([encode_prompt(tokenizer, [{"role": "user", "content": prompt}])])
    with torch.no_grad():
        logits = model(ids).logits[0, -1].float()
        return model.generate(ids, do_sample=False, max_new_tokens=12)[0].tolist(), logits


# What is saved


def test_in_float32_a_user_of_the_libraries_gets_base_and_adapter(tiny_model, adapter, merged):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, report = merged["float32"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    both, base_tokenizer = load_trained_model(str(tiny_model), str(adapter))
    bare, _ = load_model_for_training(str(tiny_model), load_in_4bit=False)
    assert tokenizer.chat_template == base_tokenizer.chat_template
    moved = 0.0
    for prompt in ("Write a function.", "Say hello to n", "x"):
        tokens, logits = answers(model, tokenizer, prompt)
        wanted_tokens, wanted = answers(both, base_tokenizer, prompt)
        assert tokens == wanted_tokens
        assert (logits - wanted).abs().max() <= 1e-3
        moved = max(moved, float((logits - answers(bare, tokenizer, prompt)[1]).abs().max()))
    assert moved > 0.1
    found = report.agreement
    assert (found.prompts, found.identical_continuations, found.flips) == (20, 20, 0)
    assert max(report.merging_difference, found.adapter_difference, found.expected_difference) <= 1e-3
    assert found.base_difference > 0.1


def test_in_bfloat16_every_weight_is_the_float32_merge_rounded_once(tiny_model, adapter, merged):
    folder, report = merged["bfloat16"]
    base, saved = load_file(tiny_model / "model.safetensors"), load_file(folder / "model.safetensors")
    whole = load_file(merged["float32"][0] / "model.safetensors")
    assert saved.keys() == whole.keys() == base.keys()
    assert all(torch.equal(tensor, whole[name].bfloat16()) for name, tensor in saved.items())
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(whole[name], base[name])  # no adapter there
    lora = load_file(adapter / "adapter_model.safetensors")
    down, up = (
        lora[f"base_model.model.{PROJECTION.replace('weight', half)}"] for half in ("lora_A.weight", "lora_B.weight")
    )
    assert torch.allclose(whole[PROJECTION], base[PROJECTION] + 2.0 * up @ down, rtol=0, atol=1e-6)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    found = report.agreement
    assert found.expected_difference == 0.0
    assert 1e-4 < report.rounding_difference == found.adapter_difference < found.base_difference / 2
    assert found.flips == round((1 - found.greedy_agreement) * found.positions)
    assert found.disagreements <= found.flips < 0.1 * found.positions


def test_erratum_38_a_merged_model_says_what_it_came_from_and_no_path(tiny_model, adapter, merged):
    folder, report = merged["bfloat16"]
    text = (folder / MANIFEST).read_text()
    account = json.loads(text)
    assert account["manifest"] == read_manifest(adapter)
    assert account["merged"]["base_model_digest"] == weights_digest(tiny_model)
    assert account["merged"]["model_digest"] == weights_digest(folder)
    assert msgspec.convert({k: v for k, v in account["merged"].items() if k != "versions"}, MergeReport) == report
    assert str(tiny_model.parent) not in text and str(folder.parent) not in text
    assert {path.name for path in folder.parent.iterdir()} == {"float32", "bfloat16"}


def test_the_bases_own_generation_settings_are_kept_and_not_obeyed_by_the_check(tiny_model, adapter, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    settings = {"eos_token_id": [1, 2], "temperature": 0.1, "do_sample": False, "repetition_penalty": 30.0}
    (base / "generation_config.json").write_text(json.dumps(settings))  # save_pretrained refuses to write this one
    report = merge_adapter(base, adapter, tmp_path / "out", dtype="float32", prompts=FEW)
    assert report.agreement.identical_continuations == 2
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()


def test_the_probes_are_twenty_different_prompts():
    assert len({str(prompt) for prompt in PROBES}) == 20


# What is refused: nothing is left


def refuse(model, adapter, tmp_path, match, **options):
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises((ModelError, UsageError), match=match) as caught:
        merge_adapter(model, adapter, tmp_path / "out", **({"prompts": FEW} | options))
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_quantised_base_is_never_merged_into(tiny_model, adapter, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    rewritten(base, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refuse(base, adapter, tmp_path, "never merged into 4 or 8 bit; give the 16-bit base")
    shutil.copy(tiny_model / "config.json", base)
    weights = load_file(base / "model.safetensors")
    save_file(weights | {PROJECTION: weights[PROJECTION].to(torch.int8)}, base / "model.safetensors")
    refuse(base, adapter, tmp_path, "I8 weights")


def test_an_adapter_of_another_base_is_refused(tiny_model, adapter, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    save_file(weights | {PROJECTION: weights[PROJECTION] + 1e-3}, base / "model.safetensors")
    refuse(base, adapter, tmp_path, r"trained on another base model \(tiny\): its digest is")
    other = altered(adapter, tmp_path / "wide", lambda name, t: torch.cat([t, t], 1) if "lora_A" in name else t)
    refuse(tiny_model, other, tmp_path, "does not fit")  # no manifest: the shapes tell


def test_a_base_with_another_chat_template_is_refused(tiny_model, adapter, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    refuse(base, adapter, tmp_path, "asked otherwise than it learned")


def test_an_adapter_that_changes_nothing_is_refused(tiny_model, adapter, tmp_path):
    zero = altered(adapter, tmp_path / "zero", lambda name, t: t * 0 if "lora_B" in name else t)
    refuse(tiny_model, zero, tmp_path, "every B is zero")
    faint = altered(adapter, tmp_path / "faint", lambda name, t: t * 1e-5 if "lora_B" in name else t)
    refuse(tiny_model, faint, tmp_path, "changes nothing measurable")
    broken = altered(adapter, tmp_path / "broken", lambda name, t: t * float("nan"))
    refuse(tiny_model, broken, tmp_path, "its training diverged")


def test_what_is_no_mergeable_adapter_is_refused(tiny_model, adapter, tmp_path):
    refuse(tiny_model, tmp_path, tmp_path, "is no adapter folder")
    other = shutil.copytree(adapter, tmp_path / "ia3")
    rewritten(other, "adapter_config.json", peft_type="IA3")
    refuse(tiny_model, other, tmp_path, r"cannot be merged \(IA3\)")
    (other / "adapter_model.safetensors").write_bytes(b"half")
    refuse(tiny_model, other, tmp_path, "cannot be read")


def test_wrong_usage_is_refused(tiny_model, adapter, tmp_path):
    refuse(tiny_model, adapter, tmp_path, "dtype is 'int4'; allowed: bfloat16, float16, float32", dtype="int4")
    refuse(tiny_model, adapter, tmp_path, "at least one text or chat", prompts=[])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    refuse(tiny_model, adapter, tmp_path, "exists and is not empty")
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_an_adapter_on_tied_embeddings_is_refused_because_its_merge_is_another_model(tiny_model, tmp_path):
    folder = tmp_path / "head"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    rows = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    weights = {
        "base_model.model.lm_head.lora_A.weight": torch.randn(4, 64, generator=generator),
        "base_model.model.lm_head.lora_B.weight": torch.randn(rows, 4, generator=generator),
        "base_model.model.lm_head.base_layer.weight": load_file(tiny_model / "model.safetensors")[
            "model.embed_tokens.weight"
        ],
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["lm_head"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    refuse(tiny_model, folder, tmp_path, "cannot be merged: in float32 the merged model's logits are up to")


def test_rounding_that_eats_the_adapter_is_refused_and_float32_is_not(tiny_model, adapter, tmp_path):
    slight = altered(adapter, tmp_path / "slight", lambda name, t: t * 2.5e-3 if "lora_B" in name else t)
    refuse(tiny_model, slight, tmp_path, "rounding eats the adapter; merge it in float16 or float32")
    assert merge_adapter(tiny_model, slight, tmp_path / "out", dtype="float32", prompts=FEW).agreement.flips == 0


def test_a_weight_too_large_for_float16_is_refused(tiny_model, adapter, tmp_path):
    layer, readers = "model.layers.0.input_layernorm", [f"layers.0.self_attn.{name}_proj" for name in "qkv"]

    def unread(name, tensor):  # column 3 of what reads the large number is zero, so that no logit sees it
        if any(reader in name for reader in readers) and "lora_B" not in name:
            tensor[:, 3] = 0.0
        return tensor

    base = shutil.copytree(tiny_model, tmp_path / "base")
    weights = {name: unread(name, t) for name, t in load_file(base / "model.safetensors").items()}
    weights[f"{layer}.weight"][3] = 1e5
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    blind = altered(adapter, tmp_path / "blind", unread)
    refuse(base, blind, tmp_path, rf"{layer}\.weight holds 100000, more than torch\.float16 can", dtype="float16")


def test_the_bounds_are_kept_by_a_judge(merged):
    """Figures of a good merge pass; each one worsened alone does not."""
    _, good = merged["float32"]
    judge(good)
    half = msgspec.structs.replace(good, dtype="bfloat16")
    for report, worse, match in (
        (good, {"expected_difference": 0.01}, "config.json leaves something out"),
        (good, {"expected_difference": float("nan")}, "config.json leaves something out"),
        (good, {"identical_continuations": 19}, "continues 1 of 20 prompts otherwise"),
        (half, {"adapter_difference": good.agreement.base_difference}, "rounding eats the adapter"),
        (half, {"disagreements": 7}, "chooses another token at 7 of 640 positions"),
    ):
        with pytest.raises(ModelError, match=match):
            judge(msgspec.structs.replace(report, agreement=msgspec.structs.replace(report.agreement, **worse)))
    judge(msgspec.structs.replace(half, agreement=msgspec.structs.replace(good.agreement, disagreements=6, flips=30)))


# What goes wrong between saving and loading again


def at_saved(tmp_path, act):
    """A progress callback that acts on the folder under way once it is saved."""

    def on_progress(done, total, note):
        if note.startswith("saved in"):
            act(next(path for path in tmp_path.iterdir() if path.name.startswith(".out.new")))

    return on_progress


def damage(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\x00\x40")


def swap_projections(folder):
    weights = load_file(folder / "model.safetensors")
    first, second = PROJECTION, PROJECTION.replace("layers.0", "layers.1")
    weights[first], weights[second] = weights[second], weights[first]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (damage, "damaged while it was saved.* 1 of 21 tensors differ"),
        (swap_projections, "damaged while it was saved.* 2 of 21 tensors differ"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded again"),
        (lambda folder: rewritten(folder, "config.json", rms_norm_eps=0.5), "config.json leaves something out"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "tokenizer .* is another one after saving"),
    ],
    ids=["a flipped byte", "swapped tensors", "a lost file", "a lost setting", "a lost template"],
)
def test_a_fault_after_saving_is_found_by_loading_again(tiny_model, adapter, tmp_path, act, match):
    refuse(tiny_model, adapter, tmp_path, match, dtype="float32", on_progress=at_saved(tmp_path, act))


def test_an_interrupted_merge_leaves_nothing_and_the_same_call_succeeds(tiny_model, adapter, tmp_path):
    def stop(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_adapter(tiny_model, adapter, tmp_path / "out", prompts=FEW, on_progress=at_saved(tmp_path, stop))
    assert list(tmp_path.iterdir()) == []
    seen = []
    merge_adapter(
        tiny_model,
        adapter,
        tmp_path / "out",
        prompts=FEW,
        on_progress=lambda done, total, _: seen.append((done, total)),
    )
    assert seen == [(step, 18) for step in range(19)]


# Folders that appear whole or not at all


def killed_while_placing(to, moment):
    """Run a process that places a folder at `to` and is killed at that moment."""
    script = f"""
import os, signal
from pathlib import Path
from guardlearn.training import saving
{moment}
with saving.placed(Path({str(to)!r}), replaces="adapter_config.json") as staged:
    (staged / "adapter_config.json").write_text("new")
    if not {bool(moment)}: os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL


def test_killed_while_writing_what_was_there_stays_and_the_next_one_tidies_up(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("old")
    killed_while_placing(tmp_path / "a", "")
    assert (tmp_path / "a" / "adapter_config.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with placed(tmp_path / "a", replaces="adapter_config.json") as staged:
        (staged / "adapter_config.json").write_text("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "adapter_config.json").read_text() == "newer"


def test_killed_between_the_moves_the_old_one_comes_back(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("old")
    moment = (
        "rename = Path.rename\n"
        "def dying(self, to):\n"
        "    rename(self, to)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.rename = dying"
    )
    killed_while_placing(tmp_path / "a", moment)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ZeroDivisionError), placed(tmp_path / "a", replaces="adapter_config.json"):
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "adapter_config.json").read_text() == "old"


# The guide's save_trained_model


def test_erratum_38_a_saved_adapter_says_what_it_came_from(tiny_model, adapter):
    account = json.loads((adapter / MANIFEST).read_text())
    assert account["manifest"] == read_manifest(adapter)
    assert account["manifest"]["base_model_digest"] == weights_digest(tiny_model)
    assert account["saved"]["base_model"] == "tiny"
    assert (account["saved"]["lora"]["r"], account["saved"]["lora"]["lora_alpha"]) == (4, 8)
    assert set(account["saved"]["versions"]) == {"python", "guardlearn", "torch", "transformers", "peft"}
    assert not list(adapter.glob("*.bin"))


def test_saving_replaces_an_adapter_and_nothing_else(tiny_model, adapter, tmp_path):
    model, tokenizer = load_trained_model(str(tiny_model), str(adapter))
    del model.guardlearn_manifest
    old = shutil.copytree(adapter, tmp_path / "old")
    (old / "stale.txt").write_text("")
    save_trained_model(model, tokenizer, str(old))
    assert read_manifest(old) is None  # nothing is known, and nothing is made up
    assert not (old / "stale.txt").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("kept")
    with pytest.raises(ModelError, match="is no adapter folder"):
        save_trained_model(model, tokenizer, str(mine))
    with pytest.raises(ModelError, match="carries no adapters"):
        save_trained_model(model.unload(), tokenizer, str(tmp_path / "new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "old"]
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


# The command


def test_export_merges_and_gives_its_figures(tiny_model, adapter, merged, tmp_path):
    out = tmp_path / "model"
    command = ["export", str(adapter), "--to", "merged", "--model", str(tiny_model), "-o", str(out), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["to"], found["output"]) == ("merged", str(out))
    assert found["report"]["model_digest"] == merged["bfloat16"][1].model_digest == weights_digest(out)
    assert found["report"]["agreement"]["prompts"] == 20


@pytest.mark.usefixtures("commands_start_warm")
def test_export_to_something_unknown_names_what_is_allowed(adapter, tmp_path):
    command = [sys.executable, "-m", "guardlearn", "export", str(adapter), "--to", "gguf", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "guardlearn: --to is 'gguf'; allowed: peft, merged, ollama\n"


def test_the_table_says_what_was_measured(merged, capsys):
    from guardlearn.cli.export import tell

    tell(merged["bfloat16"][1], Path("out"))
    shown = capsys.readouterr()
    assert "at most 0.001" in shown.out and "loaded again to the bare base" in shown.out
    assert "of 20 answers identical" in shown.err


def test_a_merged_model_is_not_measured_on_what_its_adapter_learned(merged, tmp_path, warm):
    folder = shutil.copytree(merged["float32"][0], tmp_path / "model")
    account = json.loads((folder / MANIFEST).read_text())
    account["manifest"] |= {"specification_digests": [digest_text("learned by heart")], "groups": []}
    (folder / MANIFEST).write_text(json.dumps(account))
    (tmp_path / "specs.jsonl").write_text(json.dumps({"id": "x", "specification": "learned by heart"}) + "\n")
    (tmp_path / "rule.py").write_text("def rule(artifact):\n    return True\n")
    command = [
        warm.python, "-m", "guardlearn", "evaluate", "specs.jsonl", "--guard", "rule:rule", "--model", "model",
        "-o", "out",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "'x' was trained on" in done.stderr
