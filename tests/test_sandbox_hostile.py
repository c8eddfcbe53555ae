"""The hostile set against guards in the sandbox: none accepted, the host as it was; all of it in prove/hostile.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from attacked import LIMITS, judge
from guardlearn.guards import sandbox
from hostile import ATTACKS, SECRET, good, hostile
from users import run_as_user

STATE = sandbox.state()
pytestmark = pytest.mark.skipif(not STATE.works, reason=f"no sandbox works here: {STATE.reason}")
TESTS = Path(__file__).parent
SLOW = (  # these use up the second of processor time they have, or wait for the clock
    "loop", "waits", "shell", "flood", "sleep", "mmap", "100 MB", "memory bomb,", "memory bomb", "daemon",
)  # fmt: skip
OF_THE_SLOW = (
    "endless loop against signals", "fork bomb that waits", "output flood", "endless sleep", "a daemon that stays",
    "memory bomb through mmap",
)  # fmt: skip


def quick() -> list[str]:
    return [name for name in hostile() if not any(word in name for word in SLOW)]


def judge_as_user(guard: str, names: list[str], goods: int) -> dict[str, Any]:
    asked = json.dumps({"guard": guard, "names": names, "goods": goods})
    done = run_as_user(
        f"import os, sys; sys.path[:0] = {[str(TESTS), str(TESTS.parent / 'src')]!r}; os.chdir('/tmp')\n"
        "import json, tempfile, attacked; from pathlib import Path\n"
        "print(json.dumps(attacked.judge(Path(tempfile.mkdtemp()), **json.loads(sys.argv[1]))))",
        asked,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any], goods: int) -> None:
    wrong = [v for v in found["verdicts"] if v["status"] != ("accepted" if v["name"] == "good" else "rejected")]
    assert wrong == []
    assert sum(verdict["name"] == "good" for verdict in found["verdicts"]) == goods
    assert not [verdict for verdict in found["verdicts"] if SECRET in verdict["feedback"]]
    assert found["changes"] == []
    assert found["leftovers"] == []
    late = [v for v in found["verdicts"] if v["seconds"] > LIMITS.wall_seconds + 5]
    assert late == []


def test_the_set_is_large_enough():
    assert len(ATTACKS) >= 40
    assert len(set(good())) == len(good()) >= 40


@pytest.mark.slow
def test_no_attack_is_accepted_and_no_good_artifact_rejected(tmp_path):
    tmp_path.chmod(0o755)
    check(judge(tmp_path, "house_style", [*quick(), *OF_THE_SLOW], len(good())), len(good()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs users to change to")
def test_nor_for_a_user():
    found = judge_as_user("house_style", quick()[::2], 6)
    assert found["user"] != 0
    check(found, 6)


AGAINST_TESTS = (
    "os._exit(0), on import", "patched test libraries, on import", "planted settings, on import", "equal to everything",
    "close enough to everything", "SystemExit in a thread of the exit",
)  # fmt: skip


@pytest.mark.slow
def test_nor_by_a_pytest_suite(tmp_path):
    tmp_path.chmod(0o755)
    check(judge(tmp_path, "tests", list(AGAINST_TESTS), 1), 1)
