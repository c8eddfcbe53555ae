"""guards/__init__.py: loading by name, plain functions as guards, digests of their code."""

from __future__ import annotations

import pytest

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import as_guard, as_verdict, code_digest, load_guard
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
        ("nonsense", "house_style"),
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
