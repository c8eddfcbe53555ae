"""guards/command.py: what goes in, which exit code is which verdict, limits, and what feedback holds; real programs."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import pytest

from guardlearn import ArtifactStatus, CommandGuard, GuardContext, Specification
from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import COMMAND_LIMITS, sandbox

pytestmark = pytest.mark.skipif(not sandbox.state().works, reason=f"no sandbox works here: {sandbox.state().reason}")

ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING
SHORT = dataclasses.replace(COMMAND_LIMITS, cpu_seconds=1, wall_seconds=30.0, memory_bytes=64 << 20)


def context(**metadata):
    return GuardContext(specification=Specification(id="s", specification="a task", metadata=metadata))


def shell(script, **settings):
    """A guard that is a shell script; the artifact is $1."""
    return CommandGuard(["sh", "check.sh", "artifact.txt"], files={"check.sh": script}, **settings)


EXITS = [
    ("exit 0", {}, ACCEPTED, "", ""),
    ("echo no good; exit 1", {}, REJECTED, "sh", "no good"),
    ("echo odd; exit 3", {}, PENDING, "guard failed", "sh failed (exit code 3)\nodd"),
    ("exit 3", {"accept": [3], "reject": [0]}, ACCEPTED, "", ""),
    ("exit 3", {"reject": [3, 4]}, REJECTED, "sh", ""),
    ("kill -SEGV $$", {}, PENDING, "guard failed", "sh failed (signal 11)"),
    ("kill -SEGV $$", {"reject": [1, -11]}, REJECTED, "sh", ""),
    ("exit 0", {"accept_output": "all good"}, REJECTED, "ended early", "ended before it was done"),
    ("echo all good", {"accept_output": "all good"}, ACCEPTED, "", ""),
    ("echo broken; exit 1", {"reject_output": "artifact.txt:"}, PENDING, "guard failed", "exit code 1)\nbroken"),
    (
        "echo artifact.txt:3 wrong >&2; exit 1",
        {"reject_output": "artifact.txt:"},
        REJECTED,
        "sh",
        "artifact.txt:3 wrong",
    ),
    ("exec no-such-program", {}, PENDING, "guard failed", "exit code 127)"),
    (f"echo {'a' * 50}b; exit 1", {"keep": "^(a+)+$"}, PENDING, "guard failed", "did not decide"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "settings", "status", "cause", "words"), EXITS)
def test_an_exit_code_becomes_a_verdict(script, settings, status, cause, words):
    guard = shell(script, **settings)
    verdict = guard("x", context())
    assert (verdict.status, verdict.cause, verdict.fatal) == (status, cause, False), verdict
    assert words in verdict.feedback
    assert (verdict.guard, verdict.guard_version) == ("sh", guard.version) and verdict.seconds > 0


def test_an_exit_code_may_be_fatal():
    verdict = shell("exit 7", fatal=[7])("x", context())
    assert (verdict.status, verdict.fatal) == (REJECTED, True)


LIMITED = [
    ("while :; do :; done", {}, "timeout", "took too long"),
    ("sleep 100", {"wall_seconds": 1.5}, "timeout", "took too long"),
    ("echo start; head -c 100000000 /dev/zero | tr '\\0' x", {}, "output", "wrote too much"),
    ("head -c 100000000 /dev/zero >&2", {}, "output", "wrote too much"),
    (
        "x=$(head -c 600000000 /dev/zero | tr '\\0' y); echo $x",
        {"address_bytes": 0, "cpu_seconds": 20},
        "memory",
        "memory",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "limits", "cause", "words"), LIMITED)
def test_over_a_limit_an_artifact_is_rejected(script, limits, cause, words):
    verdict = shell(script, limits=dataclasses.replace(SHORT, **limits))("x", context())
    assert (verdict.status, verdict.cause) == (REJECTED, cause), verdict
    assert words in verdict.feedback and len(verdict.feedback) < 2100


def test_the_artifact_arrives_byte_for_byte():
    text = "line\r\n\ttab \0 nul é 𝄞 \u2028 end"
    by_file = shell("md5sum < $1 | cut -c1-32; exit 1")
    by_stdin = CommandGuard(["sh", "check.sh"], files={"check.sh": "ls; md5sum | cut -c1-32; exit 1"}, stdin=True)
    expected = hashlib.md5(text.encode()).hexdigest()
    assert by_file(text, context()).feedback == expected
    assert by_stdin(text, context()).feedback == f"check.sh\n{expected}"
    assert by_file("", context()).feedback == "d41d8cd98f00b204e9800998ecf8427e"


def test_a_text_that_no_file_can_hold_is_rejected_with_its_line():
    for guard in (shell("exit 0"), CommandGuard(["cat"], stdin=True)):
        verdict = guard("fine\nhalf \udc80", context())
        assert (verdict.status, verdict.cause) == (REJECTED, "encoding")
        assert "line 2 holds half of a surrogate pair (U+DC80)" in verdict.feedback
        verdict.feedback.encode()


def test_extract_takes_the_code_of_an_answer():
    show = "cat $1; exit 1"
    answer = "Sure:\n```js\nlet x = 1\n```\nand\n```\nlet y\n```"
    assert shell(show)(answer, context()).feedback == answer
    assert shell(show, extract="code")(answer, context()).feedback == "let x = 1"
    assert shell(show, extract="code")("let z", context()).feedback == "let z"
    assert shell(show, extract="python")("Well,\ndef f(): ...\n\nThat is f.", context()).feedback == "def f(): ..."
    nothing = shell(show, extract="python")("just words", context())
    assert (nothing.status, nothing.cause) == (REJECTED, "no code")


def test_further_files_come_from_settings_a_folder_and_the_specification(tmp_path):
    (tmp_path / "data" / "__pycache__").mkdir(parents=True)
    (tmp_path / "data" / "deep").mkdir()
    (tmp_path / "data" / "deep" / "a.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "data" / "artifact.txt").write_text("a placeholder")
    (tmp_path / "data" / "__pycache__" / "left.out").write_text("")
    script = "find . -type f | sort; cat $1 own/b.txt; exit 1"
    guard = shell(script, folder=str(tmp_path / "data"))
    verdict = guard("the artifact", context(files={"own/b.txt": "of the spec"}))
    assert verdict.feedback.split() == (
        "./artifact.txt ./check.sh ./deep/a.bin ./own/b.txt the artifactof the spec".split()
    )


@pytest.mark.parametrize("files", [["a"], {"a": 3}, "a", {"../a": "x"}, {"/etc/passwd": "x"}, {"": "x"}])
def test_a_specification_with_other_files_is_an_error_that_names_it(files):
    with pytest.raises(GuardError, match="specification 's'"):
        shell("exit 0")("x", context(files=files))


def test_nothing_of_this_process_reaches_the_program(monkeypatch, tmp_path):
    monkeypatch.setenv("A_SECRET", "hunter2")
    (tmp_path / "mine.txt").write_text("hunter2")
    script = f"env; cat {tmp_path}/mine.txt; cat /etc/shadow; ls /root /home; exit 1"
    feedback = shell(script, environment={"GIVEN": "yes"})("x", context()).feedback
    assert "GIVEN=yes" in feedback and "hunter2" not in feedback and "root:" not in feedback
    for path in (tmp_path, tmp_path / "mine.txt"):
        path.chmod(0o755)  # started as root, the sandbox is another user
    guard = shell(f"cat {tmp_path}/mine.txt && exit 1", readable=[str(tmp_path)])
    assert guard("x", context()).feedback == "hunter2"


def test_feedback_is_the_same_wherever_and_whenever_it_runs(tmp_path, monkeypatch):
    code = "import sys, os, time; print(object(), os.getcwd(), sys.prefix, f'in {time.time() % 7:.3f}s'); sys.exit(1)"
    guard = CommandGuard(["python", "-c", code])
    first = guard("x", context())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    second = guard("x", context())
    assert first.feedback == second.feedback
    assert "0x…" in first.feedback and "in …" in first.feedback and os.sep + "work" not in first.feedback


def test_keep_and_the_bound_choose_what_is_told():
    script = "i=0; while [ $i -lt 200 ]; do echo noise $i; echo E$i; i=$((i+1)); done; exit 1"
    assert shell(script, keep="^E1?9$")("x", context()).feedback == "E9\nE19"
    short = shell(script, feedback_chars=60)("x", context()).feedback
    assert short.startswith("noise 0\nE0\n") and short.endswith("E199") and "characters left out" in short


def test_the_version_is_the_digest_of_code_settings_and_files(tmp_path):
    (tmp_path / "t.txt").write_text("one")
    variants = [
        shell("exit 0"),
        shell("exit 1"),
        shell("exit 0", accept=[0, 3]),
        shell("exit 0", keep="x"),
        shell("exit 0", limits=SHORT),
        shell("exit 0", environment={"A": "b"}),
        shell("exit 0", folder=str(tmp_path)),
    ]
    (tmp_path / "t.txt").write_text("two")
    variants.append(shell("exit 0", folder=str(tmp_path)))
    assert len({guard.version for guard in variants}) == len(variants)
    assert shell("exit 0").version == shell("exit 0", sandbox="none", readable=[str(tmp_path)]).version


def test_a_python_module_gives_its_name():
    assert CommandGuard(["python", "-B", "-m", "pytest", "-q"]).name == "pytest"
    assert CommandGuard(["/usr/bin/env", "-i"]).name == "env"


REFUSED = [
    ({"command": []}, "needs a command"),
    ({"command": [""]}, "needs a command"),
    ({"accept": [0, 1]}, "exit code 1 cannot both accept and reject"),
    ({"reject": []}, "exit codes that reject"),
    ({"keep": "("}, r"keep '\(' is no regular expression"),
    ({"feedback_chars": 0}, "must be at least 1"),
    ({"file": "../x"}, "no file name within the work folder"),
    ({"files": {"/x": ""}}, "no file name within the work folder"),
    ({"folder": "no/such/folder"}, "there is no folder"),
    ({"readable": ["/no/such/folder"]}, "is not there"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_settings_that_cannot_be_are_refused_when_the_guard_is_made(settings, words):
    with pytest.raises(UsageError, match=words) as caught:
        CommandGuard(**{"command": ["sh"], **settings})
    assert "\n" not in str(caught.value)
