"""From a log to an adapter: the guide's section 9 in a ten-line file, on a database filled by `guardlearn import`."""

import json
import shutil
import subprocess
import textwrap

import pytest

from guardlearn import ArtifactDAG, Side, run_training_pipeline
from guardlearn.adapters import adapter_digest, read_manifest
from guardlearn.errors import LeakageError, ModelError, NoTracesError, UsageError

WORDS = "river stone cloud ember willow harbor lantern meadow copper thistle granite orchard".split()


def lines():
    for number, word in enumerate(WORDS):
        spec = f"Write a function about the {word} that counts every {WORDS[number - 1]} seen in week {number}"
        session = {"prompt": spec, "session_id": f"s{number}", "family": word}
        yield session | {"answer": f"def {word}(): pass", "passed": False, "error": "no docstring", "at": number * 10}
        yield session | {
            "answer": f'def {word}():\n    """Return it."""', "passed": True, "error": "", "at": number * 10 + 1,
        }  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory, warm):
    folder = tmp_path_factory.mktemp("imported")
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
    fields = "spec=prompt,artifact=answer,accepted=passed,feedback=error,chain=session_id,time=at,group=family"
    command = [warm.python, "-m", "guardlearn", "import", "log.jsonl", "--into", "runs.db", "--map", fields]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "runs.db"


@pytest.fixture
def db(imported, tmp_path):
    return shutil.copy(imported, tmp_path / "runs.db")


@pytest.mark.slow
def test_the_guides_pipeline_runs_from_a_ten_line_file(db, tiny_model, warm):
    program = textwrap.dedent(f"""
        from guardlearn import ArtifactDAG, Side, run_training_pipeline

        if __name__ == "__main__":
            dag = ArtifactDAG.load("runs.db")
            model, tokenizer = run_training_pipeline(
                dag,
                model_name={str(tiny_model)!r},
                filter_policy="refinement",
                output_dir="./codebase_specialist",
            )
            print(type(model).__name__, tokenizer.eos_token)
    """)
    assert len(program.strip().splitlines()) <= 11
    (db.parent / "train.py").write_text(program)
    done = subprocess.run([warm.python, "train.py"], cwd=db.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PeftModelForCausalLM", "<|im_end|>"]
    out = db.parent / "codebase_specialist"
    manifest = read_manifest(out / "adapter")
    assert manifest["predicate"] == "refinement()"
    assert adapter_digest(out / "adapter") == adapter_digest(out / "job" / "adapter")
    rows = [json.loads(line) for line in (out / "job" / "train.jsonl").read_text().splitlines()]
    assert {row["weight"] for row in rows} == {0.5}


@pytest.mark.slow
def test_what_the_pipeline_returns_is_measured_with_its_own_prompts_and_not_on_its_own_data(
    db, tiny_model, warm_starts
):
    from guardlearn import evaluate_improvement, extract_traces

    with ArtifactDAG.load(db) as dag:
        model, tokenizer = run_training_pipeline(dag, str(tiny_model), str(db.parent / "out"))
        traces = extract_traces(dag, sides=[Side.TRAIN]).traces
    learned = traces[0].item.specification
    how = {"num_samples": 1, "r_max": 2, "max_new_tokens": 4}
    found = evaluate_improvement(model, model, tokenizer, ["Sing of 7 rivers"], lambda text: len(text) % 2 == 0, **how)
    assert found["evidence"]["leakage"] == "no text and no group of the adapter's training"
    with pytest.raises(LeakageError, match="was trained on"):
        evaluate_improvement(model, model, tokenizer, [learned], lambda text: True, **how)


def test_no_traces_is_found_out_before_any_model_is_looked_for(db):
    with ArtifactDAG.load(db) as dag, pytest.raises(NoTracesError) as caught:
        run_training_pipeline(dag, "no/such-model", str(db.parent / "out"), "high_value")
    assert caught.value.alternatives["refinement"] == len(WORDS)
    assert not (db.parent / "out").exists()


def test_a_mistyped_policy_never_trains_on_another_one(db, tiny_model):
    with ArtifactDAG.load(db) as dag, pytest.raises(UsageError, match=r"refinment.*refinement"):
        run_training_pipeline(dag, str(tiny_model), str(db.parent / "out"), "refinment")


def test_publishing_never_overwrites_what_is_no_adapter(tmp_path):
    from guardlearn.adapters import publish

    (tmp_path / "adapter").mkdir()
    with pytest.raises(ModelError, match="is no adapter folder"):
        publish(tmp_path / "job", tmp_path / "adapter")
    with pytest.raises(ModelError, match="is no adapter folder"):
        read_manifest(tmp_path / "adapter")


@pytest.mark.slow
def test_run_trains_and_measures_in_one_command(db, tiny_model, tmp_path, warm):
    (tmp_path / "rule.py").write_text(
        "from guardlearn import ArtifactStatus, Verdict\n"
        "def rule(artifact, context):\n"
        "    if len(artifact) % 2:\n"
        "        return Verdict(status=ArtifactStatus.ACCEPTED)\n"
        "    return Verdict(status=ArtifactStatus.REJECTED, feedback='odd lengths only', cause='length')\n"
    )
    specs = [{"id": f"h{n}", "specification": f"Sing of {n} {w}s", "group": f"h{n}"} for n, w in enumerate(WORDS[:6])]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(spec) + "\n" for spec in specs))
    command = [
        warm.python, "-m", "guardlearn", "run", str(db), "--model", str(tiny_model), "-o", "out", "--max-steps", "2",
        "--specs", "held.jsonl", "--guard", "rule:rule", "--rmax", "2", "--max-new-tokens", "16", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    evidence = json.loads(done.stdout)["evidence"]
    assert evidence == json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert (evidence["specs"], evidence["groups"]) == (6, 6)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Three chains that became training data" in page and "Training loss by step" in page
    with ArtifactDAG.load(db) as dag:
        assert [reading.purpose for reading in dag.readings()] == ["evaluate"]
    leak = [warm.python, "-m", "guardlearn", "evaluate", "leak.jsonl", "--model", str(tiny_model), "--adapter"]
    first = next(lines())
    (tmp_path / "leak.jsonl").write_text(json.dumps({"id": "x", "specification": first["prompt"]}) + "\n")
    refused = subprocess.run(
        [*leak, "out/adapter", "--guard", "rule:rule", "-o", "out2"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1 and "was trained on" in refused.stderr
