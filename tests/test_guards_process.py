"""guards/process.py: what runs in the limited process cannot outlast, outgrow or out-fork its limits."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guardlearn.errors import GuardError
from guardlearn.guards.process import Limits, Outcome, run_limited

SHORT = Limits(wall_seconds=0.6)


def printed(code: str, limits: Limits = Limits(), **options: object) -> str:
    return run_limited(code, b"", limits, **options).stdout.decode()  # type: ignore[arg-type]


def test_source_runs_and_reads_its_input():
    result = run_limited("import sys\nprint(sys.stdin.buffer.read().upper().decode())", b"hello")
    assert (result.outcome, result.returncode, result.stdout) == (Outcome.EXITED, 0, b"HELLO\n")


def test_nothing_of_the_parent_is_inherited(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    shown = printed("import os, sys\nprint(sorted(os.environ), os.listdir('.'), sys.flags.isolated, sys.flags.no_site)")
    assert "SECRET" not in shown
    assert shown.endswith("[] 1 1\n")


def test_its_folder_is_writable_small_and_gone_afterwards():
    folder = printed("import os\nopen('a', 'w').write('x')\nprint(os.getcwd())").strip()
    assert folder
    assert not Path(folder).exists()
    assert "File too large" in printed("try: open('a', 'w').write('x' * 10**6)\nexcept OSError as e: print(e)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", ["while True: pass", "import time\ntime.sleep(60)", "import os\nos.close(1)\nwhile True: pass"]
)
def test_endless_code_is_killed(code):
    began = time.monotonic()
    assert run_limited(code, b"", SHORT).outcome is Outcome.TIMEOUT
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_processor_time_is_limited_by_the_kernel():
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    result = run_limited(code, b"", Limits(wall_seconds=30.0), preload=["signal"])
    assert result.outcome is Outcome.TIMEOUT
    assert result.seconds < 25


def test_endless_output_is_cut():
    result = run_limited("while True: print('x' * 1000)", b"", Limits(output_bytes=5000))
    assert result.outcome is Outcome.OUTPUT
    assert len(result.stdout) == 5000


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel elsewhere does not limit address space or users so")
def test_memory_processes_threads_and_files_are_limited():
    assert "no memory" in printed("try: bytearray(10**9)\nexcept MemoryError: print('no memory')")
    assert "no fork" in printed("import os\ntry: os.fork()\nexcept OSError: print('no fork')")
    code = "import threading\ntry: threading.Thread(target=print).start()\nexcept RuntimeError: print('no thread')"
    assert "no thread" in printed(code, preload=["threading"])
    code = "held = []\ntry:\n while True: held.append(open('/dev/null'))\nexcept OSError: print(len(held) < 32)"
    assert "True" in printed(code)
    assert "refused" in printed(
        "import resource\ntry: resource.setrlimit(resource.RLIMIT_CPU, (99, 99))\nexcept ValueError: print('refused')"
    )


def test_children_are_killed_with_their_parent(tmp_path):
    # the orphan keeps the pipe open and would outlive its parent by a minute
    code = "import os, time\npid = os.fork()\nprint(pid or '', flush=True)\nif not pid: time.sleep(60)"
    result = run_limited(code, b"", Limits(wall_seconds=1.5, processes=4096))
    orphan = int(result.stdout.split()[0])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(orphan):
        time.sleep(0.01)
    assert not _runs(orphan)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root has root to give up")
def test_root_is_given_up():
    shown = printed("import os\ntry: os.setuid(0)\nexcept OSError: print('refused', 0 in os.getresuid())")
    assert shown == "refused False\n"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can give each a user of its own")
def test_as_root_what_leaves_the_session_is_killed_too():
    code = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  print(os.getpid(), flush=True)\n"
    result = run_limited(code + "  time.sleep(60)\ntime.sleep(0.5)", b"", Limits(processes=8, wall_seconds=20))
    assert not _runs(int(result.stdout.split()[0]))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can give each a user of its own")
def test_as_root_two_at_once_are_two_users():
    code = "import os, time\nprint(os.getuid(), flush=True)\ntime.sleep(1)"
    with ThreadPoolExecutor(3) as pool:
        users = list(pool.map(lambda _: printed(code, Limits(wall_seconds=20)), range(3)))
    assert len(set(users)) == 3


def test_both_streams_are_read_and_bounded():
    code = "import os\nos.write(1, b'out')\nos.write(2, b'error')"
    result = run_limited(code, b"", Limits(output_bytes=5))
    assert (result.stdout, result.stderr, result.outcome) == (b"out", b"error", Outcome.EXITED)
    result = run_limited(code, b"", Limits(output_bytes=4))
    assert (result.stdout, result.stderr, result.outcome) == (b"out", b"erro", Outcome.OUTPUT)


# each child stays below the kernel's limit, and so does their parent
MANY = (
    "import os, time\nwhile 1:\n if os.fork() == 0:\n  while time.process_time() < 0.5: pass\n  os._exit(0)\n os.wait()"
)
TOGETHER = {
    "memory": ("import os, time\nfor _ in 'abc': os.fork()\nheld = b'x' * (90 << 20)\ntime.sleep(60)", Outcome.MEMORY),
    "processor time": (MANY, Outcome.TIMEOUT),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a tree is only looked at on Linux")
@pytest.mark.parametrize("use", TOGETHER)
def test_what_a_tree_uses_together_is_limited(use):
    code, outcome = TOGETHER[use]
    result = run_limited(code, b"", Limits(processes=4096, wall_seconds=90))
    assert result.outcome is outcome
    assert result.seconds < 80


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel elsewhere does not limit address space")
def test_what_cannot_start_is_an_error_and_no_result():
    with pytest.raises(GuardError, match="before its program began"):
        run_limited("print(1)", b"", Limits(address_bytes=1 << 20))


def test_a_crash_is_told_from_a_limit():
    result = run_limited("import os\nos.kill(os.getpid(), 11)")
    assert (result.outcome, result.returncode) == (Outcome.SIGNALLED, -11)
    assert run_limited("raise SystemExit(3)").returncode == 3


def test_many_threads_may_call_it():
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: run_limited(f"print({n})").stdout, range(40)))
    assert results == [f"{n}\n".encode() for n in range(40)]


def test_preload_takes_only_the_standard_library(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert run_limited("print('ran')", preload=["evil", "math"]).stdout == b"ran\n"
