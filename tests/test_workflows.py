"""W_ref (Definition 11): kept, selected by, and checked where the workflows are at hand.

Hashes written out here are those of AtomicGuard 2.3.0's and 2.39.1's own compute_workflow_ref.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from guardlearn import ArtifactDAG, ArtifactStatus, RepositoryItem, import_items, read_workflows, workflow_hash
from guardlearn.dag.importers.atomicguard import import_atomicguard
from guardlearn.errors import DataError
from guardlearn.predicates import everything, parse, workflow_ref

pytestmark = pytest.mark.usefixtures("commands_start_warm")

STORES = Path(__file__).parent / "data" / "stores"
WEB = STORES / "sqlite_2_39_1" / "web.db"
SINGLESHOT = "fe9814951863a8bba2e478c677776c34b81b1287f1dcb013570d258781d7b863"
KNOWN = {
    SINGLESHOT: "singleshot",
    "a4d551f82d2283718e7b9c9da910e3f2c63acc0a19c26238c41f7c7f44f8084f": "sdlc",
    "d538d95657b3a6a1970f9beb9f408a64eaef2c74d3823bbb7428593906d40d4b": "tdd",
}
FULL = {
    "name": "Full One", "description": "d", "specification": {"file": "x"}, "constraints": "Ω", "model": "m",
    "provider": "p", "rmax": 5, "backtrack_config": {"a": [1]},
    "action_pairs": {
        "g_a": {
            "generator": "G", "generator_config": {"t": 0.5}, "guard": "g", "guards": ["x", "y"],
            "guard_config": {"z": 1}, "requires": [], "artifact_type": "code", "output_type": "o", "r_patience": 2,
            "e_max": 3, "escalate_feedback_to": ["g_b"], "escalate_feedback_by_guard": {"x": ["g_b"]},
            "human_prompt_title": "h", "description": "dd", "group": "gg", "goal": True,
        },
        "g_b": {"generator": "G", "requires": ["g_a"], "e_max": 1, "r_patience": None},
    },
}  # fmt: skip
FULL_HASH = "fb8114b6cb03cab4b42fdfcade5c8dc4543ab70f559fa340583971100d0d1351"
JSON_COLUMNS = {
    *("specification", "generator_config", "guards", "guard_config", "requires", "escalate_feedback_to"),
    "escalate_feedback_by_guard",
}


def attempt(name, ref=""):
    return RepositoryItem(
        id=name, artifact="a", specification="s", status=ArtifactStatus.ACCEPTED, workflow_ref=ref, workflow_id="w"
    )


def database(folder):
    """A web.db that holds FULL too, as AtomicGuard stores a workflow's JSON."""
    path = folder / "web.db"
    shutil.copy(WEB, path)
    with sqlite3.connect(path) as connection:
        own = {
            key: FULL[key]
            for key in ("name", "description", "specification", "constraints", "model", "provider", "rmax")
        }
        extra = {"backtrack_config": FULL["backtrack_config"]}
        _insert(connection, "workflows", own | {"slug": "full-one", "extra": extra, "source_keys": list(FULL)})
        for number, (pair, said) in enumerate(FULL["action_pairs"].items()):
            named = {"workflow_slug": "full-one", "ap_id": pair, "sort_order": number, "source_keys": list(said)}
            _insert(connection, "workflow_action_pairs", said | named)
    return path


def _insert(connection, table, row):
    texts = JSON_COLUMNS | {"extra", "source_keys"}
    values = {key: json.dumps(each) if key in texts and each is not None else each for key, each in row.items()}
    names, places = ", ".join(f'"{key}"' for key in values), ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", list(values.values()))


def test_the_hash_is_atomicguards_and_does_not_depend_on_order():
    assert workflow_hash(FULL) == FULL_HASH
    assert workflow_hash(dict(reversed(FULL.items()))) == FULL_HASH
    assert workflow_hash(FULL | {"rmax": 6}) != FULL_HASH


def test_workflows_are_read_from_databases_files_and_folders(tmp_path):
    before = WEB.read_bytes()
    assert read_workflows(WEB) == KNOWN
    assert read_workflows(database(tmp_path)) == KNOWN | {FULL_HASH: "full-one"}
    for number, document in enumerate((FULL, {"name": "other"})):
        (tmp_path / f"w{number}.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    assert read_workflows(tmp_path / "w0.json") == {FULL_HASH: "w0.json"}
    assert read_workflows(tmp_path) == {FULL_HASH: "w0.json", workflow_hash({"name": "other"}): "w1.json"}
    assert WEB.read_bytes() == before


def test_what_holds_no_workflow_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "torn.json").write_text('{"name"')
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("list.json", "a list, no object"),
        ("torn.json", "is no workflow's JSON"),
        ("empty", "holds no workflow"),
        ("nowhere", "cannot be read"),
    ):
        with pytest.raises(DataError, match=said):
            read_workflows(tmp_path / name)
    with pytest.raises(DataError, match="holds no workflows"):
        read_workflows(STORES / "sqlite_2_39_1" / "reviews.db")
    path = database(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE workflow_action_pairs SET source_keys = '[\"effector\"]' WHERE ap_id = 'g_b'")
    with pytest.raises(
        DataError, match=r"action pair .g_b. of workflow .full-one. had effector, which web\.db does not"
    ):
        read_workflows(path)


def test_a_reference_that_is_no_hash_at_hand_is_a_fault_with_its_id(installed):
    given = [attempt("a", SINGLESHOT), attempt("b", "f" * 64), attempt("c")]
    with ArtifactDAG.load(installed.target) as dag:
        report = import_items(dag, given, "here", workflows=read_workflows(WEB))
        assert report.new == 3  # each is taken: what is wrong is said, not thrown away
        assert report.faults == [f"b: its workflow_ref '{'f' * 64}' is the hash of none of the workflows given"]
        assert report.unknown["workflow_ref"] == 1
        assert [each.id for each in dag.extract(workflow_ref(SINGLESHOT))] == ["a"]
        assert [each.workflow_ref for each in dag.extract(parse(f'workflow_ref("{"f" * 64}")'))] == ["f" * 64]
        unchecked = import_items(dag, given, "here")
        assert unchecked.faults == [] and "workflow_ref" not in unchecked.unknown


def test_a_store_is_checked_too(tmp_path):
    folder = tmp_path / "dag"
    shutil.copytree(STORES / "fs_2_39_1" / "dag", folder)
    paths = sorted(folder.glob("objects/*/*.json"))[:2]
    for path, ref in zip(paths, (SINGLESHOT, "0" * 64), strict=True):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"workflow_ref": ref}))
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        report = import_atomicguard(dag, folder, workflows=read_workflows(WEB))
        assert report.unknown["workflow_ref"] == 58
        (fault,) = report.faults
        assert fault.startswith(f"{paths[1].stem}: its workflow_ref '{'0' * 64}' is the hash of none")
        assert dag.get_item(paths[0].stem).workflow_ref == SINGLESHOT
    with ArtifactDAG.create(tmp_path / "unchecked.db") as dag:
        assert import_atomicguard(dag, folder).faults == []


def guardlearn(*arguments):
    command = [sys.executable, "-m", "guardlearn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_checks_logs_and_refuses_what_it_cannot_check(tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}], "workflow_ref": ref}
        for n, ref in enumerate((SINGLESHOT, "1" * 64, ""))
    ]
    log = tmp_path / "chat.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = guardlearn("import", log, "--into", tmp_path / "runs.db", "--workflow", WEB, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["unknown"]["workflow_ref"] == 1
    assert [fault for fault in report["faults"] if f"'{'1' * 64}' is the hash of none of the workflows given" in fault]
    mapped = ["--map", "spec=s,artifact=a,accepted=v,chain=c,workflow_ref=w"]
    plain = tmp_path / "log.jsonl"
    plain.write_text(json.dumps({"s": "s", "a": "a", "v": 1, "c": 1, "w": "2" * 64}) + "\n")
    done = guardlearn("import", plain, "--into", tmp_path / "runs.db", *mapped, "--workflow", WEB, "--json")
    assert len(json.loads(done.stdout)["faults"]) == 1
    with ArtifactDAG.load(tmp_path / "runs.db") as dag:
        assert dag.count(everything()) == 4
    exported = tmp_path / "runs.jsonl"
    guardlearn("export", tmp_path / "runs.db", "-o", exported)
    done = guardlearn("import", exported, "--into", tmp_path / "copy.db", "--workflow", WEB)
    assert done.returncode == 2 and "--workflow is for attempts from elsewhere" in done.stderr
    done = guardlearn("import", log, "--into", tmp_path / "new.db", "--workflow", tmp_path / "nowhere")
    assert done.returncode == 1 and "cannot be read" in done.stderr and not (tmp_path / "new.db").exists()
