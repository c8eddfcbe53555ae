"""Many processes write to one repository: nothing is lost or doubled, and who waits too long is told.

`prove/writers.py` does the first for half a minute with eight processes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import writing
from databases import Place
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import RepositoryError, UsageError
from writing import attempt

pytestmark = pytest.mark.usefixtures("commands_start_warm")


def in_another_process(script: str, *arguments: object) -> None:
    """Run a script that has `attempt` and ArtifactDAG, and wait for its end."""
    whole = f"import sys; sys.path.insert(0, sys.argv[1])\nfrom writing import *\n{script}"
    command = [sys.executable, "-c", whole, str(Path(__file__).parent), *map(str, arguments)]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.slow
def test_four_processes_append_while_a_reader_polls(installed: Place, tmp_path: Path) -> None:
    found = writing.run_writers(installed.target, tmp_path, writers=4, seconds=1)
    assert writing.intact(found), found


def test_processes_that_begin_at_once_make_one_repository(place: Place, tmp_path: Path) -> None:
    script = (
        "import time; Path(sys.argv[3], sys.argv[4]).touch()\n"
        "while not Path(sys.argv[3], 'go').exists(): time.sleep(0.0005)\n"
        "with ArtifactDAG.open_or_create(sys.argv[2]) as dag: dag.append(attempt(sys.argv[4]))"
    )
    names = [f"i{number}" for number in range(3)]
    threads = [threading.Thread(target=in_another_process, args=(script, place.target, tmp_path, n)) for n in names]
    for thread in threads:
        thread.start()
    while not all((tmp_path / name).exists() for name in names):
        time.sleep(0.005)
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join()
    with ArtifactDAG.load(place.target) as dag:
        assert sorted(item.id for item in dag.extract()) == names
        assert dag.verify().problems == []
    if place.is_file:
        assert [path.name for path in Path(place.target).parent.iterdir()] == ["runs.db"]


def test_opening_it_twice_in_a_process_loses_nothing_to_another_process(tmp_path: Path) -> None:
    """Closing a file drops every lock that its process has on it, SQLite's too: others would remove the log in use."""
    path = tmp_path / "runs.db"
    append = "with ArtifactDAG.load(sys.argv[2]) as dag: dag.append(attempt(sys.argv[3]))"
    with ArtifactDAG.create(path) as dag:
        dag.append(attempt("a"))
        with ArtifactDAG.load(path) as again:
            assert again.count() == 1
        in_another_process(append, path, "b")
        dag.append(attempt("c"))
        in_another_process(append, path, "d")
        assert dag.count() == 4
    with ArtifactDAG.load(path) as dag:
        assert [item.id for item in dag.extract(order_by="seq")] == ["a", "b", "c", "d"]
        assert dag.verify().problems == []


def test_a_repository_is_not_written_over_by_one_that_is_made_meanwhile(tmp_path: Path) -> None:
    from guardlearn.dag.sqlite import SqliteFile

    path = tmp_path / "runs.db"
    slow = SqliteFile(path, str(path)).founding()
    with pytest.raises(RepositoryError, match="exists already"), slow, ArtifactDAG.create(path) as dag:
        dag.append(attempt("a"))
    with ArtifactDAG.load(path) as dag:
        assert dag.count() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch):
    return lambda text: monkeypatch.setenv("GUARDLEARN_BUSY_SECONDS", text)


def test_who_waits_too_long_is_told_what_to_do(installed: Place, patience) -> None:
    patience("0.3")
    with ArtifactDAG.load(installed.target) as holder, ArtifactDAG.load(installed.target) as waiting:
        with holder.writing():
            started = time.perf_counter()
            with pytest.raises(RepositoryError, match=r"another process is writing.*GUARDLEARN_BUSY_SECONDS") as caught:
                waiting.append(attempt("a"))
            assert 0.3 <= time.perf_counter() - started < 5
            assert "\n" not in str(caught.value)
        waiting.append(attempt("a"))
        assert holder.count() == 1


def test_who_waits_long_enough_gets_a_turn(installed: Place, patience) -> None:
    patience("20")
    with ArtifactDAG.load(installed.target) as holder, ArtifactDAG.load(installed.target) as waiting:
        thread = threading.Thread(target=waiting.append, args=(attempt("a"),))
        with holder.writing():
            thread.start()
            time.sleep(0.5)
            assert thread.is_alive()
        thread.join(20)
        assert holder.count() == 1


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e9"])
def test_a_waiting_time_that_is_none_is_refused(installed: Place, patience, text: str) -> None:
    patience(text)
    with pytest.raises(UsageError, match=f"GUARDLEARN_BUSY_SECONDS='{text}' is no waiting time; give seconds"):
        ArtifactDAG.load(installed.target)


def test_what_a_killed_creator_left_neither_hinders_nor_stays(tmp_path: Path) -> None:
    script = (
        "import os\nfrom guardlearn.dag.sqlite import SqliteFile\n"
        "with SqliteFile(Path(sys.argv[2]), '').founding() as connection:\n"
        "    connection.exec_driver_sql('CREATE TABLE items (id)')\n    os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "runs.db"
    with contextlib.suppress(subprocess.CalledProcessError):
        in_another_process(script, path)
    left = list(tmp_path.iterdir())
    assert left and all(each.name.startswith(".runs.db.") for each in left)
    mine = tmp_path / ".runs.db.settings"
    mine.touch()
    for each in [*left, mine]:
        os.utime(each, (0, 0))
    ArtifactDAG.create(path).close()
    assert sorted(each.name for each in tmp_path.iterdir()) == [".runs.db.settings", "runs.db"]
