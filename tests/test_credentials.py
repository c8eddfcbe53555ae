"""Keys and tokens are found before they are trained on, counted, and left out on request."""

import json
import subprocess
import sys

import pytest

from guardlearn import ArtifactDAG, ArtifactStatus, RepositoryItem, Side, extract_traces
from guardlearn.credentials import find_credentials, kinds_in

pytestmark = pytest.mark.usefixtures("commands_start_warm")

# put together here, so that no scanner of this repository takes them for real ones
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789"
PRIVATE = "-----BEGIN RSA " + "PRIVATE KEY-----"
ADDRESS = "postgresql://app:" + "hunter2@db.example.com/x"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (f'key = "{AWS}"', ("AWS Access Key",)),
        (f"export TOKEN={GITHUB}", ("GitHub Token",)),
        (f"{PRIVATE}\nMIIE...", ("Private Key",)),
        (f"connect('{ADDRESS}')", ("Basic Auth Credentials",)),
        (f"a = 1\nb = '{AWS}'\n{PRIVATE}", ("AWS Access Key", "Private Key")),
        ("password = get_password()", ()),
        ("digest = '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'", ()),
        ("host = '203.0.113.9'", ()),
        ("", ()),
    ],
)
def test_known_shapes_are_found_and_guesses_are_not_made(text, kinds):
    assert kinds_in(text) == kinds


@pytest.fixture
def db(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        dag.assign_side("train", Side.TRAIN)
        told = {
            "clean": ("x = 1", "say y", "x = 2"),
            "in the answer": ("x = 1", "say y", f"x = '{AWS}'"),
            "in a rejected one": (f"x = '{GITHUB}'", "say y", "x = 3"),
            "in what was said": ("x = 1", f"could not log in with {ADDRESS}", "x = 4"),
        }
        for name, (wrong, feedback, right) in told.items():
            given = {"specification": f"task {name}", "group": "train"}
            rejected = {"artifact": wrong, "feedback": feedback, "status": ArtifactStatus.REJECTED}
            dag.append(RepositoryItem(id=f"r {name}", **rejected, **given))
            accepted = {"artifact": right, "status": ArtifactStatus.ACCEPTED, "parent_id": f"r {name}"}
            dag.append(RepositoryItem(id=f"a {name}", **accepted, **given))
    return tmp_path / "runs.db"


def test_every_text_that_is_trained_on_is_looked_at(db):
    with ArtifactDAG.load(db) as dag:
        found = find_credentials(extract_traces(dag).traces)
    assert {finding.item_id: finding.kinds for finding in found} == {
        "a in the answer": {"AWS Access Key": ["artifact"]},
        "a in a rejected one": {"GitHub Token": ["history"]},
        "a in what was said": {"Basic Auth Credentials": ["history"]},
    }


def extract(db, *options):
    command = [sys.executable, "-m", "guardlearn", "extract", str(db), "-o", str(db.with_name("rows.jsonl")), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_extract_counts_them_and_excludes_them_on_request(db):
    rows = db.with_name("rows.jsonl")
    counted = json.loads(extract(db, "--json").stdout)
    assert counted["secrets"]["by_kind"] == {"AWS Access Key": 1, "Basic Auth Credentials": 1, "GitHub Token": 1}
    assert counted["traces"] == 4 and AWS in rows.read_text()
    assert AWS not in json.dumps(counted)  # named by item and kind, never repeated
    excluded = json.loads(extract(db, "--secrets", "exclude", "--json").stdout)
    assert (excluded["traces"], excluded["dropped"]) == (1, {"holds a key or token": 3})
    assert excluded["selected"] == excluded["traces"] + sum(excluded["dropped"].values())
    assert not any(secret in rows.read_text() for secret in (AWS, GITHUB, ADDRESS))
    assert json.loads(extract(db, "--secrets", "off", "--json").stdout)["secrets"] is None
    said = extract(db).stderr
    assert "3 traces, still in the rows: --secrets exclude leaves them out" in said
    wrong = extract(db, "--secrets", "maybe")
    assert wrong.returncode == 2 and "count, exclude, off" in wrong.stderr


def test_without_the_library_it_says_that_nobody_looked_and_refuses_to_exclude(db):
    block = "import sys; sys.modules['detect_secrets'] = None; from guardlearn.cli import main; sys.argv = {}; main()"

    def run(*options):
        arguments = ["guardlearn", "extract", str(db), "-o", str(db.with_name("rows.jsonl")), *options]
        return subprocess.run(
            [sys.executable, "-c", block.format(arguments)], capture_output=True, text=True, check=False
        )

    counted = run("--json")
    assert json.loads(counted.stdout)["secrets"] is None
    assert "not looked for keys and tokens" in counted.stderr and "guardlearn[secrets]" in counted.stderr
    refused = run("--secrets", "exclude")
    assert refused.returncode == 1 and "guardlearn[secrets]" in refused.stderr


def test_redact_blanks_what_was_found_and_extraction_leaves_it_out(db):
    def run(*options):
        command = [sys.executable, "-m", "guardlearn", "redact", str(db), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("a in the answer", "--reason", "a key", "--json").returncode == 0
    assert AWS.encode() not in db.read_bytes()
    found = json.loads(extract(db, "--json").stdout)
    assert found["dropped"] == {"redacted": 1} and "AWS Access Key" not in found["secrets"]["by_kind"]
    missing = run("nothing", "--reason", "x")
    assert missing.returncode == 1 and "'nothing'" in missing.stderr
