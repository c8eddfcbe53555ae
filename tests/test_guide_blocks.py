"""The guide's own code on our names: only its import lines are changed.

Usage blocks run as they stand. The guide's own bodies of sections 8 and 9 run too, with our functions in place of those
they call, so that whoever copied them from the guide finds them working.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import guardlearn
from guardlearn import ArtifactDAG, ArtifactStatus, RepositoryItem, Source

GUIDE = (Path(__file__).parent / "data" / "learning_loop_guide.md").read_text(encoding="utf-8")
SECTIONS = {
    number: re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for number, text in re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## )", GUIDE, re.DOTALL | re.MULTILINE)
}
OURS = "from guardlearn import *\n"


def with_our_imports(block: str) -> str:
    """Return a block with each import of the guide's libraries replaced by ours, and nothing else changed."""
    lines = []
    for line in block.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if re.match(r"\s*(from (atomicguard|unsloth|trl|transformers|datasets)\b.*|import torch)$", line):
            line = f"{indent}from guardlearn import ArtifactDAG" if "ArtifactDAG" in line else f"{indent}pass"
        lines.append(line)
    return OURS + "\n".join(lines) + "\n"


def fill(dag: ArtifactDAG, count: int = 12) -> None:
    words = "river stone cloud ember willow harbor lantern meadow copper thistle granite orchard".split()
    for number, word in enumerate(words[:count]):
        given = {"specification": f"Tell the {word} how the {words[number - 1]} was lost in year {number}"}
        reject = {"artifact": word, "status": ArtifactStatus.REJECTED, "feedback": f"say {word} loudly"}
        dag.append(RepositoryItem(id=f"r{number}", group=f"g{number}", **given, **reject))
        accept = {"artifact": word.upper(), "status": ArtifactStatus.ACCEPTED, "source": Source.GENERATOR}
        dag.append(RepositoryItem(id=f"a{number}", parent_id=f"r{number}", group=f"g{number}", **given, **accept))


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        fill(dag)
        yield dag


def test_the_blocks_are_found_where_the_guide_has_them():
    assert [len(SECTIONS[str(number)]) for number in range(1, 10)] == [0, 1, 2, 1, 1, 2, 1, 1, 1]


def test_section_6_usage(dag):
    names = {"dag": dag}
    exec(with_our_imports(SECTIONS["6"][1]), names)
    rows = names["training_data"]
    kept = {item.id for item in dag.extract(guardlearn.refinement()) if item.side is guardlearn.Side.TRAIN}
    assert {row["metadata"]["item_id"] for row in rows} == kept
    assert set(rows[0]) == {"prompt", "completion", "text", "metadata"}
    assert set(rows[0]["metadata"]) == {"source", "action_pair_id", "workflow_id", "retry_count", "item_id"}


@pytest.mark.slow
def test_section_9_usage_runs_as_it_stands(tmp_path, tiny_model, warm):
    """The `__main__` part alone, with our pipeline: default model name, policy and folder as the guide writes them."""
    usage = SECTIONS["9"][0].split("# Usage\n")[1]
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "llama-3-8b-Instruct").symlink_to(tiny_model)  # a local folder of that name is used
    with ArtifactDAG.create(tmp_path / "path" / "to" / "repository") as dag:
        fill(dag)
    program = f"{with_our_imports(usage)}\n    print(type(model).__name__, tokenizer.eos_token)\n"
    (tmp_path / "usage.py").write_text(program)
    done = subprocess.run([warm.python, "usage.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["PeftModelForCausalLM", "<|im_end|>"]
    assert (tmp_path / "codebase_specialist" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_section_9_the_guides_own_pipeline_runs_on_our_functions(dag, tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    exec(with_our_imports(SECTIONS["9"][0]), names)
    model, tokenizer = names["run_training_pipeline"](
        dag, model_name=str(tiny_model), output_dir="trained", filter_policy="generator"
    )
    said = capsys.readouterr().out
    rows = guardlearn.extract_training_data(dag, guardlearn.Φ_generator_only(dag))
    assert f"Found {len(rows)} training examples" in said and "Training complete!" in said
    assert (tmp_path / "trained" / "adapter_config.json").is_file()
    assert list((tmp_path / "trained").glob("checkpoint-*"))  # the guide trains and saves in one folder
    trained = [name for name, weight in model.named_parameters() if "lora_B" in name and bool(weight.any())]
    assert trained and tokenizer.chat_template


def test_section_8_the_guides_own_evaluation_runs_on_our_functions(tiny_model):
    names = {}
    exec(with_our_imports(SECTIONS["8"][0].split("def generate(")[0]), names)  # with our `generate`
    model, tokenizer = guardlearn.load_model_for_training(str(tiny_model), 512, load_in_4bit=False)
    monkey = {"generate": lambda *arguments: guardlearn.generate(*arguments, max_new_tokens=4)}
    names |= monkey
    found = names["evaluate_improvement"](
        model, model, tokenizer, ["a", "b"], lambda text: SimpleNamespace(passed=bool(text)), num_samples=2
    )
    ours = guardlearn.evaluate_improvement(
        model, guardlearn.add_lora_adapters(guardlearn.load_model_for_training(str(tiny_model), 512)[0]), tokenizer,
        ["a", "b"], lambda text: SimpleNamespace(passed=bool(text)), num_samples=2, r_max=1, max_new_tokens=4,
    )  # fmt: skip
    assert set(found) <= set(ours)
    assert json.dumps(ours)


def test_section_2_the_repository_answers_the_guides_query(dag):
    accepted = list(dag.extract(filter=lambda r: r.status == ArtifactStatus.ACCEPTED, order_by="created_at"))
    assert [r.id for r in accepted] == [f"a{number}" for number in range(12)]
    for r in accepted:
        chain = guardlearn.get_provenance_chain(r, dag)
        assert [each.id for each in chain] == [r.parent_id, r.id]
        assert (r.spec, r.artifact_content) == (r.specification, r.artifact)
        assert [entry["feedback"] for entry in r.feedback_history] == [chain[0].feedback]
    with pytest.raises(guardlearn.GuardlearnError, match="two names of one argument"):
        dag.extract(guardlearn.refinement(), filter=guardlearn.refinement())


def test_section_3_the_guides_own_renderers_read_our_items(dag):
    names = {}
    exec("".join(map(with_our_imports, SECTIONS["3"])), names)
    item = dag.get_item("a3")
    assert "say ember loudly" in names["format_full_example"](item)
    assert names["format_alpaca"](item)["output"] == "EMBER"
