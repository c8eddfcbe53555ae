"""`guardlearn collect` as it is typed: Ctrl-C, budgets, what guardlearn.toml says, failures of the generator."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import collecting
from guardlearn.cli import main
from guardlearn.dag import ArtifactDAG

TESTS = Path(__file__).parent
STUCK = """
import time
from collecting import NotingGuard

class Stuck(NotingGuard):
    def __call__(self, artifact, context):
        verdict = super().__call__(artifact, context)
        if context.specification.id == "s7":
            time.sleep(300)
        return verdict

guard = Stuck()
"""


@pytest.fixture
def folder(tmp_path):
    collecting.prepare(tmp_path)
    return tmp_path


def start(folder, *more):
    command = [sys.executable, "-m", "guardlearn", *collecting.command(str(folder / "runs.db"), folder, *more)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def judged(folder):
    log = folder / "judged.log"
    return log.read_text().splitlines() if log.exists() else []


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stored(folder):
    with ArtifactDAG.load(folder / "runs.db", read_only=True) as dag:
        return {(item.metadata["spec_id"], item.facts.attempt): item.artifact for item in dag.extract()}


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_judged_and_the_same_command_continues(folder):
    process = start(folder)
    wait_until(lambda: len(judged(folder)) > 10)
    process.send_signal(signal.SIGINT)
    code, _, said = ended(process)
    assert code == 130, said
    kept = stored(folder)
    left = len({name for name, _ in collecting.expected()}) - sum(
        (name, attempt) in kept and (name, attempt + 1) not in collecting.expected()
        for name, attempt in collecting.expected()
    )
    line = f"guardlearn: stopped, {len(kept)} new attempts are stored; {left} chains are unfinished, the same command"
    assert said.splitlines()[-1] == f"{line} continues"
    assert "Traceback" not in said
    assert 0 < len(judged(folder)) - len(kept) + 1 <= collecting.IN_FLIGHT + 1
    code, _, said = ended(start(folder))
    assert code == 0, said
    assert stored(folder) == collecting.expected()
    assert len(judged(folder)) - len(collecting.expected()) <= collecting.IN_FLIGHT


@pytest.fixture
def stuck(folder):
    """A collection one of whose guards hangs, when all the others wait for their turn or are done."""
    (folder / "stuck.py").write_text(STUCK)
    process = start(folder, "--guard", "stuck:guard")
    wait_until(lambda: "s7 1" in judged(folder))
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_ctrl_c_waits_for_no_guard_that_hangs(stuck):
    stuck.send_signal(signal.SIGINT)
    code, _, said = ended(stuck)
    assert code == 130
    assert "the same command continues" in said.splitlines()[-1]


def test_a_second_ctrl_c_ends_at_once(stuck, folder):
    stuck.send_signal(signal.SIGINT)
    first = stuck.stderr.readline()
    while "again ends at once" not in first:
        first = stuck.stderr.readline()
        assert first
    stuck.send_signal(signal.SIGINT)
    assert ended(stuck)[0] == -signal.SIGINT
    assert stored(folder).items() <= collecting.expected().items()


# without a process of its own


@pytest.fixture
def here(folder, monkeypatch, capsys):
    """Return what runs the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["guardlearn", *collecting.command(str(folder / "runs.db"), folder, *more)])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_a_budget_ends_a_run_says_how_to_go_on_and_exits_with_0(folder, here):
    code, out, said = here("--budget-attempts", "20", "--json")
    assert code == 0, said
    summary = json.loads(out)
    assert (summary["attempts"], summary["stopped"]) == (20, "attempts")
    assert summary["unfinished"] == {"the budget of 20 attempts is used up": len(summary["unfinished_chains"])}
    assert said.splitlines()[-1].endswith("the same command with a larger --budget-attempts continues")
    code, out, said = here("--json")
    assert json.loads(out)["new_attempts"] == len(collecting.expected()) - 20


def test_the_settings_file_says_the_rest_and_the_command_line_wins(folder, here):
    (folder / "guardlearn.toml").write_text('[collect]\nbudget_attempts = 8\nretry = "artifact"\n')
    assert json.loads(here("--json")[1])["attempts"] == 8
    assert json.loads(here("--json", "--budget-attempts", "9")[1])["attempts"] == 9
    fresh = json.loads(here("--json", "--retry", "feedback")[1])
    assert fresh["new_attempts"] == 8  # other prompts are another run
    (folder / "guardlearn.toml").write_text("[collect]\nbudget_atempts = 8\n")
    code, _, said = here()
    assert (code, len(said.splitlines())) == (1, 1)
    assert "budget_atempts" in said and "budget_attempts" in said and "[collect]" in said
    (folder / "guardlearn.toml").write_text("[collect]\nguard_workers = 0\n")
    code, _, said = here()
    assert (code, len(said.splitlines())) == (1, 1) and "guard_workers is 0" in said


def test_a_duplicate_id_is_one_line(folder, here):
    lines = (folder / "specs.jsonl").read_text()
    (folder / "specs.jsonl").write_text(lines + lines.splitlines()[3] + "\n")
    code, _, said = here()
    assert code == 1
    assert said.splitlines()[-1] == "guardlearn: specification id 's3' is given 2 times; ids must be distinct"


def test_a_retry_other_than_known_is_one_line(folder, here):
    code, _, said = here("--retry", "everything")
    assert code != 0 and len(said.splitlines()) == 1 and "retry" in said


def test_an_engine_that_does_not_exist_and_an_address_without_a_cluster_are_one_line(here):
    for more in (("--engine", "slurm"), ("--address", "10.0.0.1:6379")):
        code, _, said = here(*more)
        assert (code, len(said.splitlines())) == (2, 1)
        assert "local, or ray" in said


def test_progress_tells_rates(folder, here):
    _, _, said = here()
    assert "attempts/s" in said and "tokens/s" in said and "% accepted" in said and "chains settled" in said


@pytest.mark.slow
def test_ctrl_c_ends_an_evaluation_with_one_line_and_the_same_command_continues(folder):
    command = [
        sys.executable, "-m", "guardlearn", "evaluate", "specs.jsonl", "--guard", "collecting:guard", "--generator",
        "replay", "--model", "answers.jsonl", "-o", "out", "--json",
    ]  # fmt: skip
    options = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(TESTS)}, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    wait_until(lambda: len(judged(folder)) > 10)
    process.send_signal(signal.SIGINT)
    code, out, said = ended(process)
    assert (code, out) == (130, "")
    assert said.splitlines()[-1] == "guardlearn: stopped; the same command continues"
    assert "Traceback" not in said
    kept = len((folder / "out" / "attempts.jsonl").read_text().splitlines()) - 1
    assert 0 < kept < len(collecting.expected())
    ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options))
    assert len((folder / "out" / "attempts.jsonl").read_text().splitlines()) - 1 == len(collecting.expected())
