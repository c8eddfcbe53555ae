"""The side file by which a folder of AtomicGuard stores is read: the same ℛ as an import makes, whole or not there."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers import atomicguard_folder
from guardlearn.dag.importers.atomicguard import import_atomicguard
from guardlearn.dag.importers.atomicguard_stamps import Watchers, digest, parse, stamps
from guardlearn.dag.rows import encode_item
from guardlearn.errors import RepositoryError
from guardlearn.predicates import refinement
from guardlearn.types import ArtifactStatus, RepositoryItem
from test_full_disk import files_up_to

ROOT = Path(__file__).parents[1]
STORES = Path(__file__).parent / "data" / "stores"
MANY = 2_300
"""Objects of more jobs than are read in this process."""

TABLES = {  # every column but the times of noting, and the digests that cover them
    "items": "*",
    "bodies": "*",
    "texts": "*",
    "facts": "*",
    "waiting": "*",
    "specifications": "*",
    "side_bands": "*",
    "side_index": "*",
    "events": "seq, item_id, kind, value, actor, reason",
    "imports": "number, report",
    "meta": "*",
}


def write_store(folder, count, seed):
    spec = importlib.util.spec_from_file_location("stores", ROOT / "benchmarks" / "stores.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_store(folder, count, seed=seed)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("large"), MANY, 3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "guardlearn" / "atomicguard"


@pytest.fixture
def store(tmp_path, large):
    """A large store of its own, to be spoiled."""
    return Path(shutil.copytree(large, tmp_path / "store"))


def made(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


def tables(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {
            name: sorted(connection.execute(f"SELECT {columns} FROM {name}"), key=repr)
            for name, columns in TABLES.items()
        }


def build(path):
    """Return what SQLite says of a file's form: tables, indexes, triggers, and how it is written."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        schema = connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE '%atomicguard%'")
        settings = [connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "page_size")]
        return sorted(schema, key=repr), settings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["large", "fs_2_3_0", "fs_2_39_1", "fs_hostile", "real_2_3_0"])
def test_a_side_file_holds_what_an_import_makes(cache, tmp_path, large, name):
    folder, runs = large if name == "large" else STORES / name, tmp_path / "runs.db"
    with ArtifactDAG.create(runs) as dag:
        import_atomicguard(dag, folder)
        found = [(item.id, item.history) for item in dag.extract(refinement())]
    with ArtifactDAG.load(folder) as dag:
        assert [(item.id, item.history) for item in dag.extract(refinement())] == found
        assert dag.verify().problems == []
    (side,) = made(cache)
    assert tables(side) == tables(runs)
    assert build(side) == build(runs)
    assert build(side)[1] == [("wal",), (16384,)]


@pytest.mark.slow
def test_a_kill_while_it_is_made_leaves_nothing_in_use(cache, store):
    command = [sys.executable, "-c", f"from guardlearn import ArtifactDAG; ArtifactDAG.load({str(store)!r})"]
    for bytes_written in (1, 3_000_000):  # tables are made; many items are there
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while sum(path.stat().st_size for path in cache.rglob(".*.new")) < bytes_written:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not list(cache.rglob("[0-9]*.db"))
        (left,) = cache.rglob(".*.new")
        left.rename(left.with_name(f"{left.name}-{bytes_written}"))
    old, *young = sorted(cache.rglob(".*.new-*"))
    os.utime(old, (0, 0))
    with ArtifactDAG.load(store) as dag:
        assert dag.count() == MANY and dag.verify().problems == []
    assert not old.exists() and all(path.exists() for path in young)  # another process may be writing these


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(cache, store):
    with files_up_to(3_000_000), pytest.raises(RepositoryError, match=r"make room, then run the same command again"):
        ArtifactDAG.load(store)
    assert made(cache) == []
    with ArtifactDAG.load(store) as dag:
        assert dag.count() == MANY and dag.verify().problems == []


@pytest.mark.slow
def test_a_store_that_is_written_while_it_is_read_is_whole_the_next_time(cache, store):
    late = sorted(store.rglob("objects/*/*.json"))[-7:]
    kept = {path: path.read_bytes() for path in late}
    for path in late[:-1]:
        path.write_bytes(kept[path][:300])

    def write(done, total, note):
        for path in late:
            path.write_bytes(kept[path])
            os.utime(path, (time.time() + 5, time.time() + 5))

    late[-1].unlink()
    ArtifactDAG.load(store, on_progress=write).close()
    with ArtifactDAG.load(store) as dag:
        assert dag.count() == MANY and dag.verify().problems == []
        assert dag.known_ids(path.stem for path in late) == {path.stem for path in late}


@pytest.fixture
def small(tmp_path):
    """A small store of its own, to be spoiled."""
    return Path(shutil.copytree(STORES / "fs_2_39_1" / "dag", tmp_path / "small"))


@pytest.fixture
def many_processes(monkeypatch):
    monkeypatch.setattr(atomicguard_folder, "_WATCHED_FROM", 0)
    monkeypatch.setattr(atomicguard_folder, "processors", lambda: 4)


@pytest.mark.parametrize("which", [0, 1, 2, -1])
def test_whoever_looks_at_a_file_sees_that_it_changed(cache, small, many_processes, which):
    ArtifactDAG.load(small).close()
    folders = sorted((small / "objects").iterdir())
    changed = sorted(folders[which].iterdir())[0]
    before, text = changed.stat(), changed.read_text()
    was, now = ("accepted", "rejected") if '"status": "accepted"' in text else ("rejected", "accepted")
    changed.write_text(text.replace(f'"status": "{was}"', f'"status": "{now}"'))
    assert changed.stat().st_size == before.st_size
    with ArtifactDAG.load(small) as dag:
        assert (dag.imports()[-1].report.read, dag.imports()[-1].report.changed) == (1, 1)
    with ArtifactDAG.load(small) as dag:
        assert len(dag.imports()) == 2  # and then nothing more


def folders_of(store):
    return [os.fsencode(path) for path in sorted((store / "objects").iterdir())]


@pytest.mark.parametrize("program", [sys.executable, "/bin/true", "/nowhere/python", ""])
@pytest.mark.parametrize("processes", [0, 1, 9])
def test_any_number_of_processes_says_the_same_whatever_becomes_of_them(monkeypatch, small, program, processes):
    right = {folder: digest(stamps(folder)) for folder in folders_of(small)}
    monkeypatch.setattr(sys, "executable", program)
    with Watchers(list(right), processes) as watchers:
        assert dict(watchers.digests()) == right
    with Watchers([], processes) as watchers:
        assert list(watchers.digests()) == []


def test_a_folder_that_is_none_any_more_counts_as_gone(cache, small, many_processes):
    ArtifactDAG.load(small).close()
    folder = sorted((small / "objects").iterdir())[5]
    shutil.rmtree(folder)
    folder.write_text("a file of this name")
    with ArtifactDAG.load(small) as dag:
        assert 0 < dag.count() < 60


_ODD = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & {*name} and name not in (b".", b".."))


@given(names=st.sets(_ODD, max_size=6))
def test_files_of_any_name_have_their_stamps(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("odd")
    for name in names:
        (folder / os.fsdecode(name + b".json")).write_bytes(name)
        (folder / os.fsdecode(name + b".jso")).write_bytes(b"")
    found = parse(stamps(os.fsencode(folder)))
    assert list(found) == sorted(name + b".json" for name in names)
    for name, state in found.items():
        assert state == b"%d %d" % (
            (folder / os.fsdecode(name)).stat().st_mtime_ns,
            len(name) - len(b".json"),
        )


_PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
_ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
_TEXT = _PLAIN | st.sampled_from(["1e5", ":1e5", ",0.00001", "[3e", "\x7f", '\n\t\b\f\r\\"/', "é", "\x1f"]) | _ANY
_NUMBER = (
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-1e-3, 1e-3)
    | st.floats(1e14, 1e18)
    | st.integers(-(10**6), 10**6).map(lambda whole: whole / 1000)
)
_VALUE = st.recursive(
    st.none() | st.booleans() | _NUMBER | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=6,
)


@pytest.mark.slow
@example({"a": 0.00002, "b": "1"}, {})
@example({"a": [1, -0.00003]}, {})
@example({"a": [-1e22]}, {"temperature": 1e-7})
@example({"a": 1e16}, {})
@example({"a": "\x7f"}, {})
@example({"é": 1}, {})
@settings(max_examples=400)
@given(metadata=st.dictionaries(_TEXT, _VALUE, max_size=4), sampling=st.dictionaries(_PLAIN, _NUMBER, max_size=2))
def test_what_was_decoded_from_json_is_encoded_to_the_same_bytes(metadata, sampling):
    decoded = {"metadata": metadata, "sampling": sampling}
    with contextlib.suppress(msgspec.MsgspecError):  # what it cannot decode is encoded the other way
        decoded = msgspec.json.decode(json.dumps(decoded))
    item = RepositoryItem(id="a", artifact="", specification="", status=ArtifactStatus.PENDING, **decoded)
    right = {name: value for name, value in (("sampling", sampling), ("metadata", metadata)) if value}
    expected = json.dumps(right, sort_keys=True, separators=(",", ":")).encode() if right else b""
    assert encode_item(item, decoded=True).body["details"] == encode_item(item).body["details"] == expected
