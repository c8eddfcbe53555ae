"""The README holds: its figures are the measured ones, its programs run."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import guardlearn
from guardlearn import ArtifactDAG, ArtifactStatus, Verdict

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", re.sub(r"^````\n.*?^````$", "", README, flags=re.S | re.M), re.S | re.M)


def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "prove" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHOWN = "ablations collecting gpu rounds sandbox servers serving training tutorial"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in SHOWN.split())])
def test_what_is_shown_is_the_evidence(page):
    module = figures()
    text = (ROOT / page).read_text(encoding="utf-8")
    assert page in module.PAGES and len(module.PAGES) == 10
    for name, render in module.PAGES[page].items():
        begin, end = module.comments(name)
        assert text.split(begin)[1].split(end)[0] == render()


def proofs():
    text = (ROOT / "prove" / "run.py").read_text(encoding="utf-8")
    return re.findall(r'"(\w+)"', re.search(r"^PROOFS = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)[1])


def test_the_guides_table_is_true():
    """Every function of the README's table loads; every command and option in it exists."""
    import typer.main

    from guardlearn.cli import app

    table = README.split("| guide | function | command |")[1].split("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    assert [row[1].split()[0] for row in rows] == list("23456789")
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row[2])]
    assert len(names) > 15 and all(getattr(guardlearn, name) for name in names)
    commands = typer.main.get_command(app).commands
    for command, options in re.findall(r"`guardlearn ([a-z]+)([^`]*)`", table):
        known = {name for option in commands[command].params for name in option.opts}
        assert set(re.findall(r"--[a-z-]+", options)) <= known


def test_every_file_of_the_tree_is_there():
    tree = README.split("src/guardlearn/\n")[1].split("```")[0]
    names = [name for line in tree.splitlines() for name in re.findall(r"\b[a-z_]+(?:\.py|/)", line[:28])]
    assert len(names) > 20
    assert [name for name in names if not (ROOT / "src" / "guardlearn" / name).exists()] == []


def test_every_proof_on_file_held():
    files = sorted((ROOT / "docs" / "evidence").glob("*.json"))
    assert {file.stem for file in files} == set(proofs())
    assert [file.stem for file in files if json.loads(file.read_text())["holds"] is not True] == []


@pytest.mark.slow
def test_the_ten_line_program_runs(tmp_path, tiny_model, warm):
    shutil.copy(ROOT / "examples" / "log.jsonl", tmp_path)
    program = BLOCKS[0]
    assert len([line for line in program.splitlines() if line]) <= 10
    (tmp_path / "program.py").write_text(program.replace('"demo"', repr(str(tiny_model))))
    done = subprocess.run([warm.python, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"221 attempts read\nbefore:\n.*\nafter:\n.*\n", done.stdout, re.DOTALL)
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_exists_with_its_options(page):
    import typer.main

    from guardlearn.cli import app

    commands = typer.main.get_command(app).commands
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for line in re.findall(r"^(?:\$ )?guardlearn (.+)", "".join(blocks), re.MULTILINE):
        name, *words = line.split()
        assert name in commands or name == "--help", line
        asked = [commands[name], *getattr(commands[name], "commands", {}).values()]
        known = {option for each in asked for one in each.params for option in (*one.opts, *one.secondary_opts)}
        for option in re.findall(r"(?<=\s)--[a-z-]+", re.sub(r"'[^']*'", "", " ".join(["", *words]))):
            assert option in known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target
