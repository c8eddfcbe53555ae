"""A backup is one state of ℛ, made while others write, and whole or not there."""

import subprocess
import sys
import threading

import pytest

from guardlearn import ArtifactDAG, ArtifactStatus, RepositoryItem
from guardlearn.dag.backup import backup
from guardlearn.errors import RepositoryError


def item(number):
    given = {"specification": f"task {number}", "group": f"g{number % 7}", "status": ArtifactStatus.REJECTED}
    return RepositoryItem(id=f"i{number:05}", artifact="x" * 2000, **given)


def test_it_holds_what_was_acknowledged_and_is_clean_while_a_writer_goes_on(tmp_path):
    acknowledged, stop = [], threading.Event()
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:

        def write():
            while not stop.is_set():
                dag.append(item(len(acknowledged)))
                acknowledged.append(len(acknowledged))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(3):
                while len(acknowledged) < 40 * (number + 1):
                    stop.wait(0.01)
                before = len(acknowledged)
                assert backup(tmp_path / "runs.db", tmp_path / f"copy{number}.db") > 40_000
                with ArtifactDAG.load(tmp_path / f"copy{number}.db") as copy:
                    assert copy.verify().problems == []
                    assert before <= copy.count() <= len(acknowledged) + 1
        finally:
            stop.set()
            writer.join()
        assert dag.count() == len(acknowledged)
        assert dag.verify().problems == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy0.db", "copy1.db", "copy2.db", "runs.db"]


def test_what_is_there_is_kept_and_what_is_no_repository_is_refused(tmp_path):
    ArtifactDAG.create(tmp_path / "runs.db").close()
    (tmp_path / "taken.db").write_text("mine")
    (tmp_path / "text.txt").write_text("no database")
    for source, to, says in (
        ("runs.db", "taken.db", "exists already"),
        ("none.db", "copy.db", "no repository"),
        ("text.txt", "copy.db", "no guardlearn repository"),
        ("runs.db", "no/such/folder/copy.db", "cannot be written"),
    ):
        with pytest.raises(RepositoryError, match=says):
            backup(tmp_path / source, tmp_path / to)
    assert (tmp_path / "taken.db").read_text() == "mine"
    assert not (tmp_path / "copy.db").exists()


def test_a_disk_that_does_not_take_it_leaves_nothing(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        dag.append_many(item(number) for number in range(200))
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"sys.argv = ['guardlearn', 'backup', {str(tmp_path / 'runs.db')!r}, {str(tmp_path / 'copy.db')!r}]\n"
        "from guardlearn.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("guardlearn: the backup cannot be written") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]


def test_postgresql_backs_up_by_itself(postgres, tmp_path):
    with postgres.installed() as place, pytest.raises(RepositoryError, match="pg_dump"):
        backup(place.target, tmp_path / "copy.db")
    assert list(tmp_path.iterdir()) == []
