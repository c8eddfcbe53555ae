"""`guardlearn ablate` as a user calls it: a project in, a table or one JSON object out; one line where it cannot."""

from __future__ import annotations

import contextlib
import json

import pytest
from typer.testing import CliRunner

import ablating
from guardlearn.cli import app
from guardlearn.errors import GuardlearnError, UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model):
    """A project whose ablation over views is done."""
    folder = tmp_path_factory.mktemp("project")
    ablating.write_project(folder, tiny_model)
    ablating.found(folder / "runs.db")
    trainer = ablating.write_trainer(folder)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINER_SECONDS", "0.02")
        done = run("runs.db", "--minutes", "0.05", "--python", trainer, "--seeds", "0", "--json")
    return folder, done


def run(*arguments):
    done = CliRunner().invoke(app, ["ablate", *map(str, arguments)], env={"COLUMNS": "220"})
    if isinstance(done.exception, GuardlearnError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def inside(project):
    """Be in its folder."""
    with contextlib.chdir(project[0]):
        yield project[0]


def test_json_is_one_object_and_the_files_say_the_same(project):
    folder, done = project
    found = json.loads(done.stdout)
    assert found == json.loads((folder / "ablation" / "views" / "ablation.json").read_bytes())
    assert [each["arm"] for each in found["differences"]] == ["first_attempt", "repair"]
    assert all(each["rate"] == 0 for each in found["differences"])  # replayed: every adapter answers the same
    assert [each["figures"]["first_attempt"]["rate"] for each in found["arms"]] == [0.7] * 3
    assert found["untrained"][0]["first_attempt"]["rate"] == 0.3
    assert found["seconds"] == 3.0 and found["seeds"] == [0]
    assert (folder / "ablation" / "views" / "ablation.html").is_file()


def test_progress_goes_to_stderr_step_by_step(project):
    said = project[1].stderr
    for step in ("plan", "calibrate", "train", "measure"):
        assert f"{step}: " in said


def test_people_get_tables_and_sentences(inside):
    text = run("runs.db", "--minutes", "0.05", "--seeds", "0").stdout
    assert "3 views of a trace: none told apart from both" in text
    assert "both (reference)" in text and "untrained" in text
    assert "repair minus both: +0.0 points of first attempts that pass" in text
    assert "could have shown" in text and "note: One training seed only" in text


def test_a_dry_run_trains_and_leaves_nothing(inside):
    found = json.loads(run("runs.db", "--over", "budget", "--dry-run", "--json").stdout)
    assert [(arm["arm"], arm["traces"]) for arm in found["arms"]] == [
        ("100 %", [32, 32]), ("25 %", [8, 8]), ("50 %", [16, 16]),
    ]  # fmt: skip
    assert (found["specs"], found["groups"], found["groups_needed"]) == (20, 10, 7)
    text = run("runs.db", "--over", "policy", "--dry-run")
    assert "high_value" in text.stdout and "human is left out: it selects no trace" in text.stderr
    assert "generator would train the same as refinement" in text.stderr
    assert not (inside / "ablation" / "budget").exists() and not (inside / "ablation" / "policy").exists()


def test_specifications_can_be_named_after_the_repository(inside):
    (inside / "few.jsonl").write_text("\n".join((inside / "specs.jsonl").read_text().splitlines()[:22]))
    found = json.loads(run("runs.db", "few.jsonl", "--dry-run", "--json", "-o", "elsewhere").stdout)
    assert (found["specs"], found["groups"]) == (6, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--over", "vews"], "--over 'vews' is unknown; choose views or policy or retry_prompt or budget or method"),
        (["--seeds", "0,x"], "--seeds '0,x' is no list of whole numbers; write them as in 0,1,2"),
        (["--seeds", "0,0"], r"seeds of \[ablation\] are \[0, 0\]"),
        (["--minutes", "0"], r"minutes of \[ablation\] is 0.0"),
        (["--over", "retry_prompt", "--rmax", "1"], "r_max is 1, and axis retry_prompt compares ways of asking"),
        (["--seeds", "1", "--minutes", "0.05"], r"holds another ablation \(.*seeds \[0\] there, \[1\] here\)"),
        (["--arm", "both", "--arm", "both"], "arm 'both' of axis views is named 2 times"),
        (["--guard", "nowhere"], "nowhere"),
        (["specs.jsonl", "specs.jsonl"], "stands twice in specs.jsonl, specs.jsonl"),
    ],
)
def test_what_cannot_be_is_one_line(inside, arguments, said):
    with pytest.raises(GuardlearnError, match=said) as refused:
        run("runs.db", *arguments)
    assert "\n" not in str(refused.value)


def test_what_is_missing_is_said(tmp_path):
    with contextlib.chdir(tmp_path), pytest.raises(UsageError, match="no specifications to measure with; name files"):
        run("runs.db")
