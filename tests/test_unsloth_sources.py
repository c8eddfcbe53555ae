"""What we ask of Unsloth, held against Unsloth's own sources: no GPU and no installation needed.

The wheels that constraints-cuda.txt pins are downloaded once into ~/.cache/guardlearn-tests and read, not installed.
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
import types
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINING = ROOT / "src" / "guardlearn" / "training"
CACHE = Path.home() / ".cache" / "guardlearn-tests"
TORCH_BRINGS = {"triton", "filelock", "typing-extensions"}
NEVER_USED = {
    # the trainer evaluates nothing and logs nothing: validation and metrics are ours
    "per_device_eval_batch_size", "eval_accumulation_steps", "logging_steps", "logging_nan_inf_filter",
    "include_tokens_per_second", "include_num_input_tokens_seen",
}  # fmt: skip
NOT_OF_SFT = {
    "max_seq_length", "num_generations", "vllm_mode", "generation_kwargs", "warmup_ratio",  # that: transformers < 5
}  # fmt: skip


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found.items()}


CUDA = pins("constraints-cuda.txt")


class Wheel:
    """A wheel's Python sources, by path."""

    def __init__(self, path):
        self.path, self.archive = path, zipfile.ZipFile(path)

    def text(self, name):
        return self.archive.read(name).decode()

    def tree(self, name):
        return ast.parse(self.text(name))

    def metadata(self):
        (name,) = [n for n in self.archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
        return Parser().parsestr(self.text(name))


def wheel(package):
    """Return a pinned wheel, from the cache or the index; skip where neither has it."""
    name = f"{package.replace('-', '_')}-{CUDA[package]}-py3-none-any.whl"
    if not (CACHE / name).is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{package}=={CUDA[package]}"]
            done = subprocess.run([*command, "-d", folder], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"needs {CACHE / name}, or a package index to get it from ({done.stderr.strip()[-200:]})")
            (Path(folder) / name).replace(CACHE / name)
    return Wheel(CACHE / name)


@pytest.fixture(scope="module")
def unsloth():
    return wheel("unsloth")


@pytest.fixture(scope="module")
def zoo():
    return wheel("unsloth-zoo")


def ours(name):
    return ast.parse((TRAINING / name).read_text(encoding="utf-8"))


def define(tree, name, kind=(ast.FunctionDef, ast.ClassDef)):
    """Return the definition of that name, wherever in `tree` it stands."""
    (found,) = [node for node in ast.walk(tree) if isinstance(node, kind) and node.name == name][:1]
    return found


def constant(tree, name):
    """Return the value assigned to a name at the top of a module."""
    (value,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name]
    return ast.literal_eval(value)


def strings(tree):
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def method(unsloth, cls, name):
    """Return a method as its caller may write it: through wrappers that take anything, to the one they wrap."""
    tree = unsloth.tree("unsloth/models/loader.py")
    found = define(define(tree, cls), name)
    while found.args.vararg and [arg.arg for arg in found.args.args] in ([], ["model"]):
        (wrapped,) = [
            d.args[0]
            for d in found.decorator_list
            if isinstance(d, ast.Call) and ast.unparse(d.func) == "functools.wraps"
        ]
        cls = wrapped.value.id
        found = define(define(unsloth.tree("unsloth/models/llama.py"), cls), wrapped.attr)
    return found


def our_calls():
    """Yield (class, method, call) for each call of training/unsloth.py on something imported from unsloth."""
    tree = ours("unsloth.py")
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "unsloth" for a in n.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in names:
                yield owner.id, node.func.attr, node


def test_every_argument_we_pass_is_one_that_unsloth_names(unsloth):
    seen = set()
    for cls, name, call in our_calls():
        accepted = method(unsloth, cls, name).args
        named = [arg.arg for arg in accepted.args + accepted.kwonlyargs]
        assert len(call.args) <= len(accepted.args)
        for keyword in call.keywords:
            assert keyword.arg in named, f"{cls}.{name} has no argument {keyword.arg}; it has {named}"
        seen.add(f"{cls}.{name}")
    assert seen == {"FastLanguageModel.from_pretrained", "FastLanguageModel.get_peft_model"}


def test_what_we_import_is_what_unsloth_gives_on_a_gpu(unsloth):
    start, init = unsloth.tree("unsloth/__init__.py"), unsloth.tree("unsloth/_gpu_init.py")
    assert "_gpu_init" in {n.module for n in ast.walk(start) if isinstance(n, ast.ImportFrom)}
    names = {(n.module, a.name) for n in ast.walk(init) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert ("models", "*") in names
    exported = {
        alias.name
        for node in unsloth.tree("unsloth/models/__init__.py").body
        if isinstance(node, ast.ImportFrom) and node.module == "loader"
        for alias in node.names
    }
    assert {cls for cls, _, _ in our_calls()} <= exported


def test_the_adapters_sit_where_unsloth_and_the_guide_put_them(unsloth):
    targets = constant(ours("unsloth.py"), "_TARGETS")
    assert list(targets) == constant(unsloth.tree("unsloth/models/llama.py"), "_DEFAULT_TARGET_MODULES")
    accepted = method(unsloth, "FastLanguageModel", "get_peft_model").args
    defaults = dict(zip([arg.arg for arg in accepted.args[-len(accepted.defaults) :]], accepted.defaults, strict=True))
    for keyword in next(call for _, name, call in our_calls() if name == "get_peft_model").keywords:
        if keyword.arg in ("lora_dropout", "bias", "use_gradient_checkpointing"):  # what its kernels are made for
            assert ast.literal_eval(keyword.value) == ast.literal_eval(defaults[keyword.arg])


# Importing it


@pytest.mark.slow
def test_erratum_37_importing_unsloth_without_a_gpu_raises_or_changes_the_trainers_settings(unsloth, zoo, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": f"{unsloth.path}:{zoo.path}", "UNSLOTH_DISABLE_CPU_FALLBACK": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", "import unsloth"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("NotImplementedError: Unsloth cannot find any torch accelerator")
    # and where it falls back to a CPU backend of its own, that changes TRL's and transformers' settings at once
    called = {
        ast.unparse(node.value.func)
        for node in unsloth.tree("unsloth/_cpu_init.py").body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    }
    assert "install_cpu_training_defaults" in called


def test_erratum_37_unsloth_wants_to_come_before_the_three_that_we_keep_behind_it(unsloth):
    critical = constant(unsloth.tree("unsloth/_gpu_init.py"), "critical_modules")
    assert set(critical) == set(constant(ours("backends.py"), "_REWRITTEN"))
    assert "Unsloth should be imported before" in unsloth.text("unsloth/_gpu_init.py")
    first = [node for node in ours("unsloth.py").body if isinstance(node, ast.ImportFrom)][1]
    assert first.module == "unsloth"  # after __future__ alone


def test_unsloth_loads_nothing_without_bitsandbytes(zoo):
    body = define(zoo.tree("unsloth_zoo/patching_utils.py"), "patch_model_and_tokenizer").body
    tried = [node for node in body if isinstance(node, ast.Try) and "bitsandbytes" in ast.unparse(node.body[0])]
    assert "raise ImportError" in ast.unparse(tried[0].handlers[0])
    assert "bitsandbytes" in constant(ours("backends.py"), "_PACKAGES")


def test_the_variables_we_set_are_ones_that_unsloth_reads(unsloth, zoo):
    settings = [n for n in ast.walk(define(ours("backends.py"), "_environment")) if isinstance(n, ast.Dict)]
    names = {key.value for node in settings for key in node.keys}
    assert names == {"UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION"}
    assert "UNSLOTH_DISABLE_STATISTICS" in strings(define(unsloth.tree("unsloth/models/_utils.py"), "get_statistics"))
    assert "UNSLOTH_COMPILE_LOCATION" in strings(zoo.tree("unsloth_zoo/compiler.py"))


# The trainer, which Unsloth replaces


def replaced_defaults(body):
    """Yield the settings to which Unsloth's SFTConfig gives other defaults than TRL's."""
    for node in body:
        if isinstance(node, ast.If):
            test = ast.unparse(node.test)
            if "trainer_file ==" not in test or "'sft_trainer'" in test:  # the others are of other trainers
                yield from replaced_defaults(node.body)
            yield from replaced_defaults(node.orelse)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "replacements":
            yield from (key.value for key in node.value.keys)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("replacements["):
            yield node.targets[0].slice.value


def test_every_setting_is_named_to_which_unsloth_gives_another_default(unsloth):
    (call,) = [n for n in ast.walk(ours("trl.py")) if isinstance(n, ast.Call) and ast.unparse(n.func) == "SFTConfig"]
    named = {keyword.arg for keyword in call.keywords}
    changed = set(replaced_defaults(define(unsloth.tree("unsloth/models/rl.py"), "_patch_trl_rl_trainers_impl").body))
    assert {"gradient_accumulation_steps", "loss_type", "warmup_steps", "optim"} <= changed
    assert changed - named - NEVER_USED - NOT_OF_SFT == set()


def test_what_we_override_in_the_trainer_is_not_set_anew_by_unsloth(unsloth):
    overridden = {n.name for n in define(ours("trl.py"), "WeightedTrainer").body if isinstance(n, ast.FunctionDef)}
    assert {"get_train_dataloader", "training_step", "compute_loss", "create_model_card"} <= overridden
    rl = unsloth.text("unsloth/models/rl.py")
    assert "class Unsloth{RLTrainer_name}(_Unsloth{RLTrainer_name})" in rl  # a subclass of it keeps its overrides
    wrappers = unsloth.tree("unsloth/trainer.py")
    set_anew = set(re.findall(r"self\.(\w+) = ", constant(ast.parse(rl), "RLTrainer_replacement")))
    for text in strings(define(ast.parse(rl), "_patch_trl_rl_trainers_impl")):
        set_anew |= set(re.findall(r"self\.(\w+) = ", text))
    for name in ("_patch_sft_trainer_auto_packing", "_backwards_compatible_trainer"):
        targets = [t for n in ast.walk(define(wrappers, name)) if isinstance(n, ast.Assign) for t in n.targets]
        set_anew |= {t.attr for t in targets if isinstance(t, ast.Attribute) and ast.unparse(t.value) == "self"}
    assert "train" in set_anew
    assert set_anew & overridden == set()


def test_a_collator_of_ones_own_keeps_unsloth_from_packing(unsloth):
    wrapper = define(unsloth.tree("unsloth/trainer.py"), "_patch_sft_trainer_auto_packing")
    assigned = [n for n in ast.walk(wrapper) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "blocked"]
    (blocked,) = [node.value for node in assigned if isinstance(node.value, ast.BoolOp)]
    assert isinstance(blocked.op, ast.Or)
    assert "data_collator is not None" in {ast.unparse(value) for value in blocked.values}


def test_the_trainers_checkpointing_left_off_leaves_unsloths_own_on(unsloth):
    module = types.ModuleType("gc_config_default")
    exec(unsloth.text("unsloth/models/_gc_config_default.py"), vars(module))
    args = types.SimpleNamespace(gradient_checkpointing=False)
    model = types.SimpleNamespace(_unsloth_gradient_checkpointing="unsloth")
    assert module.honour_gradient_checkpointing_off(args, model) is False
    template = constant(unsloth.tree("unsloth/models/rl.py"), "RLTrainer_replacement")
    assert "use_gc = _model._unsloth_gradient_checkpointing" in template


# The forward


def test_a_forward_without_labels_gives_logits_of_the_last_columns(unsloth):
    tree = unsloth.tree("unsloth/models/llama.py")
    for name in ("_CausalLM_fast_forward", "PeftModel_fast_forward"):
        assert "logits_to_keep" in [arg.arg for arg in define(tree, name).args.args]
    forward = define(tree, "_CausalLM_fast_forward")
    with_labels = [
        n for n in ast.walk(forward) if isinstance(n, ast.If) and "labels is not None" in ast.unparse(n.test)
    ]
    guarded = {id(inner) for node in with_labels for statement in node.body for inner in ast.walk(statement)}
    emptied = [n for n in ast.walk(forward) if isinstance(n, ast.Name) and n.id == "EMPTY_LOGITS"]
    assert emptied and all(id(node) in guarded for node in emptied)
    asked = define(ours("sharing.py"), "last_logits")
    calls = [n for n in ast.walk(asked) if isinstance(n, ast.Call) and ast.unparse(n.func) == "model"]
    assert not any("labels" in strings(call) | {keyword.arg for keyword in call.keywords} for call in calls)
    assert calls and all("attention_mask" in {keyword.arg for keyword in call.keywords} for call in calls)
    assert {"input_ids", "position_ids"} <= strings(define(ours("sharing.py"), "_piece"))
    assert "logits_to_keep" in strings(asked)
    assert "unsloth" in strings(define(ours("sharing.py"), "_takes_a_cache"))  # its models get no cache


def test_rows_padded_on_the_left_keep_their_mask_while_training(unsloth):
    from guardlearn.training.rows import Collator

    tree = unsloth.tree("unsloth/models/llama.py")
    scope = {}
    exec(ast.unparse(define(tree, "_is_left_padded")), scope)
    rows = [{"prompt": [5] * n, "completion": [6, 7], "weight": 1.0, "row": n} for n in (1, 4)]
    assert scope["_is_left_padded"](Collator(0)(rows)["attention_mask"]) is True
    assert scope["_is_left_padded"](Collator(0)(rows[1:])["attention_mask"]) is False  # nothing padded, nothing to mask
    dropping = [
        ast.unparse(node.test)
        for node in ast.walk(define(tree, "LlamaModel_fast_forward"))
        if isinstance(node, ast.If) and ast.unparse(node.body).startswith("attention_mask = None")
    ]
    assert any("_has_no_labels" in test and "not (" in test and "_is_left_padded" in test for test in dropping)


def test_unsloth_gives_a_tokenizer_that_pads_with_its_end_token_another_pad_token(zoo, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    module = types.ModuleType("pad_token")
    exec(zoo.text("unsloth_zoo/pad_token.py"), vars(module))
    assert tokenizer.pad_token == tokenizer.eos_token
    assert module.fix_pad_token(tokenizer)["changed"]  # so its tokenizer is dropped and rows are ours
    assert tokenizer.pad_token != tokenizer.eos_token
    assert "resize_token_embeddings" in zoo.text("unsloth_zoo/pad_token.py")  # refused where it happens


def test_unsloth_stretches_positions_for_longer_rows(unsloth):
    load = define(define(unsloth.tree("unsloth/models/llama.py"), "FastLlamaModel"), "from_pretrained")
    tests = [ast.unparse(node.test) for node in ast.walk(load) if isinstance(node, ast.If)]
    assert any("max_seq_length > model_max_seq_length" in test for test in tests)


# The pins


def test_the_pins_are_within_unsloths_bounds(unsloth, zoo):
    from packaging.markers import default_environment
    from packaging.requirements import Requirement

    environment = default_environment() | {
        "python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64", "extra": "",
    }  # fmt: skip
    header = (ROOT / "constraints-cuda.txt").read_text(encoding="utf-8").split("\n\n")[0]
    torch = re.search(r"pip install torch==(\S+)", header)[1]
    assert f"torch=={torch}" in constant(ours("backends.py"), "_INSTALL_TORCH")
    assert constant(ours("backends.py"), "_INSTALL") in header
    steps = re.findall(r"pip install .*", header)
    assert steps == re.findall(
        r"^    (pip install .*)", (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    known, lacking = CUDA | {"torch": torch}, set()
    for each in (unsloth, zoo):
        for line in each.metadata().get_all("Requires-Dist"):
            needs = Requirement(line)
            if needs.marker and not needs.marker.evaluate(environment):
                continue
            name = re.sub(r"[-_.]+", "-", needs.name).lower()
            if name in known:
                assert needs.specifier.contains(known[name], prereleases=True), f"{line}, pinned {known[name]}"
            else:
                lacking.add(name)
    assert lacking == {"torchvision", "xformers", "diffusers"} | TORCH_BRINGS


def test_both_backends_train_with_the_same_libraries():
    cpu = pins("constraints-cpu.txt")
    both = (
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "huggingface-hub",
        "tokenizers",
        "msgspec",
        "numpy",
    )
    assert {name: CUDA[name] for name in both} == {name: cpu[name] for name in both}
