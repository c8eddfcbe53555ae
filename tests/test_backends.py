"""Which backend trains: auto, trl, unsloth; what is refused without a GPU, and what is never imported there.

Unsloth is not installed here and there is no GPU. Where a test needs it to be there, a stand-in package says when and
with what it was called; tests/test_unsloth_sources.py checks those calls against Unsloth's own sources.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardlearn import add_lora_adapters, load_model_for_training
from guardlearn.errors import BackendUnavailable, JobError, UsageError
from guardlearn.jobs import TrainingConfig, run_job
from guardlearn.training import backends
from guardlearn.training.job import train_job
from training_samples import sample_job

COMMAND = "pip install --no-deps -r constraints-cuda.txt"
STAND_IN = """
import json, os, sys
from pathlib import Path

early = [name for name in ("transformers", "trl", "peft") if name in sys.modules]
Path(os.environ["UNSLOTH_WAS_IMPORTED"]).write_text(json.dumps(early))
if os.environ.get("UNSLOTH_FAILS"):
    raise NotImplementedError("Unsloth cannot find any torch accelerator? You need a GPU.")
CALLS = []


class FastLanguageModel:
    @staticmethod
    def from_pretrained(model_name, max_seq_length, dtype, load_in_4bit):
        from transformers import AutoModelForCausalLM

        CALLS.append(["from_pretrained", model_name, max_seq_length, dtype, load_in_4bit])
        model = AutoModelForCausalLM.from_pretrained(model_name)
        if os.environ.get("UNSLOTH_ADDS_A_TOKEN"):
            model.resize_token_embeddings(model.config.vocab_size + 1)
        return model, "its own tokenizer"

    @staticmethod
    def get_peft_model(model, **settings):
        from peft import LoraConfig, get_peft_model

        CALLS.append(["get_peft_model", settings])
        return get_peft_model(model, LoraConfig(target_modules=settings["target_modules"]))
"""
GPU = "import torch; torch.cuda.is_available = lambda: True\n"


@pytest.fixture
def site(tmp_path):
    """An environment in which Unsloth's packages are found; `imported` is written as unsloth is."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "unsloth.py").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "site" / "unsloth-1.0.dist-info").mkdir()
    (tmp_path / "site" / "unsloth-1.0.dist-info" / "METADATA").write_text("Name: unsloth\nVersion: 1.0\n")
    (tmp_path / "site" / "unsloth_zoo.py").touch()
    return {
        "PYTHONPATH": str(tmp_path / "site"),
        "UNSLOTH_WAS_IMPORTED": str(tmp_path / "imported"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def with_bitsandbytes(site):
    """Let bitsandbytes be found too; PEFT would import it, so only where no model is trained."""
    (Path(site["PYTHONPATH"]) / "bitsandbytes.py").touch()
    return site


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def was_imported(site):
    return Path(site["UNSLOTH_WAS_IMPORTED"]).exists()


@pytest.fixture
def job(tiny_model, tmp_path):
    return sample_job(tmp_path / "job", tiny_model, max_steps=1)


# Without a GPU


@pytest.mark.slow
def test_erratum_37_on_a_cpu_auto_trains_in_full_precision_or_bf16_and_never_imports_unsloth(job, tiny_model, site):
    done = python("-m", "guardlearn.training", job, "--model", tiny_model, **site)
    assert done.returncode == 0, done.stderr
    assert not was_imported(site)
    result = json.loads((job / "result.json").read_text(encoding="utf-8"))
    assert (result["backend"], result["optimizer"], result["load_in_4bit"]) == ("trl", "adamw_torch", False)
    assert result["precision"] in ("fp32", "bf16")
    assert result["versions"]["unsloth"] == "1.0"
    assert "bitsandbytes" not in result["versions"]  # what is not installed has no version


@pytest.mark.slow
def test_erratum_37_with_every_package_there_and_no_gpu_auto_is_still_trl(site):
    code = (
        "from guardlearn.training import backends; import sys; print(backends.choose(), 'bitsandbytes' in sys.modules)"
    )
    done = python("-c", code, **with_bitsandbytes(site))
    assert done.stdout == "trl False\n", done.stderr
    assert not was_imported(site)


def test_erratum_37_unsloth_without_cuda_is_one_line_and_begins_nothing(job, tiny_model, site, warm_starts):
    before = sorted(path.name for path in job.iterdir())
    done = python("-m", "guardlearn.training", job, "--model", tiny_model, "--backend", "unsloth", **site)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    for part in ("a CUDA device", "the package bitsandbytes", COMMAND, "--backend trl"):
        assert part in done.stderr
    assert not was_imported(site)
    assert sorted({path.name for path in job.iterdir()} - {"train.log", ".lock", "failure.json"}) == before


@pytest.mark.slow
def test_a_job_that_asks_for_unsloth_says_the_same_and_trains_with_trl_all_the_same(tiny_model, tmp_path, warm_starts):
    job = sample_job(tmp_path / "job", tiny_model, max_steps=1, backend="unsloth")
    with pytest.raises(JobError, match=f"the unsloth backend lacks a CUDA device .*{COMMAND}"):
        run_job(job, tiny_model)
    assert not (job / "adapter").exists()
    train_job(job, tiny_model, backend="trl")
    assert json.loads((job / "result.json").read_text(encoding="utf-8"))["backend"] == "trl"
    train_job(job, tiny_model, backend="unsloth")  # finished: nothing is asked of the machine any more


def test_4_bit_without_cuda_is_refused_not_ignored(tiny_model, tmp_path):
    job = sample_job(tmp_path / "job", tiny_model, max_steps=1, load_in_4bit=True)
    with pytest.raises(BackendUnavailable, match=r"load_in_4bit lacks a CUDA device .* load_in_4bit = false"):
        train_job(job, tiny_model)
    assert not (job / ".training").exists()


def test_an_unknown_backend_is_wrong_usage(job, tiny_model, warm_starts):
    done = python("-m", "guardlearn.training", job, "--model", tiny_model, "--backend", "magic")
    assert (done.returncode, done.stderr) == (
        2, "error: backend 'magic' is unknown; choose auto or trl or unsloth\n",
    )  # fmt: skip
    with pytest.raises(UsageError, match="choose auto or trl or unsloth"):
        TrainingConfig(backend="magic")
    for name in backends.CHOICES:
        assert TrainingConfig(backend=name).backend == name


def test_a_training_begun_with_one_backend_is_not_continued_with_another(job, tiny_model):
    (job / ".training").mkdir()
    (job / ".training" / "backend").write_text("unsloth", encoding="utf-8")
    with pytest.raises(JobError, match="begun with the unsloth backend"):
        train_job(job, tiny_model, backend="trl")
    with pytest.raises(BackendUnavailable, match="unsloth backend lacks"):  # auto: the one it was begun with
        train_job(job, tiny_model)


@pytest.mark.slow
def test_doctor_says_what_unsloth_lacks_and_the_command_without_importing_it(site):
    done = python("-m", "guardlearn", "doctor", "--json", **site)
    (row,) = [check for check in json.loads(done.stdout)["checks"] if check["what"] == "unsloth backend"]
    assert (row["ok"], row["needed"]) == (False, False)
    assert row["found"].startswith("unsloth 1.0; missing: a CUDA device (torch ")
    assert row["found"].endswith("the package bitsandbytes")
    assert row["fix"].startswith("on a machine with an NVIDIA GPU run: ") and row["fix"].endswith(COMMAND)
    assert not was_imported(site)


# With a pretended GPU


@pytest.mark.slow
def test_unsloth_is_imported_before_transformers_trl_and_peft(job, tiny_model, site):
    code = f"{GPU}from guardlearn.training.__main__ import main; raise SystemExit(main())"
    found = with_bitsandbytes(site) | {"UNSLOTH_FAILS": "1"}
    done = python("-c", code, job, "--model", tiny_model, **found)
    assert was_imported(site), done.stderr
    assert json.loads(Path(site["UNSLOTH_WAS_IMPORTED"]).read_text(encoding="utf-8")) == []
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "You need a GPU" in done.stderr and "--backend trl" in done.stderr
    assert not (job / ".training").exists()


@pytest.mark.slow
def test_where_transformers_came_first_auto_warns_and_unsloth_is_refused(site):
    code = f"""{GPU}import logging, transformers
from guardlearn.training import backends
logging.basicConfig(format="%(message)s")
print(backends.choose())
try:
    backends.choose("unsloth")
except Exception as error:
    print(type(error).__name__, error)"""
    done = python("-c", code, **with_bitsandbytes(site))
    chosen, refused = done.stdout.splitlines()
    assert chosen == "trl"
    assert refused.startswith("BackendUnavailable unsloth must be imported before transformers, trl and peft; this pro")
    assert "so trl trains" in done.stderr
    assert not was_imported(site)


PROGRAM = (
    GPU
    + """
import json, os, sys, inspect
from pathlib import Path
from guardlearn import add_lora_adapters, load_model_for_training
from guardlearn.errors import ModelError
from guardlearn.training import backends
backends.find_spec = lambda name: True  # with a bitsandbytes to be found PEFT would import it
model, tokenizer = load_model_for_training(sys.argv[1], 512)
torch.cuda.is_available = lambda: False  # the model is on the CPU after all
adapted = add_lora_adapters(model, 8, lora_alpha=32, seed=5)

from guardlearn.training.rows import plan, tokenise
from guardlearn.training.trl import Options, build
rows = tokenise([{"prompt": "p", "completion": "c"}], tokenizer, None)
options = Options(learning_rate=1e-4, warmup_ratio=0.0, seed=0, save_steps=9, gradient_checkpointing=True)
trainer = build(adapted, tokenizer, rows, [[0]], Path(sys.argv[2]), options)

def refusal(call, *given):
    try:
        call(*given)
    except ModelError as error:
        return str(error)

from transformers import GPT2Config, GPT2LMHeadModel
from guardlearn.training import unsloth as ours
import unsloth
calls = list(unsloth.CALLS)
os.environ["UNSLOTH_ADDS_A_TOKEN"] = "1"
print(json.dumps({
    "calls": calls,
    "tokenizer": tokenizer.eos_token,
    "backend": backends.name_of(adapted),
    "optim": trainer.args.optim.value,
    "gradient_checkpointing": trainer.args.gradient_checkpointing,
    "too_long": refusal(ours.load_base, sys.argv[1], 9999, False),
    "token_added": refusal(ours.load_base, sys.argv[1], 512, False),
    "no_such_layers": refusal(ours.add_adapters, GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1)), 8, 8, 0),
    "no_model": refusal(ours.load_base, "/no/such/folder", 512, False),
    "in_the_folder": sorted(os.listdir()),
    "environment": {name: os.environ[name] for name in os.environ if name in backends._environment()},
}))
"""
)


@pytest.mark.slow
def test_the_guides_functions_use_unsloth_as_the_guide_does(tiny_model, tmp_path, site):
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_model, tmp_path / "out"],
        capture_output=True, text=True, check=False, env=os.environ | site, cwd=tmp_path / "here",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["calls"] == [
        ["from_pretrained", str(tiny_model), 512, None, True],
        ["get_peft_model", {
            "r": 8, "lora_alpha": 32, "lora_dropout": 0, "bias": "none", "use_gradient_checkpointing": "unsloth",
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "random_state": 5,
        }],
    ]  # fmt: skip
    assert (found["tokenizer"], found["backend"]) == ("<|im_end|>", "unsloth")
    assert (found["optim"], found["gradient_checkpointing"]) == ("adamw_8bit", False)
    assert "has 2048 positions, fewer than max_length 9999" in found["too_long"]
    assert "made the 400 tokens of" in found["token_added"]
    assert found["no_such_layers"].startswith("GPT2LMHeadModel has no q_proj, k_proj,")
    assert found["no_model"].startswith("cannot load /no/such/folder")
    assert found["environment"]["UNSLOTH_DISABLE_STATISTICS"] == "1"
    assert found["environment"]["UNSLOTH_COMPILE_LOCATION"] == str(tmp_path / "cache" / "guardlearn" / "unsloth-1.0")
    assert found["in_the_folder"] == []


def test_the_guides_arguments_and_defaults():
    load, add = inspect.signature(load_model_for_training), inspect.signature(add_lora_adapters)
    assert {name: each.default for name, each in load.parameters.items()} == {
        "model_name": "unsloth/llama-3-8b-Instruct", "max_seq_length": 4096, "load_in_4bit": True,
    }  # fmt: skip
    assert [(name, each.default) for name, each in add.parameters.items()][1:3] == [("r", 16), ("lora_alpha", 16)]


def test_the_plain_backend_offers_what_the_protocol_says():
    from guardlearn.training import plain

    for name in ("load_base", "add_adapters"):
        wanted = list(inspect.signature(getattr(backends.Backend, name)).parameters)[1:]
        assert list(inspect.signature(getattr(plain, name)).parameters) == wanted
