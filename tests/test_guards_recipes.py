"""docs/guards.md: every table on the page loads, and each recipe tells right from wrong from a broken checker."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import msgspec
import pytest

from guardlearn import ArtifactStatus, GuardContext, Specification, load_guard, settings
from guardlearn.guards import sandbox

pytestmark = pytest.mark.skipif(not sandbox.state().works, reason=f"no sandbox works here: {sandbox.state().reason}")

ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING
PAGE = (Path(__file__).parents[1] / "docs" / "guards.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
LINES = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]
SPEC = Specification(id="s", specification="a task")
TESTS = "from answer import f\n\ndef test_f():\n    assert f(2) == 4\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with everything on the page in it."""
    (tmp_path / "guardlearn.toml").write_text("\n".join(BLOCKS), encoding="utf-8")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_f.py").write_text(TESTS)
    (tmp_path / "order.json").write_text('{"type": "object", "required": ["id"]}')
    function = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[1]
    (tmp_path / "guards.py").write_text(function)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def judged(name, artifact, spec=SPEC):
    return load_guard(name)(artifact, GuardContext(specification=spec))


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed here")


def test_every_table_loads(project):
    names = {name for block in BLOCKS for name in tomllib.loads(block).get("guards", {})}
    assert len(names) >= 12
    versions = {load_guard(name).version for name in names if name != "cargo" or (Path.home() / ".rustup").exists()}
    assert len(versions) >= len(names) - 1
    assert settings.read().tables["sandbox"] == {"use": "bubblewrap"}


RECIPES = [
    # guard, accepted, rejected with words of its feedback
    ("ruff", "def f(x: int) -> int:\n    return x\n", "import os\n", "answer.py:1:8: F401"),
    ("ruff", "```python\ndef f():\n    return 1\n```\nThat is it.", "def f(:\n", "invalid-syntax"),
    ("mypy", "def f() -> int:\n    return 1\n", "def f() -> int:\n    return '1'\n", "return-value"),
    ("mypy", None, "def f(:\n", "[syntax]"),
    pytest.param("node", "let x = 1\n", "let x = ;\n", "answer.js:1", marks=needs("node")),
    pytest.param("cargo", "fn f() -> i8 { 1 }", "fn f() -> i8 { 'a' }", "src/lib.rs:1:16", marks=needs("cargo")),
    ("tests", "def f(x): return 2 * x\n", "def f(x): return x\n", "assert 2 == 4"),
    ("pytest_plain", "def f(x): return 2 * x\n", "import sys\nsys.stdout.write('9 passed')\n", "ImportError"),
    ("parses", "x = 1\n\ndef f(): ...\n", "def f(): return ===\n", "line 1: invalid syntax"),
    ("polite", "Please do.", "please, TODO", "Say please"),
    ("order", '{"id": 1}', "{}", "'id' is a required property"),
    ("query", "SELECT name FROM users", "SELECT nam FROM users", "no such column: nam"),
    ("query", "```sql\nSELECT * FROM users;\n```", "DELETE FROM users", "DELETE"),
    ("all", None, "def f(x)\n", "not valid Python"),
    ("mine", "please", "do", "say please"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "good", "wrong", "words"), RECIPES)
def test_a_recipe_tells_right_from_wrong(project, name, good, wrong, words):
    if good is not None:
        accepted = judged(name, good)
        assert accepted.status is ACCEPTED, accepted
    rejected = judged(name, wrong)
    assert rejected.status is REJECTED, rejected
    assert words in rejected.feedback
    assert "/sandbox" not in rejected.feedback and str(project) not in rejected.feedback


BROKEN = [
    # guard, what breaks its checker in the file, words of "no verdict"
    ("ruff", ('"--isolated"', '"--no-such-option"'), "exit code 2"),
    ("ruff", ('"ruff", "check"', '"no-such-program", "check"'), "no program 'no-such-program'"),
    ("mypy", ('"--no-incremental"', '"--no-such-option"'), "exit code 2"),
    pytest.param("node", ('"--check"', '"--no-such-option"'), "exit code 9", marks=needs("node")),
    pytest.param("cargo", ("[package]", "[package"), "exit code 101", marks=needs("cargo")),
    ("pytest_plain", ('"-q", "-p"', '"--no-such-option", "-p"'), "exit code 4"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), BROKEN)
def test_a_broken_checker_gives_no_verdict(project, name, change, words):
    text = (project / "guardlearn.toml").read_text(encoding="utf-8")
    block = next(block for block in BLOCKS if f"[guards.{name}]" in block)
    assert change[0] in block
    (project / "guardlearn.toml").write_text(text.replace(block, block.replace(*change)), encoding="utf-8")
    verdict = judged(name, "```\nx = 1\n```")
    assert verdict.status is PENDING, verdict
    assert words in verdict.feedback


def test_a_specification_brings_its_tests(project):
    (line,) = LINES
    spec = msgspec.convert(line, Specification)
    assert judged("pytest", "def f(x): return 2 * x", spec).status is ACCEPTED
