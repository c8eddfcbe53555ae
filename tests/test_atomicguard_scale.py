"""Large AtomicGuard stores come in fast: several processes read, memory does not grow, nothing is left behind."""

import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from guardlearn.cli import main
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers.atomicguard import import_atomicguard, read_atomicguard
from guardlearn.dag.near_duplicates import scheme
from guardlearn.errors import DataError, UsageError

ROOT = Path(__file__).parents[1]
STORES = Path(__file__).parent / "data" / "stores"
MANY = 2_600
"""Objects of more jobs than are read in this process."""


def stores():
    spec = importlib.util.spec_from_file_location("stores", ROOT / "benchmarks" / "stores.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return stores().write_store(tmp_path_factory.mktemp("large"), MANY, seed=1)


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as opened:
        yield opened


def workers(of):
    """Ids of the reading processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == of and b"atomicguard_pool" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def gone(pids, patience=10.0):
    until = time.monotonic() + patience
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
def test_the_benchmarks_store_is_of_the_form_and_shape_it_says(store, tmp_path):
    text = (store / "index.json").read_text()
    assert json.dumps(json.loads(text), indent=2) == text
    found = {path.stem: json.loads(path.read_text()) for path in store.rglob("objects/*/*.json")}
    assert found.keys() == json.loads(text)["artifacts"].keys() and len(found) == MANY
    assert all(500 <= len(value["content"].encode()) <= 8_000 for value in found.values())
    before = {value["previous_attempt_id"] for value in found.values()}
    chained = sum(1 for name, value in found.items() if value["previous_attempt_id"] or name in before)
    assert 0.35 < chained / MANY < 0.45
    assert {value["attempt_number"] for value in found.values()} == {1, 2, 3, 4, 5, 6}
    again = stores().write_store(tmp_path / "again", 40, seed=7)
    other = stores().write_store(tmp_path / "other", 40, seed=7)
    assert [path.read_bytes() for path in sorted(again.rglob("*.json"))] == [
        path.read_bytes() for path in sorted(other.rglob("*.json"))
    ]


def contents(dag):
    with dag.reading() as connection:
        items = connection.exec_driver_sql("SELECT seq, id, digest FROM items ORDER BY seq").all()
        placed = connection.exec_driver_sql("SELECT key, cluster, side FROM specifications ORDER BY key").all()
        noted = connection.exec_driver_sql("SELECT seq, item_id, kind, reason FROM events ORDER BY seq").all()
    return items, placed, noted, dag.sides_digest()


@pytest.mark.slow
@pytest.mark.parametrize("provenance", ["links", "links+history"])
@pytest.mark.parametrize("name", ["large", "fs_2_3_0", "fs_hostile"])
def test_several_processes_change_nothing(tmp_path, store, name, provenance):
    source, found = store if name == "large" else STORES / name, []
    for processes in (0, 1, 3):
        with ArtifactDAG.create(tmp_path / f"{processes}.db") as dag:
            report = import_atomicguard(dag, source, provenance=provenance, processes=processes)
            found.append((report, contents(dag)))
    assert found[0] == found[1] == found[2]
    assert found[0][0].new == (MANY if name == "large" else found[0][0].read) > 0


@pytest.mark.slow
def test_a_large_store_is_read_by_processes_and_a_small_one_is_not(dag, store):
    seen = set()

    def look(done, total, note):
        seen.update(workers(os.getpid()))
        assert 0 < done <= total

    import_atomicguard(dag, STORES / "fs_2_39_1", on_progress=look)
    assert not seen
    assert import_atomicguard(dag, store, on_progress=look).new == MANY
    assert seen and gone(seen)
    with pytest.raises(UsageError, match=r"processes=-1 must be 0 or more, or None"):
        import_atomicguard(dag, store, processes=-1)


@pytest.mark.parametrize("program", ["/bin/true", "/nowhere/python", ""])
def test_where_no_process_can_be_started_objects_are_read_here(dag, monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)  # as in a program that embeds Python
    assert import_atomicguard(dag, STORES / "fs_2_39_1", processes=2).new == 60
    assert workers(os.getpid()) == []


@pytest.mark.slow
def test_the_order_is_parents_first_then_time_whatever_the_files_are_called(dag, store):
    assert import_atomicguard(dag, store).faults == []
    items = [item for item in dag.extract(order_by="seq")]
    place = {item.id: item.seq for item in items}
    assert all(place[item.parent_id] < item.seq for item in items if item.parent_id)
    assert [item.created_at for item in items] == sorted(item.created_at for item in items)
    assert [item.id for item in read_atomicguard(store)] == [item.id for item in items]
    assert dag.verify().problems == []


@pytest.mark.parametrize("note", ["reading", "storing"])
def test_a_reading_process_that_dies_ends_the_import_and_nothing_is_stored(dag, store, note):
    killed = []

    def kill(done, total, now):
        if now == note and not killed:
            killed.extend(workers(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(
        DataError, match=r"a process that read objects ended \(exit code -9\) .* run the same command again"
    ):
        import_atomicguard(dag, store, processes=2, on_progress=kill)
    assert len(killed) == 2 and gone(killed)
    assert (dag.count(), dag.imports()) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_kill_leave_no_process_and_no_half_import(tmp_path, store, how):
    into = tmp_path / "runs.db"
    command = [sys.executable, "-m", "guardlearn", "import", str(store), "--into", str(into)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (found := workers(process.pid)):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and gone(found)
    assert b"Traceback" not in errors
    with ArtifactDAG.open_or_create(into) as dag:
        assert dag.count() in (0, MANY)
        import_atomicguard(dag, store)
        assert dag.count() == MANY and dag.verify().problems == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(tmp_path):
    peaks = []
    few, many = (stores().write_store(tmp_path / str(count), count, seed=2) for count in (1_300, 3_900))
    for number, source in enumerate((STORES / "fs_2_39_1", few, many)):  # the first one pays for what is loaded once
        with ArtifactDAG.create(tmp_path / f"{number}.db") as dag:
            tracemalloc.start()
            import_atomicguard(dag, source, processes=0)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[2] - peaks[1] < 450_000, peaks  # for 2,600 objects more


PEAK = """
import re, sys
from pathlib import Path
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers.atomicguard import import_atomicguard


def peak():  # in KiB, of this program alone: ru_maxrss begins with what the starting process had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


with ArtifactDAG.create(sys.argv[2]) as dag:
    before = peak()
    import_atomicguard(dag, sys.argv[1])
    print(peak() - before)
"""


@pytest.mark.slow
def test_an_import_takes_less_than_64_mib(tmp_path, store):
    command = [sys.executable, "-c", PEAK, str(store), str(tmp_path / "runs.db")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0 < grown < 64 * 1024


def test_of_very_many_faults_the_first_are_named_and_the_others_counted(dag, tmp_path):
    (tmp_path / "objects").mkdir()
    missing = {f"m{number:05}": {"status": "accepted"} for number in range(10_050)}
    (tmp_path / "index.json").write_text(json.dumps({"artifacts": missing}))
    report = import_atomicguard(dag, tmp_path)
    assert (report.skipped, len(report.faults)) == (10_050, 10_001)
    assert report.faults[0] == "m00000: the index of . lists it, but its object is missing"
    assert report.faults[-1] == "and 50 more faults; mend these, and import again to see the next"


FORMS = {
    "one line": {"indent": None, "separators": (",", ":")},
    "wide": {"indent": 8},
    "not escaped": {"indent": 2, "ensure_ascii": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", [*FORMS, "nested", "another order", "cut short"])
def test_an_index_of_any_form_says_the_same(tmp_path, form):
    spoiled = Path(shutil.copytree(STORES / "fs_hostile", tmp_path / "fs_hostile"))
    path = spoiled / "dag" / "index.json"
    index = json.loads(path.read_text())
    if form == "nested":
        index["artifacts"] = {name: {**entry, "more": [{"a": "}"}]} for name, entry in index["artifacts"].items()}
    elif form == "another order":
        index = dict(reversed([*index.items(), ("x", 'ψ\\"')]))
    path.write_text(json.dumps(index, **FORMS.get(form, {"indent": 2}))[: -1 if form == "cut short" else None])
    reports = []
    for number, source in enumerate((STORES / "fs_hostile", spoiled)):
        with ArtifactDAG.create(tmp_path / f"{number}.db") as dag:
            reports.append(import_atomicguard(dag, source))
    if form == "cut short":
        told = "dag: index.json cannot be read; objects are read without it"
        rest = [fault for fault in reports[0].faults if "the index" not in fault]
        assert sorted(reports[1].faults) == sorted([told, *rest])
    else:
        assert reports[0] == reports[1]


def test_a_list_too_long_for_one_window_names_what_it_holds_twice(dag, tmp_path):
    (tmp_path / "objects").mkdir()
    names = [f"{number:036}" for number in range(9_000)]
    listed = {"g_add": [*names, names[5], names[5]], "g_test": names[:3]}
    body = {"version": "1.0", "artifacts": {}, "action_pairs": listed, "workflows": {}}
    (tmp_path / "index.json").write_text(json.dumps(body, indent=2))
    report = import_atomicguard(dag, tmp_path)
    assert report.faults == [f"{names[5]}: the index lists it 3 times under action_pairs 'g_add'"]


def test_files_of_any_name_are_read_and_what_is_no_object_is_named(dag, tmp_path):
    store = Path(shutil.copytree(STORES / "fs_2_39_1", tmp_path / "store")) / "dag"
    moved = sorted(store.rglob("objects/*/*.json"))[3]
    place = store / "objects" / "zz"
    place.mkdir()
    odd = [".json", "a.b.json", "\udcff.json"]
    for name in odd[:2]:
        (place / name).write_text("{")
    moved.rename(place / odd[2])
    report = import_atomicguard(dag, store)
    assert (report.new, report.skipped) == (60, 2)
    for started in (
        ": not read, it is not whole",
        "a.b: not read, it is not whole",
        f"{moved.stem}: its file is named",
    ):
        assert [fault for fault in report.faults if fault.startswith(started)], started
    assert len(report.faults) == 3


def test_an_object_that_changes_while_it_is_read_is_a_fault(dag, tmp_path):
    store = Path(shutil.copytree(STORES / "fs_2_39_1", tmp_path / "store"))
    changed = sorted(store.rglob("objects/*/*.json"))[3]
    other = {**json.loads(changed.read_text()), "previous_attempt_id": "another"}

    def change(done, total, note):
        if note == "reading":
            changed.write_text(json.dumps(other))

    report = import_atomicguard(dag, store, on_progress=change)
    assert (report.new, report.skipped) == (59, 1)
    assert f"{changed.stem}: not read, it changed while it was read; import again" in report.faults


@pytest.mark.slow
def test_opening_a_folder_says_how_far_it_is_and_only_where_there_is_something_to_do(tmp_path, monkeypatch, store):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, told = Path(shutil.copytree(store, tmp_path / "store")), []

    def tell(*told_now):
        told.append(told_now)

    with ArtifactDAG.load(folder, on_progress=tell) as dag:
        assert dag.count() == MANY
    assert told[-1] == (2 * MANY, 2 * MANY, "storing") and told[0][1:] == (2 * MANY, "reading")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    told.clear()
    ArtifactDAG.load(folder, on_progress=tell).close()
    assert told == []
    path = sorted(folder.rglob("objects/*/*.json"))[7]
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "superseded"}))
    with ArtifactDAG.load(folder, on_progress=tell) as dag:
        report = dag.imports()[-1].report
        assert (report.read, report.changed) == (1, 1)
        assert dag.verify().problems == []
    assert told
    (side,) = (tmp_path / "cache").rglob("[0-9]*.db")
    with sqlite3.connect(side) as connection:
        assert connection.execute("SELECT COUNT(*) FROM atomicguard_folders").fetchone() == (256,)
    connection.close()


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_a_command_that_opens_a_folder_shows_its_progress_where_it_takes_long(tmp_path, monkeypatch, capsys, patience):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("guardlearn.cli.opening._PATIENCE_SECONDS", patience)
    for shown in (patience == 0.0, False):  # again, nothing is to be done
        monkeypatch.setattr("sys.argv", ["guardlearn", "stats", str(STORES / "fs_2_39_1"), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code, json.loads(out)["items"]) == (0, 60)
        assert ("open: " in err and "(storing)" in err) is shown


def test_signatures_stay_what_databases_hold():
    assert scheme() == "7a4e4a03004f8c67"
