"""The benchmark runs, its sides agree, it leaves nothing behind, and its page shows what its records say."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training_samples import sample_extraction

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "benchmarks" / "repository.py"
SIZE = 200


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def ours():
    return importlib.import_module("ours")


@pytest.fixture(scope="module")
def bare():
    return importlib.import_module("bare")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return importlib.import_module("stores").write_store(tmp_path_factory.mktemp("bench") / "store", SIZE)


@pytest.fixture(scope="module")
def runs_db(ours, store):
    path = store.with_name("runs.db")
    assert ours.import_folder(str(store), str(path))["found"] == SIZE
    return path


def bench(*arguments, **environment):
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=120
    )


def test_the_page_shows_the_records():
    figures = importlib.import_module("figures")
    page = figures.PAGE.read_text(encoding="utf-8")
    records = json.loads(figures.RECORDS.read_text(encoding="utf-8"))
    for name, render in figures.BLOCKS.items():
        begin, end = figures.comments(name)
        assert page.split(begin)[1].split(end)[0] == render(records)


def test_pages_say_what_was_missed():
    figures = importlib.import_module("figures_models")
    turn = {"seconds": 2.0, "cpu_seconds": 2.0, "steps": 2}
    arm = {"rows": 16, "precision": "fp32", "ceiling_gflops": 90, "share_of_ceiling": 0.5, "peak_mib": 900}
    arm |= {"completion_tokens_per_second": 10.0, "tokens_per_second": 20.0, "turns": [turn]}
    arm["before"] = {"imports": 1, "tokenizer": 1, "base": 1, "tokenise": 1}
    on = {"date": "-", "model": "m", "device": "d", "cores": 2, "threads": 2, "memory_gib": 1, "versions": {}}
    entry = {"arms": {"guide": arm | {"turns": [turn | {"seconds": 3.0}]}, "trl": arm, "ours": arm}}
    entry |= {"measured": on | {"load_average": [1, 2]}, "validation_rows": 4}
    losses = {"base": 2.0, "guide": 1.0, "trl": 1.0, "ours": 1.0}
    met = figures.training({"training": entry | {"validation_loss": losses}})
    assert "1.5 [1.5–1.5] times, and" in met and "missed" not in met
    assert "**missed**" in figures.training({"training": entry | {"validation_loss": losses | {"ours": 1.1}}})
    entry["arms"]["guide"] = arm | {"turns": [turn | {"seconds": 2.9}]}
    assert "**missed**" in figures.training({"training": entry | {"validation_loss": losses}})
    assert figures.training({}) == figures.ingredients({}) == figures.generation({}) == figures.NOT_MEASURED


def test_every_ingredient_can_be_taken_away_and_comes_back():
    from guardlearn.training import methods, objective, sharing, trl

    arms, figures = importlib.import_module("training_arms"), importlib.import_module("figures_models")
    assert list(arms.INGREDIENTS) == list(figures.INGREDIENTS)
    modules = (methods, objective, sharing, trl)
    before = [dict(vars(module)) for module in modules]
    changed = set()
    for name, without in arms.INGREDIENTS.items():
        with without():
            if [dict(vars(module)) for module in modules] != before:
                changed.add(name)
        assert [dict(vars(module)) for module in modules] == before
    assert {*arms.INGREDIENTS} - changed == {"threads", "environment"}


@pytest.mark.slow
def test_training_arms_take_turns_on_the_same_rows(tmp_path, tiny_model):
    from guardlearn.jobs import TrainingConfig, write_job

    job, records = tmp_path / "job", tmp_path / "records.json"
    write_job(job, sample_extraction(18), tiny_model, TrainingConfig(views=("first_attempt",)))
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, str(PROGRAM.with_name("training.py")), "--job", str(job), "--model", str(tiny_model)]
    command += ["--rows", "17", "--parts", "arms", "--work", str(work), "--json", str(records)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["guide_over_ours"]["ratio"] > 0 and 0 < found["share_of_ceiling"]["ours"] < 1
    losses = found["validation_loss"]
    assert set(losses) == {"base", "guide", "trl", "ours"} and losses["ours"] < losses["base"]
    kept = json.loads(records.read_text())
    arms = kept["training"]["arms"]
    assert {(arm["rows"], arm["tokens"], arm["completion_tokens"]) for arm in arms.values()} == {
        (16, arms["ours"]["tokens"], arms["ours"]["completion_tokens"])
    }
    assert {len(arm["turns"]) for arm in arms.values()} == {1}
    assert arms["guide"]["precision"] == "fp32"
    assert "guardlearn" in importlib.import_module("figures_models").training(kept)
    assert list(work.iterdir()) == []


def test_a_job_without_rows_to_compare_is_one_line(tmp_path, tiny_model):
    command = [sys.executable, str(PROGRAM.with_name("training.py")), "--job", str(tmp_path)]
    done = subprocess.run(
        [*command, "--model", str(tiny_model)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"bench: {tmp_path} holds no train.jsonl; a job folder is what `guardlearn train` writes and trains"
    )


@pytest.mark.slow
def test_three_ways_to_generate_agree_where_nothing_is_drawn(tmp_path, tiny_model):
    records = tmp_path / "records.json"
    command = [sys.executable, str(PROGRAM.with_name("generation.py")), "--model", str(tiny_model)]
    done = subprocess.run(
        [*command, "--prompts", "6", "--json", str(records)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["greedy"]["equal"] == found["greedy"]["prompts"] == 6
    assert set(found["tokens_per_second"]) == {"guide", "library", "ours"}
    assert found["verdicts"]["ours"]["prompts"] == found["verdicts"]["library"]["prompts"] == 6
    kept = json.loads(records.read_text())
    assert kept["generation"]["sides"]["guide"]["prompts"] == 4
    assert "one by one: 6 of 6" in importlib.import_module("figures_models").generation(kept)


@pytest.mark.slow
def test_a_small_run_measures_every_side(tmp_path):
    done = bench(
        *("--sizes", str(SIZE), "--rounds", "1", "--parts", "read"),
        *("--work", str(tmp_path), "--json", str(tmp_path / "records.json")),
    )
    assert done.returncode == 0, done.stderr
    ratios = json.loads(done.stdout)[str(SIZE)]
    assert ratios["extract_of_bare"]["median"] > 0 and ratios["extract_growth_mib"] < 64
    runs = json.loads((tmp_path / "records.json").read_text())["sizes"][str(SIZE)]["runs"]
    (found,) = {runs[case][side][0]["found"] for case in ("count", "ids", "extract") for side in runs[case]}
    assert 0 < found < SIZE
    assert [path.name for path in tmp_path.iterdir()] == ["records.json"]


def test_both_sides_find_the_same(ours, bare, runs_db):
    for case in ("count", "ids", "extract"):
        mine, other = ours.CASES[case](str(runs_db)), bare.CASES[case](str(runs_db))
        assert mine["found"] == other["found"] > 0
        assert mine.get("entries") == other.get("entries")
        assert mine["seconds"] > 0 and mine["again"]["seconds"] > 0


def test_the_bare_loop_builds_what_extraction_yields(bare, runs_db):
    import sqlite3

    from guardlearn import ArtifactDAG, refinement

    rows = list(bare.refinements(sqlite3.connect(runs_db)))
    with ArtifactDAG.load(runs_db, read_only=True) as dag:
        items = list(dag.extract(refinement()))
        assert list(dag.ids(refinement())) == [item.id for item in items] == [row[1] for row in rows]
    for item, row in zip(items, rows, strict=True):
        assert (item.created_at, item.artifact, item.feedback) == row[-8:-5]
        assert (item.specification, item.constraints) == row[-3:-1]
        assert [(entry.artifact, entry.feedback, entry.item_id) for entry in item.history] == row[-1]


def test_the_other_cases_read_everything(ours, bare, store, runs_db, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    once = ours.extract_once(str(store))
    assert once["found"] == ours.count(str(runs_db))["found"]
    lines = str(tmp_path / "lines.jsonl")
    assert ours.export_lines(str(runs_db), lines)["found"] == SIZE
    assert ours.import_lines(lines, str(tmp_path / "copy.db"))["found"] == SIZE
    assert bare.import_lines(lines, str(tmp_path / "plain.db"))["found"] == SIZE
    assert bare.import_folder(str(store), str(tmp_path / "folder.db"))["found"] == SIZE


def test_every_side_appends_everything(ours, bare, tmp_path):
    target, same = str(tmp_path / "append.db"), str(tmp_path / "same.db")
    assert ours.append(str(SIZE), target)["found"] == SIZE
    assert bare.append_plain(str(SIZE), str(tmp_path / "plain.db"))["found"] == SIZE
    ours.empty(same)
    assert bare.append_same(target, same)["found"] == SIZE
    assert ours.extract(target)["entries"] == ours.extract(same)["entries"] > 0


def test_too_small_a_disk_is_one_line(tmp_path):
    done = bench("--sizes", "1000000000000", "--work", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert "1,000,000,000,000 attempts need about 14000000.0 GB" in done.stderr and "--sizes" in done.stderr


def test_ctrl_c_removes_everything(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "--sizes", "3000", "--rounds", "1", "--work", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ends = time.monotonic() + 60
    while not list(tmp_path.glob("*/store/index.json")) and time.monotonic() < ends:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert err.splitlines()[-1] == "bench: interrupted; what it made is removed"
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_without_atomicguard_is_named(tmp_path):
    done = bench("--sizes", "100", "--work", str(tmp_path), BENCH_ATOMICGUARD=sys.executable)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("bench: ") and "No module named 'atomicguard'" in done.stderr
    assert list(tmp_path.iterdir()) == []
