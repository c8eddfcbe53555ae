"""`guardlearn init`: what it writes runs as it is written, and it never overwrites."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from guardlearn import ArtifactDAG, settings
from guardlearn.audit import AuditConfig
from guardlearn.cli import main
from guardlearn.cli.from_tests import imported_modules, specifications_of, suite_files
from guardlearn.collect import CollectConfig
from guardlearn.errors import DataError, UsageError
from guardlearn.generators import OpenAISettings
from guardlearn.guards import load_guard, sandbox
from guardlearn.guards.sandbox import SandboxSettings
from guardlearn.types import ArtifactStatus, GuardContext, Specification

KINDS = ("pytest", "json", "command")
CODE = '```python\ndef legs(x: int) -> int:\n    """Return the result."""\n    return x * 4\n```'
EMMA = '```json\n{"title": "Emma", "year": 1815}\n```'
ANSWERS = {
    "pytest": ("legs", [CODE.replace('    """Return the result."""\n', ""), CODE.replace("* 4", "+ 4"), CODE]),
    "json": ("emma", ['{"title": "Emma"}', EMMA.replace("5", "6"), EMMA]),
    "command": ("cache", ["The cache was removed.", "Remove the cache of pages\nNobody used it", "Remove the cache"]),
}
"""By kind: a specification, and two wrong answers and a right one to it."""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return what runs the command line in `tmp_path`, or a folder in it: exit code, stdout and stderr."""

    def command(*words, cwd="."):
        monkeypatch.chdir(tmp_path / cwd)
        monkeypatch.setattr(sys, "argv", ["guardlearn", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    yield command
    for name in ("guards", "check"):  # each project has its own
        sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(tmp_path))]


@pytest.mark.slow
@pytest.mark.skipif(not sandbox.state().works, reason=f"no sandbox works here: {sandbox.state().reason}")
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_project_collects_refines_and_passes_its_audit(run, tmp_path, kind):
    code, out, _ = run("init", "new", "--guard", kind)
    assert code == 0 and out.splitlines()[0] == "cd new"
    name, answers = ANSWERS[kind]
    (tmp_path / "new" / "answers.jsonl").write_text(json.dumps({"specification": name, "answers": answers}))
    specs = tmp_path / "new" / "specs.jsonl"
    lines = [line for line in specs.read_text().splitlines() if json.loads(line)["id"] == name]
    specs.write_text("\n".join(lines))
    (command,) = (line for line in out.splitlines() if " collect " in line)
    words = command.replace("--model demo", "--generator replay --model answers.jsonl").split()[1:]
    code, _, said = run(*words, cwd="new")
    assert code == 0, said
    with ArtifactDAG.load(tmp_path / "new" / "runs.db") as dag:
        items = list(dag.extract(order_by="seq"))
    assert [item.status.value for item in items] == ["rejected", "rejected", "accepted"]
    assert all(item.feedback for item in items[:2]) and items[0].feedback != items[1].feedback
    assert {item.constraints for item in items} == {load_guard("checked").constraints} != {""}
    words = next(line for line in out.splitlines() if " audit " in line).split()[1:]
    code, out, said = run(*words, "--json", cwd="new")
    report = json.loads(out)
    kinds = {each["kind"] for each in report["findings"]}
    # a commit message is checked by its form alone; everything else that does nothing is rejected
    assert (code, kinds) == (0, set()), (said, report["findings"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_the_settings_is_read_the_commented_ones_too(run, tmp_path, kind):
    run("init", "--guard", kind)
    text = (tmp_path / "guardlearn.toml").read_text()
    assert "{" not in text
    written = tomllib.loads(text)
    everything = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    shown = tomllib.loads(everything)
    assert shown != written
    (tmp_path / "support").mkdir()
    (tmp_path / "guardlearn.toml").write_text(everything)
    found = settings.read(tmp_path / "guardlearn.toml")
    tables = {"collect": CollectConfig, "audit": AuditConfig, "openai": OpenAISettings, "sandbox": SandboxSettings}
    for table, into in tables.items():
        values = found.table(table, into)
        for key, value in shown.get(table, {}).items():
            assert getattr(values, key) in (value, tuple(value) if isinstance(value, list) else value)
    for name in shown["guards"]:
        assert load_guard(name, found).name == name


def test_nothing_is_overwritten_unless_asked(run, tmp_path):
    (tmp_path / "guards.py").write_text("mine")
    code, _, said = run("init")
    assert code == 2 and "guards.py already; nothing was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["guards.py"]
    code, _, _ = run("init", "--force")
    assert code == 0 and "def style" in (tmp_path / "guards.py").read_text()
    code, _, said = run("init", "--guard", "cargo")
    assert code == 2 and "allowed are: pytest, json, command" in said
    code, _, said = run("init", "other", "--guard", "json", "--tests", "tests")
    assert code == 2 and "--tests needs --guard pytest" in said and not (tmp_path / "other").exists()


def test_json_says_what_was_written(run, tmp_path):
    code, out, _ = run("init", "a b", "--guard", "command", "--json")
    told = json.loads(out)
    assert code == 0 and told["next"][0] == "cd 'a b'"
    written = [
        path.relative_to(tmp_path / "a b").as_posix() for path in (tmp_path / "a b").rglob("*") if path.is_file()
    ]
    assert sorted(written) == told["files"]


# -- from a suite of one's own


SUITE = {
    "test_slug.py": '"""Write slug(text)."""\nfrom shop import slug\ndef test_it():\n    assert slug("A b") == "a-b"\n',
    "price_test.py": "import shop\nfrom helpers import near\n\ndef test_price():\n    assert near(shop.price(2), 4)\n",
    "deep/test_slug.py": "import shop, pytest\n\ndef test_it(coin):\n    assert shop.flip(coin) == 'tail'\n",
    "helpers.py": "def near(a, b):\n    return abs(a - b) < 1e-9\n",
    "conftest.py": "import pytest\n\n@pytest.fixture\ndef coin():\n    return 'head'\n",
    "__pycache__/test_old.py": "broken(",
}


def suite(folder: Path, files=SUITE) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not sandbox.state().works, reason=f"no sandbox works here: {sandbox.state().reason}")
def test_each_test_file_becomes_a_specification_that_brings_its_tests(run, tmp_path):
    suite(tmp_path / "suite")
    code, _, said = run("init", "new", "--tests", "suite")
    assert code == 0 and "import 'shop'" in said
    assert not (tmp_path / "new" / "tests").exists()
    specs = {line["id"]: line for line in map(json.loads, (tmp_path / "new" / "specs.jsonl").read_text().splitlines())}
    assert set(specs) == {"slug", "price", "deep/slug"}
    assert specs["slug"]["specification"] == "Write slug(text)."
    untold = specs["price"]["specification"]
    assert "module `shop`" in untold and SUITE["price_test.py"].strip() in untold
    assert set(specs["price"]["metadata"]["files"]) == {"price_test.py", "helpers.py", "conftest.py"}
    guard = load_guard("tests", settings.read(tmp_path / "new" / "guardlearn.toml"))
    for name, right, wrong in (
        ("slug", "def slug(text):\n    return text.lower().replace(' ', '-')\n", "def slug(text):\n    return text\n"),
        ("price", "def price(count):\n    return count * 2.0\n", ""),
        ("deep/slug", "def flip(coin):\n    return 'tail'\n", ""),
    ):
        context = GuardContext(specification=Specification(**specs[name]))
        assert guard(right, context).status is ArtifactStatus.ACCEPTED, guard(right, context).feedback
        assert not wrong or guard(wrong, context).status is ArtifactStatus.REJECTED


def test_a_suite_that_does_not_say_what_it_tests_keeps_the_usual_name(run, tmp_path):
    suite(tmp_path / "suite", {"test_a.py": "import a\n", "test_b.py": "import b.c\n"})
    code, _, said = run("init", "new", "--tests", "suite")
    assert code == 0 and "have no import in common" in said
    assert 'module = "answer"' in (tmp_path / "new" / "guardlearn.toml").read_text()
    assert imported_modules({"test_a.py": "import b.c\n", "test_b.py": "from b.c import d\n"}) == {"b.c"}
    assert imported_modules({"test_a.py": "import a\n", "a.py": ""}) == set()


def test_a_folder_that_is_no_suite_is_one_line_and_nothing_is_written(run, tmp_path):
    for name, files, message in (
        ("none", None, "there is no folder none"),
        ("empty", {"notes.txt": "x"}, "there is no test_"),
        ("broken", {"test_x.py": "def ("}, "test file test_x.py is no valid Python"),
        ("large", {"test_x.py": "import a", "data.csv": "x" * (1 << 20 | 1)}, "more than 1 MiB"),
    ):
        if files is not None:
            suite(tmp_path / name, files)
        code, _, said = run("init", "new", "--tests", name)
        assert code in (1, 2) and message in said and "Traceback" not in said
        assert not (tmp_path / "new").exists()
    (tmp_path / "broken" / "data.bin").write_bytes(b"\xff")
    (tmp_path / "broken" / "test_x.py").write_text("import a")
    with pytest.raises(DataError, match="no UTF-8 text"):
        suite_files(tmp_path / "broken")
    with pytest.raises(UsageError, match="no test_"):
        specifications_of({}, "answer")


def test_templates_are_in_the_package(tmp_path):
    """What `init` writes is package data: every file of the project folders is named by the packaging."""
    root = Path(__file__).parents[1]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["guardlearn"]
    package = root / "src" / "guardlearn"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in (package / "cli" / "projects").rglob("*") if path.is_file()}
    assert files and files <= packed
