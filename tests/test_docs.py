"""The README holds: its figures are the measured ones, its programs run."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from guardlearn import ArtifactDAG, ArtifactStatus, Verdict

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "prove" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_those_of_the_evidence():
    module = figures()
    assert README.split(module.BEGIN)[1].split(module.END)[0] == module.render()


def test_every_proof_on_file_held():
    files = sorted((ROOT / "docs" / "evidence").glob("*.json"))
    assert {"demo", "demo_swapped", "clean_demo", "pairs"} <= {file.stem for file in files}
    assert [file.stem for file in files if json.loads(file.read_text())["holds"] is not True] == []


def test_the_ten_line_program_runs(tmp_path, tiny_model):
    words = "river stone cloud ember willow harbor lantern meadow copper thistle granite orchard".split()
    with (tmp_path / "log.jsonl").open("w") as log:
        for number, word in enumerate(words):
            line = {
                "prompt": f"Tell the {word} how the {words[number - 1]} was lost in year {number}",
                "session_id": word,
            }
            log.write(json.dumps(line | {"answer": word, "passed": False, "error": f"say {word} loudly"}) + "\n")
            log.write(json.dumps(line | {"answer": word.upper(), "passed": True, "error": ""}) + "\n")
    program = BLOCKS[0]
    assert len(program.strip().splitlines()) <= 10
    (tmp_path / "program.py").write_text(program.replace('"demo"', repr(str(tiny_model))))
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "24 attempts, 0 known before\n"
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()


def test_an_agent_records_in_five_lines(tmp_path):
    def my_agent(specification, history):
        return "SELECT 1" if history else "SELEC 1"

    def my_guard(artifact):
        if artifact.startswith("SELECT"):
            return Verdict(status=ArtifactStatus.ACCEPTED)
        return Verdict(status=ArtifactStatus.REJECTED, feedback="no such statement")

    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        names = {"dag": dag, "specification": "one row", "my_agent": my_agent, "my_guard": my_guard}
        exec(BLOCKS[1], names)
        items = list(dag.extract(order_by="seq"))
    assert [item.status.value for item in items] == ["rejected", "accepted"]
    assert [entry.feedback for entry in items[1].history] == ["no such statement"]


def test_every_command_of_the_readme_exists():
    known = subprocess.run([sys.executable, "-m", "guardlearn", "--help"], capture_output=True, text=True, check=True)
    for command in re.findall(r"^guardlearn (\w+)", README, re.MULTILINE):
        assert f" {command} " in known.stdout
