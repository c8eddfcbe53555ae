"""`guardlearn ui` as a process: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from databases import Files
from guardlearn import ArtifactDAG, RepositoryItem
from guardlearn.types import ArtifactStatus

SECONDS = 120


@pytest.fixture
def db(sqlite_files: Files) -> Iterator[Path]:
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            dag.append(RepositoryItem(id="a", artifact="x", specification="s", status=ArtifactStatus.ACCEPTED))
        yield Path(place.target)


@contextlib.contextmanager
def started(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Yield the process once it listens, with the object that it printed."""
    command = [sys.executable, "-m", "guardlearn", "ui", *arguments, "--json"]
    own = os.environ | {"GUARDLEARN_ACTOR": "the actor"} | environment
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own)
    watchdog = threading.Timer(SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        lines = ""
        while not lines.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                break
            lines += line
        yield process, json.loads(lines) if lines else {}
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def fetched(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def refused(*arguments: str) -> str:
    """The one line of a command that is refused."""
    command = [sys.executable, "-m", "guardlearn", "ui", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode in (1, 2) and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("guardlearn: ")
    return line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(db: Path, tmp_path: Path, number: int) -> None:
    before, program = db.read_bytes(), tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nprintf "%s" "$1" > {tmp_path}/opened\n', encoding="utf-8")
    program.chmod(0o755)
    with started(str(db), "--port", "0", "--open", BROWSER=f"{program} %s") as (process, said):
        assert said["url"].startswith("http://127.0.0.1:") and not said["token"] and not said["read_only"]
        assert said["repository"] == str(db)
        status, text = fetched(f"{said['url']}items")
        assert status == 200 and "items/a" in text
        assert "the actor" in fetched(f"{said['url']}items/a")[1]
        assert (tmp_path / "opened").read_text(encoding="utf-8") == said["url"]
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        lines = errors.splitlines()
        assert lines[-1] == "guardlearn ui: ended" and f"{said['url']} (Ctrl-C ends)" in lines[0], errors
        assert len(lines) == 2
    assert db.read_bytes() == before  # looking changes nothing
    assert [path.name for path in db.parent.iterdir()] == [db.name]


@pytest.mark.slow
def test_a_long_query_does_not_keep_it(db: Path) -> None:
    """A count of so many combinations would take years."""
    with ArtifactDAG.load(db) as dag:
        dag.append_many(
            RepositoryItem(id=f"i{n}", artifact="", specification="s", status=ArtifactStatus.ACCEPTED)
            for n in range(3000)
        )
        with dag.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE specifications RENAME TO kept")
            connection.exec_driver_sql(
                "CREATE VIEW specifications AS SELECT kept.* FROM kept, items a, items b, items c, items d"
            )
    with started(str(db), "--port", "0") as (process, said):
        asking = threading.Thread(target=_try, args=(said["url"],))
        asking.start()
        time.sleep(1.0)
        assert asking.is_alive()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0
        asking.join(30)


def _try(url: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        fetched(url)


@pytest.mark.slow
def test_others_need_the_token(db: Path) -> None:
    with started(str(db), "--port", "0", "--host", "0.0.0.0", "--read-only") as (process, said):
        url, _, token = said["url"].partition("/?token=")
        assert said["token"] and said["read_only"] and len(token) >= 43
        port = url.rpartition(":")[2]
        assert fetched(f"http://127.0.0.1:{port}/")[0] == 403
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
        assert errors.count(token) == 1 and "others can connect" in errors and "for reading only" in errors


@pytest.mark.slow
def test_a_taken_port_is_one_line(db: Path) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        line = refused(str(db), "--port", str(taken.getsockname()[1]))
    assert "Address already in use" in line and "--port" in line


@pytest.mark.slow
def test_what_is_no_repository_is_one_line(tmp_path: Path, db: Path) -> None:
    assert "does not exist" in refused(str(tmp_path / "none.db"))
    (tmp_path / "text").write_text("no database at all, but long enough for one" * 9, encoding="utf-8")
    assert "no guardlearn repository" in refused(str(tmp_path / "text"))
    assert "no model folder at ./none" in refused(str(db), "--model", "./none")


def test_a_missing_library_is_named(db: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('gone', name='uvicorn')", encoding="utf-8")
    command = [sys.executable, "-m", "guardlearn", "ui", str(db)]
    own = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own, timeout=SECONDS)
    assert done.returncode == 1
    assert done.stderr.strip() == "guardlearn: the browser needs uvicorn; run: pip install 'guardlearn[ui]'"


@pytest.mark.slow
def test_an_atomicguard_folder_can_be_looked_at_not_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = Path(__file__).parent / "data" / "stores"
    folder = next(path.parent for path in sorted(stores.rglob("index.json")))
    with started(str(folder), "--port", "0", XDG_CACHE_HOME=str(tmp_path)) as (_, said):
        assert said["read_only"]
        status, text = fetched(said["url"])
        assert status == 200 and "side file" in text
