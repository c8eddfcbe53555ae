"""The command line as a user meets it: real processes, exit codes, one-line errors, JSON on stdout."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("commands_start_warm")

PYTHON = sys.executable
LOG = [
    {"prompt": f"Add {n}", "answer": f"x + {n}!", "passed": False, "error": "no !", "session": f"c{n}", "at": 10 * n}
    for n in range(6)
] + [
    {"prompt": f"Add {n}", "answer": f"x + {n}", "passed": True, "error": "", "session": f"c{n}", "at": 10 * n + 1}
    for n in range(6)
]
MAPPING = "spec=prompt,artifact=answer,accepted=passed,feedback=error,chain=session,time=at,group=prompt"


def guardlearn(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "guardlearn", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )


@pytest.fixture
def from_nothing(commands_start_warm, monkeypatch):
    """Let Python start as it does for a user, and import everything."""
    monkeypatch.setattr("sys.executable", PYTHON)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LOG))
    return path


@pytest.fixture
def db(tmp_path, log):
    path = tmp_path / "runs.db"
    assert guardlearn("import", log, "--into", path, "--map", MAPPING).returncode == 0
    return path


def one_line_error(done, code, *parts):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("guardlearn: ")]
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]


def test_import_twice_takes_only_what_is_new(tmp_path, log):
    into = tmp_path / "runs.db"
    first = json.loads(guardlearn("import", log, "--into", into, "--map", MAPPING, "--json").stdout)
    assert (first["read"], first["new"]) == (12, 12)
    again = json.loads(guardlearn("import", log, "--into", into, "--map", MAPPING, "--json").stdout)
    assert (again["new"], again["unchanged"]) == (0, 12)


def test_stats_counts_what_each_policy_selects(db):
    found = json.loads(guardlearn("stats", db, "--json").stdout)
    assert found["items"] == 12
    assert found["by_status"] == {"accepted": 6, "rejected": 6}
    assert found["policies"]["refinement"] == 6
    assert found["policies"]["high_value"] == 0
    assert found["expected_attempts"] == 2.0
    assert guardlearn("stats", db).returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("from_nothing")
def test_extract_writes_rows_and_says_what_it_dropped(db, tmp_path):
    out = tmp_path / "rows.jsonl"
    found = json.loads(guardlearn("extract", db, "-o", out, "--json").stdout)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == found["rows"] == 2 * found["traces"]
    assert found["selected"] == 6 == found["traces"] + sum(found["dropped"].values())
    assert {row["weight"] for row in rows} == {0.5}
    assert rows[0]["messages"][-1]["role"] == "assistant"


def test_show_prints_the_chain(db):
    found = json.loads(guardlearn("extract", db, "-o", db.with_name("r.jsonl"), "--json").stdout)
    item = found["checkpoint"]["item_id"]
    shown = json.loads(guardlearn("show", db, item, "--json").stdout)
    assert [entry["status"] for entry in shown["chain"]] == ["rejected", "accepted"]
    text = guardlearn("show", db, item).stdout
    assert "attempt 1: rejected" in text and "feedback: no !" in text
    one_line_error(guardlearn("show", db, "nothing"), 1, "'nothing'")


def test_verify_is_clean_and_notices_a_changed_row(db):
    import sqlite3

    assert json.loads(guardlearn("verify", db, "--json").stdout)["problems"] == []
    with sqlite3.connect(db) as connection:
        for (name,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            connection.execute(f'drop trigger "{name}"')
        connection.execute("update items set action_pair_id = 'another' where seq = (select max(seq) from items)")
    connection.close()
    done = guardlearn("verify", db, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"] != []


def test_a_missing_or_foreign_database_is_one_line(tmp_path):
    one_line_error(guardlearn("stats", tmp_path / "none.db"), 1, "none.db")
    foreign = tmp_path / "foreign.db"
    import sqlite3

    with sqlite3.connect(foreign) as connection:
        connection.execute("create table t (x)")
    connection.close()
    before = foreign.read_bytes()
    one_line_error(guardlearn("stats", foreign), 1, "foreign.db")
    text = tmp_path / "text.db"
    text.write_text("this is no database, only a text that is long enough to be one" * 20)
    one_line_error(guardlearn("stats", text), 1, "text.db")
    assert foreign.read_bytes() == before


def test_an_unknown_policy_lists_the_right_ones(db, tmp_path):
    done = guardlearn("extract", db, "--policy", "refinment", "-o", tmp_path / "x")
    one_line_error(done, 2, "refinment", "refinement", "high_value")


def test_a_malformed_predicate_shows_the_column(db, tmp_path):
    one_line_error(guardlearn("extract", db, "--where", "refinement() & (", "-o", tmp_path / "x"), 2, "column 16")
    one_line_error(
        guardlearn("extract", db, "--where", "refinement() & retrys(at_least=1)", "-o", tmp_path / "x"),
        2, "column 16", "retries",
    )  # fmt: skip
    one_line_error(guardlearn("extract", db, "--where", "all()", "--policy", "all", "-o", tmp_path / "x"), 2, "--where")
    assert not (tmp_path / "x").exists()


def test_a_malformed_line_is_named_and_nothing_is_read(tmp_path, log):
    log.write_text(log.read_text() + "{broken\n")
    into = tmp_path / "runs.db"
    one_line_error(guardlearn("import", log, "--into", into, "--map", MAPPING), 1, "line 13")
    assert not into.exists() or json.loads(guardlearn("stats", into, "--json").stdout)["items"] == 0


def test_a_missing_field_is_named_with_its_line(tmp_path, log):
    log.write_text(log.read_text() + json.dumps({"prompt": "p", "answer": "a", "session": "c", "error": "", "at": 1}))
    done = guardlearn("import", log, "--into", tmp_path / "runs.db", "--map", MAPPING)
    one_line_error(done, 1, "line 13", "'passed'")


def test_an_empty_repository_says_what_every_policy_would_find(tmp_path, log):
    log.write_text(json.dumps(LOG[0]) + "\n")
    into = tmp_path / "runs.db"
    guardlearn("import", log, "--into", into, "--map", MAPPING)
    done = guardlearn("train", into, "--model", "demo", "-o", tmp_path / "out")
    one_line_error(done, 1, "refinement", "generator 0", "all 0")
    assert not (tmp_path / "out").exists()


def test_a_model_folder_without_weights_is_one_line(db, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    one_line_error(guardlearn("train", db, "--model", model, "-o", tmp_path / "out"), 1, "no weights")
    one_line_error(guardlearn("train", db, "--model", tmp_path / "none", "-o", tmp_path / "out"), 1, "no model folder")


def test_specification_files_are_checked(tmp_path):
    specs = tmp_path / "specs.jsonl"
    specs.write_text('{"id": "a", "specification": "x"}\n{"id": "b", "specifcation": "y"}\n')
    command = ["collect", specs, "--db", tmp_path / "runs.db", "--guard", "rules:guard", "--generator", "replay"]
    one_line_error(guardlearn(*command), 1, "line 2")


def test_help_names_the_tables_of_guardlearns_toml():
    said = {name: " ".join(guardlearn(name, "--help").stdout.replace("│", " ").split()) for name in ("loop", "ablate")}
    assert "Name of the guard; [loop] guard." in said["loop"]
    assert "[loop], [training] and [ablation] of guardlearn.toml" in said["ablate"]


@pytest.mark.slow
def test_every_command_has_help():
    listed = guardlearn("--help").stdout
    names = "demo init doctor collect amend audit import stats show verify backup upgrade redact extract train evaluate"
    for name in f"{names} compare report run loop ablate ui adapters why impact export".split():
        assert name in listed
        done = guardlearn(name, "--help")
        assert done.returncode == 0 and "--json" in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("from_nothing")
def test_doctor_says_what_runs_here():
    found = json.loads(guardlearn("doctor", "--json").stdout)
    assert {check["what"] for check in found["checks"]} >= {"Python 3.11+", "SQLite", "the demo's model"}
    assert all(check["fix"] for check in found["checks"] if not check["ok"])
