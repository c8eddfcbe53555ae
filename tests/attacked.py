"""Runs the hostile set through a guard on this machine, and looks at what changed.

python tests/attacked.py '{"guard": "house_style", "names": ["fork bomb"], "goods": 2}'
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guardlearn.demo.guard import HouseStyle
from guardlearn.guards.checking import TEST_LIMITS, run_tests
from guardlearn.guards.process import Limits
from guardlearn.types import GuardContext, Specification
from hostile import CASES, SECRET, SIGNATURE, TESTS, good, hostile


@dataclasses.dataclass
class Host:
    """What could be taken or changed: a folder open to all, listeners, a process, an environment."""

    folder: Path

    def __post_init__(self) -> None:
        self.victim = self.folder / "victim"
        self.victim.mkdir()
        (self.victim / "file").write_text(SECRET, encoding="utf-8")
        self.name = f"guardlearn-hostile-{os.getpid()}"
        self.listeners = [socket.create_server(("127.0.0.1", 0))]
        for address in (f"\0{self.name}", str(self.victim / "socket")):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
            self.listeners.append(listener)
        for path in (self.folder, self.victim, *self.victim.iterdir()):
            path.chmod(0o777)
        for listener in self.listeners:
            listener.setblocking(False)
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(3600)"], env={"SECRET": SECRET}, start_new_session=True
        )
        os.environ["GUARDLEARN_CANARY"] = SECRET
        self.before = self.snapshot()

    def filled(self, artifact: str) -> str:
        """Return an artifact with the host's names in it."""
        names = {"victim": str(self.victim), "port": self.listeners[0].getsockname()[1], "pid": self.process.pid}
        for name, value in {**names, "name": self.name}.items():
            artifact = artifact.replace(f"{{{name}!r}}", repr(value)).replace(f"{{{name}}}", str(value))
        return artifact

    def snapshot(self) -> dict[str, object]:
        """Return what an attack could have changed."""
        watched = [self.folder, *self.folder.rglob("*"), Path(__file__), Path(sys.prefix, "bin")]
        files = {str(p): (p.lstat().st_mode, p.lstat().st_mtime_ns, p.lstat().st_size) for p in watched}
        planted = [str(p) for p in Path(sys.prefix, "lib").rglob("sitecustomize.py")]
        return {
            "files": files,
            "planted": planted,
            "hostname": socket.gethostname(),
            "secret": (self.victim / "file").read_text(encoding="utf-8"),
            "tmp": oct(Path("/tmp").stat().st_mode),
        }

    def changes(self) -> list[str]:
        """Return what is not as it was."""
        after = self.snapshot()
        found = [key for key in after if after[key] != self.before[key]]
        if self.process.poll() is not None:
            found.append("a process was killed")
        for listener in self.listeners:
            try:
                listener.accept()
                found.append(f"somebody connected to {listener.getsockname()}")
            except BlockingIOError:
                pass
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for listener in self.listeners:
            listener.close()
        os.environ.pop("GUARDLEARN_CANARY", None)


def leftovers(before: set[int], patience: float = 40.0) -> list[str]:
    """Return what goes on running of what was started since, by anybody: other tests' sandboxes end in that time."""
    deadline = time.monotonic() + patience
    left = processes() - before
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= processes()
    return [_command(pid) for pid in left]


def processes() -> set[int]:
    """Return the processes of the users that sandboxes have, and of this one if it is not root."""
    users = {*range(60_600, 61_100)} | ({os.geteuid()} - {0})
    found = set()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                state = (path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                if path.stat().st_uid in users and state != "Z":
                    found.add(int(path.name))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")[:200]
    return str(pid)


def judge(folder: Path, guard: str, names: Iterable[str], goods: int) -> dict[str, Any]:
    """Run attacks with good artifacts mixed between them through a guard; return verdicts and what changed.

    Args:
        folder: empty; gets what can be attacked.
        guard: "house_style" (cases) or "tests" (a pytest suite).
        names: the attacks.
        goods: how many good artifacts.
    """
    host, before = Host(folder), processes()
    check = {"house_style": _house_style, "tests": _tests}[guard]
    attacks = hostile()
    queue = [(name, host.filled(attacks[name])) for name in names] + [("good", code) for code in good()[:goods]]
    random.Random(0).shuffle(queue)
    verdicts = []
    try:
        for name, artifact in queue:
            began = time.monotonic()
            status, cause, feedback = check(artifact)
            seconds = time.monotonic() - began
            verdicts.append({"name": name, "status": status, "cause": cause, "feedback": feedback, "seconds": seconds})
        time.sleep(3.5 if "a daemon that stays" in names else 0)  # it would write by then
        return {
            "user": os.geteuid(),
            "verdicts": verdicts,
            "changes": host.changes(),
            "leftovers": leftovers(before | {host.process.pid}),
        }
    finally:
        host.close()


LIMITS = Limits(wall_seconds=20.0, cpu_seconds=1, processes=4)
ASLEEP = "time.sleep(60)"


def _house_style(artifact: str) -> tuple[str, str, str]:
    spec = Specification(id="s", specification="x plus 2", metadata={"signature": SIGNATURE, "cases": CASES})
    limits = dataclasses.replace(LIMITS, wall_seconds=3.0) if ASLEEP in artifact else LIMITS
    guard = HouseStyle(limits=limits, sandbox="bubblewrap")
    verdict = guard(f"```python\n{artifact}```", GuardContext(specification=spec))
    return verdict.status.value, verdict.cause, verdict.feedback


def _tests(artifact: str) -> tuple[str, str, str]:
    limits = dataclasses.replace(TEST_LIMITS, cpu_seconds=4, processes=8)
    bare = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # a start costs a second less
    tests = {"test_f.py": TESTS}
    run = run_tests(artifact, tests, limits=limits, sandbox="bubblewrap", environment=bare)
    return "accepted" if run.passed else "rejected", run.cause, run.output


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(judge(Path(tempfile.mkdtemp()), **asked)))
