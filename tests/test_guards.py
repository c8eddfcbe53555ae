"""Guards in Python: loading by name, plain functions as guards, judging, what they print, digests of their code."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from guardlearn.errors import GuardError, SandboxUnavailable, UsageError
from guardlearn.guards import as_guard, as_verdict, code_digest, judge, load_guard
from guardlearn.types import ArtifactStatus, GuardContext, Specification, Verdict

CONTEXT = GuardContext(specification=Specification(id="s", specification="say yes"))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a writer of guard modules that lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)

    return write


def test_the_demo_guard_by_either_name():
    assert load_guard("house_style") is load_guard("guardlearn.demo:house_style")


def test_a_function_in_the_working_folder(module):
    module("yes_guard", "def check(artifact):\n    return artifact == 'yes', 'say yes'\n")
    guard = load_guard("yes_guard:check")
    accepted, rejected = guard("yes", CONTEXT), guard("no", CONTEXT)
    assert accepted.passed
    assert (rejected.status, rejected.feedback) == (ArtifactStatus.REJECTED, "say yes")
    assert (rejected.guard, rejected.guard_version) == ("yes_guard:check", guard.version)


def test_a_function_may_look_at_the_context():
    guard = as_guard(lambda artifact, context: artifact in context.specification.specification, "within")
    assert guard("yes", CONTEXT).passed
    assert not guard("no", CONTEXT).passed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nonsense", "write package.module:attribute or one of house_style, json_schema, pytest, python, sql"),
        ("hose_style", r"did you mean 'house_style'\?"),
        ("no_such_module:check", "no module 'no_such_module'"),
        ("guardlearn.no_such:check", "no module 'guardlearn.no_such'"),
        ("half_guard:nothing", "has no 'nothing'; it has check"),
        (":", "unknown guard"),
    ],
)
def test_a_wrong_name_says_what_is_right(module, name, words):
    module("half_guard", "def check(artifact):\n    return True\n")
    with pytest.raises(UsageError, match=words):
        load_guard(name)


def test_a_module_that_fails_is_not_a_wrong_name(module):
    module("broken_guard", "import not_installed_anywhere\n")
    with pytest.raises(GuardError, match="not_installed_anywhere"):
        load_guard("broken_guard:check")
    module("crashing_guard", "1 / 0\n")
    with pytest.raises(GuardError, match="ZeroDivisionError"):
        load_guard("crashing_guard:check")


def test_classes_and_values_are_no_guards():
    with pytest.raises(GuardError, match="is a class"):
        as_guard(Verdict, "v")
    with pytest.raises(GuardError, match="cannot be called"):
        as_guard(3, "three")


def test_a_guard_that_fails_gives_no_verdict():
    verdict = as_guard(lambda artifact: 1 / 0, "crash")("x", CONTEXT)
    assert verdict.status is ArtifactStatus.PENDING
    assert "ZeroDivisionError" in verdict.feedback


def test_an_answer_that_is_no_verdict_is_refused():
    with pytest.raises(GuardError, match="no verdict"):
        as_guard(lambda artifact: "fine", "odd")("x", CONTEXT)
    with pytest.raises(GuardError, match="no verdict"):
        as_verdict(None)


def test_judging_a_guard_that_raises_gives_no_verdict_and_nonsense_is_an_error():
    class Raising:
        name, version, constraints = "raising", "1", ""

        def __call__(self, artifact, context):
            raise KeyError("metadata")

    verdict = judge(Raising(), "x", CONTEXT)
    assert (verdict.status, verdict.feedback) == (ArtifactStatus.PENDING, "KeyError: 'metadata'")
    assert (verdict.guard, verdict.guard_version, verdict.cause) == ("raising", "1", "guard failed")
    assert verdict.seconds > 0

    class Nonsense(Raising):
        name = "nonsense"

        def __call__(self, artifact, context):
            return True

    with pytest.raises(GuardError, match=r"guard 'nonsense' returned bool; it must return guardlearn\.Verdict"):
        judge(Nonsense(), "x", CONTEXT)
    with pytest.raises(GuardError, match="guard 'none' returned 'None', which is no verdict"):
        judge(as_guard(lambda artifact: None, "none"), "x", CONTEXT)


def test_judging_without_a_sandbox_stops_instead_of_giving_no_verdicts():
    def check(artifact):
        raise SandboxUnavailable("install it")

    class Refusing:
        name, version, constraints = "refusing", "1", ""

        def __call__(self, artifact, context):
            raise SandboxUnavailable("install it")

    for guard in (Refusing(), as_guard(check)):
        with pytest.raises(SandboxUnavailable):
            judge(guard, "x", CONTEXT)


FLOOD = """
import json, sys, threading, tracemalloc
from guardlearn.guards import as_guard, judge
from guardlearn.types import GuardContext, Specification

def check(artifact):
    for _ in range(100):
        print("x" * 1_000_000)
    print("to stderr", file=sys.stderr)
    return True

context = GuardContext(specification=Specification(id="s", specification="t"))
tracemalloc.start()
verdict = judge(as_guard(check, "flood"), "x", context)
print(json.dumps({"passed": verdict.passed, "peak": tracemalloc.get_traced_memory()[1]}))
"""


def test_a_guard_that_prints_100_mb_floods_nothing():
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)  # standard output is the program's own
    assert answer["passed"] and answer["peak"] < 30_000_000
    assert len(done.stderr) < 10_200
    assert "guard 'flood' prints more than 10000 characters; the rest is not shown" in done.stderr


def test_prints_of_a_guard_and_of_other_threads_are_told_apart(capsys):
    inside, done = threading.Event(), threading.Event()

    def check(artifact):
        print("by the guard")
        inside.set()
        return done.wait(30)

    thread = threading.Thread(target=judge, args=(as_guard(check, "printing"), "x", CONTEXT))
    thread.start()
    assert inside.wait(30)
    print("by this thread")
    done.set()
    thread.join()
    print("afterwards")
    out, err = capsys.readouterr()
    assert out == "by this thread\nafterwards\n"
    assert err == "by the guard\n"


def test_the_guides_result_objects_are_understood():
    class Result:
        passed = False
        feedback = "too long"

    verdict = as_verdict(Result())
    assert (verdict.status, verdict.feedback) == (ArtifactStatus.REJECTED, "too long")
    fatal = Verdict(status=ArtifactStatus.REJECTED, fatal=True)
    assert as_verdict(fatal) is fatal


def test_code_digest_follows_code_and_settings():
    def one(x):
        return x + 1

    def two(x):
        return x + 2

    class Limited:
        def __init__(self, limit):
            self.limit = limit

    assert code_digest(one) == code_digest(one) != code_digest(two)
    assert code_digest(Limited(1)) == code_digest(Limited(1)) != code_digest(Limited(2))
    assert code_digest({"a": [1]}) != code_digest({"a": [2]})
    typed_at_a_prompt = [eval(source) for source in ("lambda x: x + 1", "lambda x: x + 1", "lambda x: x + 2")]
    first, same, other = (code_digest(function) for function in typed_at_a_prompt)
    assert first == same != other
