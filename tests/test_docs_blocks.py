"""Every block of README and docs is true: it runs here as it stands, or a test that is named runs it.

What a block needs and no test has (a server, a GPU, another machine) is named where it is swapped for something else.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardlearn import ArtifactDAG, ArtifactStatus, GuardContext, Side, Specification, load_guard, predicates, settings
from guardlearn.cli import app
from guardlearn.collect import CollectConfig
from guardlearn.generators import ReplayGenerator
from guardlearn.loop.config import read_settings
from guardlearn.prompts import Renderer
from shown import HELD, PAGES, ROOT, Block, Excused, block, blocks, name

TESTS = Path(__file__).parent


# -- each block is accounted for


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_held_by_something(page):
    shown, held = blocks(page), HELD.get(name(page), [])
    assert [(each.line, each.opening) for each in shown if not _begins(each, held, shown)] == []
    assert len(shown) == len(held), f"{name(page)} shows {len(shown)} blocks, tests/shown.py knows {len(held)}"


def _begins(each: Block, held: list, shown: list[Block]) -> bool:
    place = shown.index(each)
    return place < len(held) and each.opening.startswith(held[place][0])


def test_no_page_is_held_that_is_not_there_and_none_hides_in_a_folder():
    assert set(HELD) <= {name(page) for page in PAGES}
    assert [block for page in (ROOT / "docs").glob("*/*.md") for block in blocks(page)] == []


HOLDERS = sorted(
    {
        holder
        for known in HELD.values()
        for _, by in known
        if not isinstance(by, Excused)
        for holder in ((by,) if isinstance(by, str) else by)
    }
)


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_holds_a_block_is_there(holder):
    file, _, test = holder.partition("::")
    path = (ROOT if file.startswith("prove/") else TESTS) / file
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert not test or test in {each.name for each in body if isinstance(each, ast.FunctionDef)}
    if file.startswith("prove/") and file != "prove/run.py":
        assert json.loads((ROOT / "docs" / "evidence" / f"{path.stem}.json").read_text())["holds"] is True


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_command_of_ours_is_excused_and_each_is_named_by_its_test(page):
    for each, (_, by) in zip(blocks(page), HELD.get(name(page), []), strict=True):
        if isinstance(by, Excused):
            assert each.commands == [] and by.reason
            continue
        files = {holder.partition("::")[0] for holder in ((by,) if isinstance(by, str) else by)}
        sources = "".join((TESTS / file).read_text(encoding="utf-8") for file in files if "/" not in file)
        if not files & {"test_docs_blocks.py", "test_tutorial.py", "test_first_adapter.py"}:
            for command in each.commands:
                assert re.search(rf"\b{command.split()[1]}\b", sources), f"{command}: {files}"


# -- blocks that run here


class Folder:
    """A working folder in which the commands of pages are typed, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")

    def lines(self, name: str, values: Iterable[object]) -> None:
        self.write(name, "".join(json.dumps(value) + "\n" for value in values))

    def run(self, each: Block, swapped: Mapping[str, str] | None = None, *more: str) -> list[str]:
        """Type a block's commands as they stand.

        Args:
            each: the block.
            swapped: what stands on the page → what stands in for it here.
            more: options that make it shorter, or answer what a person would be asked.

        Returns:
            What each command said, on both streams.
        """
        assert each.commands
        return [self.typed(command, swapped, *more) for command in each.commands]

    def typed(self, command: str, swapped: Mapping[str, str] | None = None, *more: str) -> str:
        """Type one command; return what it said, on both streams."""
        for shown, ours in (swapped or {}).items():
            command = command.replace(shown, ours)
        command, _, into = command.partition(" > ")
        done = CliRunner().invoke(app, [*shlex.split(command)[1:], *more])
        assert done.exit_code == 0, (command, done.output, done.exception)
        if into:
            self.write(into, done.stdout)
        return done.output


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Folder(tmp_path)


TASKS = [f"Ask {who} for {what}." for who in ("Ada", "Bob", "Cy", "Di") for what in ("tea", "rice", "a pen", "time")]


@pytest.fixture
def project(folder) -> Folder:
    """Specifications, a guard under the names that pages give it, and answers in place of a server."""
    folder.write("guards.py", block("guards.md", "# guards.py").text)
    folder.write("guardlearn.toml", TABLES)
    folder.lines("specs.jsonl", ({"id": f"s{n}", "specification": text, "group": text} for n, text in enumerate(TASKS)))
    folder.lines(
        "answers.jsonl",
        ({"specification": text, "answers": [*"abcde"[: n % 5], f"{text} please"]} for n, text in enumerate(TASKS)),
    )
    return folder


TABLES = """
[guards.tests]
kind = "function"
function = "guards:check"

[audit]
allow = ["cross"]  # this guard looks at no task
"""
SERVERS = {f"openai --model {model}": "replay --model answers.jsonl" for model in ("my-model", "qwen3")}


@pytest.mark.slow
def test_commands_over_a_small_repository(project):
    collected, audited = project.run(block("README.md", "guardlearn collect"), SERVERS)
    assert "16 chains" in collected and "degenerate" in audited
    with ArtifactDAG.load("runs.db") as dag:
        before = [item.id for item in dag.extract(predicates.everything())]
        solved = [item for item in dag.extract(predicates.refinement()) if item.facts.rejected_ancestors >= 3]
        rejected = [item.id for item in dag.extract(predicates.status("rejected"))]
    project.run(block("collecting.md", "guardlearn collect"), SERVERS | {"guards:check": "tests"})
    with ArtifactDAG.load("runs.db") as dag:
        assert [item.id for item in dag.extract(predicates.everything())] == before  # it goes on, and finds all done
    project.run(block("README.md", "guardlearn extract"))
    rows = (project.path / "traces.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 * sum(item.side in (Side.TRAIN, Side.VALIDATION) for item in solved) > 0

    first, changed = (
        each for each in blocks(ROOT / "docs" / "auditing.md") if each.opening.startswith("guardlearn audit")
    )
    project.run(first)
    project.write("guards.py", block("guards.md", "# guards.py").text.replace("say please", "please say please"))
    sys.modules.pop("guards")
    project.typed(block("README.md", "guardlearn collect").commands[0], SERVERS)  # another guard begins anew
    marked, _, judged = project.run(changed)
    assert f"stale: {len(before)} items are marked" in marked and judged
    with ArtifactDAG.load("runs.db") as dag:
        assert dag.count(predicates.fresh()) == 2 * len(before)

    with ArtifactDAG.load("runs.db") as dag:
        seen = [item for item in dag.extract(predicates.refinement()) if item.side is Side.TRAIN][:2]
        for item in seen:
            dag.append_event(item.id, "review", actor="ann", reason="as it should be")
    project.run(block("browser.md", "guardlearn extract"))
    assert len((project.path / "reviewed.jsonl").read_text(encoding="utf-8").splitlines()) == 2 * len(seen) == 4

    project.write("answer.txt", "Tea, please.")
    unsolved = [item for item in rejected if TASKS[4] in item] or rejected[-1:]
    project.run(block("auditing.md", "guardlearn amend"), {"5f0c…": unsolved[0]}, "--from", "answer.txt")

    project.run(block("importers.md", "guardlearn export"))
    with ArtifactDAG.load("other.db") as copy, ArtifactDAG.load("runs.db") as dag:
        assert list(copy.ids(predicates.everything())) == list(dag.ids(predicates.everything()))
    *_, redacted, explained = project.run(block("repository.md", "guardlearn verify"), {" a1 ": f" {rejected[0]} "})
    assert "SELECT" in explained and redacted
    with ArtifactDAG.load("runs.db") as dag, ArtifactDAG.load("runs-copy.db") as kept:
        assert (dag.get_item(rejected[0]).artifact, kept.get_item(rejected[0]).artifact) == ("", "a")


def test_an_evaluation_is_reported(project):
    project.typed("guardlearn evaluate specs.jsonl --guard tests --generator replay --model answers.jsonl -o measured")
    project.run(block("reports.md", "guardlearn report measured"))
    page = project.path / "page"
    assert {path.name for path in page.iterdir()} == {"report.html", "report.md", "report.json"}
    comment = (project.path / "comment.md").read_text(encoding="utf-8")
    assert comment == (page / "report.md").read_text(encoding="utf-8") and "first" in comment


def test_tables_are_read(folder):
    folder.write("guardlearn.toml", block("collecting.md", "[collect]").text)
    found = settings.read().table("collect", CollectConfig)
    assert (found.in_flight, found.budget_tokens, found.budget_seconds) == (64, 2_000_000, 3600)
    assert set(settings.read().tables["collect"]) == set(CollectConfig.__struct_fields__)
    folder.write("guardlearn.toml", block("rounds.md", "[loop]").text)
    rounds = read_settings(settings.read())
    assert (rounds.loop.guard, rounds.loop.weighting.replay, rounds.promotion.alpha) == ("checked", 1.0, 0.05)


def test_collecting_from_python(project):
    names = {
        "specifications": [Specification(id=f"s{n}", specification=text, group=text) for n, text in enumerate(TASKS)],
        "generator": ReplayGenerator.from_file(Path("answers.jsonl")),
        "guard": load_guard("guards:check"),
        "renderer": Renderer(),
    }
    with ArtifactDAG.create("runs.db") as dag:
        exec(block("collecting.md", "from guardlearn.collect").text, names | (made := {"dag": dag}), made)
        assert made["summary"].chains == len(TASKS) and dag.count(predicates.refinement()) > 0


def test_predicates_as_the_concepts_show_them():
    names = {}
    exec(block("concepts.md", "from guardlearn import parse").text, names)
    assert repr(names["chosen"]) == 'refinement() & source("generator") & retries(at_least=3)'


def test_a_guard_as_a_reward():
    names = {}
    exec(block("training.md", "from guardlearn import guard_reward").text, names)
    task = {"signature": "f(x: int) -> int", "cases": [[[1], 1]]}
    assert names["reward"](["p"], ["no code"], specification=["s"], metadata=[task]) == [-1.0]


def test_the_program_that_imports_a_store(folder, capsys):
    shutil.copytree(TESTS / "data" / "stores" / "fs_2_39_1", folder.path / "runs")
    exec(block("atomicguard.md", "from guardlearn.dag").text, {})
    new, _, rest = capsys.readouterr().out.partition(" ")
    assert int(new) > 10 and "model" in rest


def test_what_an_import_of_a_hostile_store_says(folder):
    shutil.copytree(TESTS / "data" / "stores" / "fs_hostile", folder.path / "fs_hostile")
    shown = block("atomicguard.md", "$ guardlearn import")
    said = " ".join(folder.run(shown)[0].split())
    for line in shown.text.splitlines()[1:]:
        if not set(line) & set("┏┃│└┡"):
            assert " ".join(line.split()) in said


def test_the_line_of_the_log_is_one_of_the_log():
    shown = json.loads(block("logs.md", '{"session"').text)
    (first, *_) = (ROOT / "examples" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    stored = json.loads(first)
    assert list(shown) and set(shown) == set(stored)
    assert all(shown[key] == stored[key] for key in ("session", "family", "prompt", "ok"))
    assert stored["error"].startswith(shown["error"])


@pytest.mark.slow
@pytest.mark.usefixtures("warm_starts")
def test_a_log_becomes_a_measured_adapter(folder, tiny_model):
    shutil.copy(ROOT / "examples" / "log.jsonl", folder.path)
    for program in ("# style.py", "# held_out.py"):
        folder.write(program.removeprefix("# "), block("logs.md", program).text)
    tiny = {"--model demo": f"--model {tiny_model}"}
    folder.run(block("logs.md", "guardlearn import"))
    assert block("README.md", "guardlearn import").commands[0] == block("logs.md", "guardlearn import").commands[0]
    plain, chosen, _ = folder.run(block("logs.md", "guardlearn stats"))
    assert "refinement" in plain and "retries" in chosen and (folder.path / "rows.jsonl").stat().st_size
    folder.run(block("logs.md", "guardlearn train"), tiny, "--max-steps", "2")
    runpy.run_path("held_out.py")
    asked = [json.loads(line) for line in (folder.path / "held_out.jsonl").read_text().splitlines()]
    with ArtifactDAG.load("runs.db") as dag:
        learned = {item.specification for item in dag.extract(predicates.side("train"))}
    assert asked and not learned & {each["specification"] for each in asked}
    folder.run(block("logs.md", "python held_out.py"), tiny, "--rmax", "1", "--max-new-tokens", "4")
    evidence = json.loads((folder.path / "measured" / "evidence.json").read_text())
    assert (evidence["specs"], evidence["groups"]) == (len(asked), len({each["group"] for each in asked}))
    assert (folder.path / "measured" / "report.html").is_file()
    with ArtifactDAG.load("runs.db") as dag:
        assert [reading.purpose for reading in dag.readings()] == ["evaluate"]


def test_the_guard_of_the_log_tells_its_answers_apart(folder):
    """It rejects what the log's own guard rejected for the style, and of what that accepted nearly nothing."""
    folder.write("style.py", block("logs.md", "# style.py").text)
    guard = load_guard("style:check")
    accepted = []
    for line in (ROOT / "examples" / "log.jsonl").read_text(encoding="utf-8").splitlines():
        stored = json.loads(line)
        verdict = guard(stored["answer"], GuardContext(specification=Specification(id="s", specification="s")))
        assert verdict.status is not ArtifactStatus.PENDING
        if stored["ok"]:
            accepted.append(verdict.passed)
        elif "House style" in stored["error"]:
            assert not verdict.passed and verdict.feedback, stored
    assert len(accepted) == 69 and sum(accepted) >= 65


@pytest.mark.slow
@pytest.mark.usefixtures("warm_starts")
def test_a_job_travels_to_another_machine_and_back(folder, tiny_model, warm):
    """Another folder is the other machine; `trl` trains in place of Unsloth, which needs a GPU."""
    shutil.copy(ROOT / "examples" / "log.jsonl", folder.path)
    folder.run(block("logs.md", "guardlearn import"))
    swapped = {"demo": str(tiny_model), "unsloth": "trl"}
    program = block("gpu-box.md", "# write_job.py").text
    for shown, ours in swapped.items():
        program = program.replace(f'"{shown}"', repr(ours))
    program = program.replace(f"base_model={str(tiny_model)!r}", f"base_model={tiny_model.name!r}")
    exec(program, {})
    box = folder.path / "box"
    shutil.copytree(folder.path / "out" / "job", box / "job")
    shutil.copytree(tiny_model, box / "base")
    shown = block("gpu-box.md", "rsync").text
    (command,) = re.findall(r"^ssh BOX python (.*)$", shown, re.MULTILINE)
    done = subprocess.run([warm.python, *command.split()], cwd=box, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.copytree(box / "job", folder.path / "out" / "job", dirs_exist_ok=True)
    trained = json.loads((folder.path / "out" / "job" / "result.json").read_text())
    folder.run(block("gpu-box.md", "guardlearn train"), {"--model demo": f"--model {tiny_model}", "unsloth": "trl"})
    assert json.loads((folder.path / "out" / "job" / "result.json").read_text()) == trained
    weights = folder.path / "out" / "adapter" / "adapter_model.safetensors"
    kept = weights.read_bytes()
    shutil.rmtree(folder.path / "out" / "adapter")
    exec(block("gpu-box.md", "from pathlib").text, {})
    assert weights.read_bytes() == kept
