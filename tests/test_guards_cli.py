"""Guards from the command line: a table of guardlearn.toml collects into ℛ; what cannot work ends in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from guardlearn import ArtifactDAG

pytestmark = pytest.mark.usefixtures("commands_start_warm")

TOML = """
[guards.polite]
kind = "all_of"
guards = ["asks", "short"]
parallel = true

[guards.asks]
kind = "command"
command = ["sh", "-c", "grep -q please artifact.txt || { echo say please; exit 1; }"]

[guards.short]
kind = "regex"
match = ["^.{0,20}$"]

[guards.broken]
kind = "command"
command = ["no-such-program"]
"""
ANSWERS = [
    {"specification": "ask for tea", "answers": ["a cup of the very best tea", "tea, please"]},
    {"specification": "ask for two", "answers": ["half a \ud800 pair", "\0 please"]},
]


@pytest.fixture
def collect(tmp_path):
    (tmp_path / "guardlearn.toml").write_text(TOML)
    (tmp_path / "odd.py").write_text("def check(artifact):\n    return 7\n")
    specs = [{"id": str(n), "specification": each["specification"]} for n, each in enumerate(ANSWERS)]
    (tmp_path / "specs.jsonl").write_text("".join(json.dumps(spec) + "\n" for spec in specs))
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ANSWERS))

    def run(*arguments, **environment):
        command = "collect specs.jsonl --db runs.db --generator replay --model answers.jsonl --json".split()
        return subprocess.run(
            [sys.executable, "-m", "guardlearn", *command, *arguments],
            cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_a_guard_of_the_settings_file_collects(collect, tmp_path):
    done = collect("--guard", "polite", "--rmax", "3")
    assert done.returncode == 0, done.stderr
    with ArtifactDAG.load(tmp_path / "runs.db") as dag:
        items = {(item.metadata["spec_id"], item.facts.attempt): item for item in dag.extract()}
    assert {key: (item.status.value, item.cause) for key, item in items.items()} == {
        ("0", 1): ("rejected", "sh"),
        ("0", 2): ("accepted", ""),
        ("1", 1): ("rejected", "encoding"),
        ("1", 2): ("accepted", ""),
    }
    first = items[("0", 1)]
    assert first.feedback == ("asks:\nsay please\n\nshort:\nThe text must match the regular expression ^.{0,20}$")
    assert [(part["guard"], part["status"]) for part in first.metadata["verdicts"]] == [
        ("asks", "rejected"), ("short", "rejected"),
    ]  # fmt: skip
    assert first.guard == "polite" and len(first.guard_version) == 64


FAILING = [
    (("--guard", "polit"), 2, "unknown guard 'polit' (did you mean 'polite'?)"),
    (("--guard", "odd:check"), 1, "guard 'odd:check' returned '7', which is no verdict"),
    (("--guard", "polite", "--sandbox", "cage"), 2, "--sandbox is 'cage'; it may be auto, bubblewrap, none"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), FAILING)
def test_what_cannot_work_ends_in_one_line(collect, arguments, code, words):
    done = collect(*arguments)
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("guardlearn: ")]
    assert len(lines) == 1 and words in lines[0]
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_checker_that_fails_gives_no_verdict_and_the_run_says_so(collect):
    done = collect("--guard", "broken")
    assert done.returncode == 0
    summary = json.loads(done.stdout)
    assert (summary["attempts"], summary["no_verdict"], summary["accepted"]) == (3, 2, 0)
