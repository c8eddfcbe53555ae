"""An importer of somebody else's goes through the same driver as guardlearn's own."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import strategies as st

from databases import law
from guardlearn import (
    ArtifactDAG,
    ArtifactStatus,
    ImportedItem,
    ImportFault,
    RepositoryItem,
    Source,
    import_items,
    import_with,
)
from guardlearn.errors import DataError, GuardError, LogError, UsageError
from guardlearn.guards import load_attribute
from guardlearn.predicates import everything, excluded, refinement

pytestmark = pytest.mark.usefixtures("commands_start_warm")

PAGE = (Path(__file__).parents[1] / "docs" / "importers.md").read_text(encoding="utf-8")
(PROGRAM,) = re.findall(r"^```python\n(\"\"\"queries\.py.*?)^```$", PAGE, re.S | re.M)
(COMMAND,) = re.findall(r"^    (guardlearn import queries\.csv .*)$", PAGE, re.M)
ROWS = [
    "id,task,sql,verdict,message,after",
    "1,all users,SELEC,error,syntax error,",
    "2,all users,SELECT 1,ok,,1",
    "3,all orders,SELECT 2,,,",
    "4,all items,SELECT 3,shrug,,",
]


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(str(tmp_path / "runs.db")) as opened:
        yield opened


def item(name, status=ArtifactStatus.REJECTED, **more):
    given = {"artifact": f"a{name}", "specification": "task", "feedback": "no", "source": Source.GENERATOR, **more}
    return RepositoryItem(id=name, status=status, **given)


def statuses(dag):
    return {each.id: each.status.value for each in dag.extract(everything())}


def run(command, folder):
    arguments = command.split()[1:]
    return subprocess.run(
        [sys.executable, "-m", "guardlearn", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_documented_importer_runs_as_written(tmp_path):
    (tmp_path / "queries.py").write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "queries.csv").write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    done = run(f"{COMMAND} --json", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["read"], report["new"], report["skipped"]) == (3, 3, 1)
    assert report["faults"] == ["line 5: verdict 'shrug' is unknown"]
    assert report["unknown"] == {"model": 3, "source": 3, "time": 3, "verdict": 1}
    with ArtifactDAG.load(tmp_path / "runs.db") as dag:
        (retry,) = dag.extract(refinement())
        assert (retry.id, [entry.feedback for entry in retry.history]) == ("lint-2", ["syntax error"])
        seq = dag.last_seq
        assert dag.imports()[0].source == "queries.csv"
    assert run(COMMAND, tmp_path).returncode == 0
    with ArtifactDAG.load(tmp_path / "runs.db") as dag:
        assert dag.last_seq == seq and len(dag.imports()) == 1
    judged = [row.replace("SELECT 2,,", "SELECT 2,ok,").replace("shrug", "error") for row in ROWS]
    (tmp_path / "queries.csv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    report = json.loads(run(f"{COMMAND} --json", tmp_path).stdout)
    assert (report["new"], report["changed"], report["unchanged"], report["faults"]) == (1, 1, 2, [])
    with ArtifactDAG.load(tmp_path / "runs.db") as dag:
        assert statuses(dag)["lint-3"] == "accepted" and dag.verify().ok


def test_what_an_importer_says_of_an_item_arrives(dag):
    given = [
        ImportedItem(item=item("a"), faults=("is odd",), unknown=("time",), exclude="a tool wrote it"),
        item("b", source=Source.UNKNOWN, feedback=""),
        ImportFault(place="row 7", reason="is torn"),
        ImportFault(place="row 8", reason="is only odd", skipped=False),
    ]
    report = import_items(dag, given, "here")
    assert (report.read, report.new, report.skipped) == (2, 2, 1)
    assert report.faults == ["row 7: is torn", "row 8: is only odd", "a: is odd"]
    assert report.unknown == {"feedback": 1, "source": 1, "time": 1}
    assert [each.id for each in dag.extract(excluded())] == ["a"]
    assert dag.imports()[0].report == report


def test_an_id_that_comes_twice_is_a_fault_and_the_first_stays(dag):
    for _ in range(2):
        report = import_items(dag, [item("a"), item("a", ArtifactStatus.ACCEPTED)], "here")
        assert report.faults == ["a: comes twice from its source; the first one is taken"] and report.skipped == 1
        assert statuses(dag) == {"a": "rejected"}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"artifact": "else"}, "artifact"), ({"specification": "else"}, "specification"),
        ({"constraints": "else"}, "constraints"), ({"parent_id": "p"}, "parent"), ({"workflow_id": "w"}, "workflow"),
        ({"action_pair_id": "x"}, "action pair"),
    ],
)  # fmt: skip
def test_another_content_under_a_stored_id_is_a_fault(dag, other, said):
    import_items(dag, [item("a")], "here")
    seq = dag.last_seq
    report = import_items(dag, [item("a", **other), item("b")], "here")
    assert report.faults == [f"a: is in the repository with another {said}, which stays"]
    assert (report.new, report.skipped) == (1, 1) and dag.last_seq == seq + 1


def test_what_cannot_be_stored_is_a_fault_and_the_rest_is_taken(dag):
    given = [item("a", model="\0"), item("b", metadata={"x": object()}), item("c", artifact=None), item(""), item("d")]
    report = import_items(dag, given, "here")
    assert list(statuses(dag)) == ["d"] and report.skipped == 4
    assert [fault.partition(":")[0] for fault in report.faults] == ["a", "b", "c", ""]


def test_implied_verdicts_and_none_never_override(dag):
    import_items(dag, [item("a", ArtifactStatus.ACCEPTED), item("b", ArtifactStatus.PENDING)], "here")
    weak = [ImportedItem(item=item("a"), implied=True), ImportedItem(item=item("b"), implied=True)]
    assert import_items(dag, weak, "here").changed == 1
    assert statuses(dag) == {"a": "accepted", "b": "rejected"}
    none = [item("a", ArtifactStatus.PENDING), item("b", ArtifactStatus.PENDING)]
    assert import_items(dag, none, "here").changed == 0
    assert import_items(dag, [item("a"), item("b", ArtifactStatus.ACCEPTED)], "here").changed == 2
    assert statuses(dag) == {"a": "rejected", "b": "accepted"}


STATES = st.sampled_from([ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING])


@pytest.mark.slow
@law(st.lists(st.dictionaries(st.sampled_from("abcd"), STATES, min_size=1), min_size=1, max_size=4), examples=15)
def test_the_last_verdict_of_a_source_is_the_status(databases, readings):
    with databases.repository() as dag:
        known = {}
        for reading in readings:
            for _ in range(2):
                seq = dag.last_seq
                report = import_items(dag, [item(name, status) for name, status in reading.items()], "here")
            assert (report.new, report.changed, dag.last_seq) == (0, 0, seq)  # again: nothing
            known |= {name: said for name, said in reading.items() if said != "pending" or name not in known}
            assert statuses(dag) == {name: status.value for name, status in known.items()}
        assert dag.verify().ok


def test_a_clock_that_runs_backwards_changes_no_chain(installed):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    given = [
        item("a", created_at=start),
        item("b", parent_id="a", created_at=start - timedelta(days=1)),
        item("c", ArtifactStatus.ACCEPTED, parent_id="b", created_at=start - timedelta(days=2)),
    ]
    with ArtifactDAG.load(installed.target) as dag:
        assert import_items(dag, given[::-1], "here").new == 3  # the youngest first, as a wrong clock would sort them
        assert [each.id for each in dag.provenance("c")] == ["a", "b", "c"]
        found = dag.get_item("c")
        assert found.facts.rejected_ancestors == 2 and found.created_at == start - timedelta(days=2)
        assert [entry.artifact for entry in found.history] == ["aa", "ab"]
        assert [each.id for each in dag.extract(everything())] == ["c", "b", "a"]  # by time, as stated
        assert dag.verify().ok


def test_an_importer_that_fails_leaves_nothing(dag, tmp_path):
    def broken(source):
        yield from (item(f"i{number}") for number in range(600))
        raise ValueError("line 601\nis torn")

    with pytest.raises(DataError, match=r"importer .*broken failed after 600 attempts: ValueError: line 601 is torn; "):
        import_with(dag, broken, tmp_path)
    with pytest.raises(DataError, match="yielded str; it must yield RepositoryItem, ImportedItem or ImportFault"):
        import_with(dag, lambda source: ["text"], tmp_path)
    with pytest.raises(DataError, match="'NoneType' object is not iterable"):
        import_with(dag, lambda source: None, tmp_path)

    def refusing(source):
        raise LogError("no such place")
        yield

    with pytest.raises(LogError, match="no such place"):
        import_with(dag, refusing, tmp_path)
    assert dag.last_seq == 0 and dag.imports() == []


def test_wrong_names_say_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_importer_a.py").write_text("def read(source): ...\n")
    (tmp_path / "own_importer_b.py").write_text("1 / 0\n")
    for name, said in (
        ("read", "unknown importer 'read': write package.module:attribute"),
        ("own_importer_c:read", "importer 'own_importer_c:read': there is no module 'own_importer_c'"),
        ("own_importer_a:load", "own_importer_a has no 'load'; it has read"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            load_attribute(name, "importer")
    with pytest.raises(GuardError, match="importer 'own_importer_b:read' cannot be loaded: ZeroDivisionError"):
        load_attribute("own_importer_b:read", "importer")
    done = run("guardlearn import x.csv --importer own_importer_a:read --into r.db --map a=b", tmp_path)
    assert done.returncode == 2 and "--map is for a log, but --importer reads it; leave it out" in done.stderr
    done = run("guardlearn import x.csv --importer nowhere:read --into r.db", tmp_path)
    assert done.returncode == 2 and not (tmp_path / "r.db").exists()


def test_progress_is_told(dag):
    told = []
    import_items(
        dag, [item(f"i{number}") for number in range(1500)], "here", on_progress=lambda *call: told.append(call)
    )
    assert told == [(1000, 1500, "storing"), (1500, 1500, "storing")]
