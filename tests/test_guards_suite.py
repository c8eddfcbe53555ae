"""guards/suite.py: a pytest suite as a guard: verdicts, causes, feedback, and a suite that is itself broken."""

from __future__ import annotations

import pytest

from guardlearn import ArtifactStatus, GuardContext, PytestGuard, Specification
from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import sandbox

pytestmark = pytest.mark.skipif(not sandbox.state().works, reason=f"no sandbox works here: {sandbox.state().reason}")

ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING
TESTS = "from answer import f\n\ndef test_f():\n    assert f(2) == 4\n"
GOOD = "def f(x):\n    return 2 * x\n"


def judged(artifact, files, **settings):
    spec = Specification(id="s", specification="a task", metadata={"files": files})
    return PytestGuard(**settings)(artifact, GuardContext(specification=spec))


VERDICTS = [
    # artifact, the suite's file, status, cause, words of the feedback
    (f"```python\n{GOOD}```", TESTS, ACCEPTED, "", ""),
    ("def f(x):\n    return x ** 3\n", TESTS, REJECTED, "tests", "assert 8 == 4"),
    ("import os\nos._exit(0)\ndef f(x): ...", TESTS, REJECTED, "tests", "the artifact ended its process"),
    ("import numpyy\ndef f(x): ...", TESTS, REJECTED, "tests", "No module named 'numpyy'"),
    (GOOD, "import numpyy\n" + TESTS, PENDING, "guard failed", "the suite cannot be loaded: No module named 'numpyy'"),
    (GOOD, "x = 1\n", PENDING, "guard failed", "no test to run"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("artifact", "tests", "status", "cause", "words"), VERDICTS)
def test_a_suite_judges_an_artifact(artifact, tests, status, cause, words):
    verdict = judged(artifact, {"test_answer.py": tests})
    assert (verdict.status, verdict.cause) == (status, cause), verdict
    assert words in verdict.feedback
    for noise in ("/sandbox", "site-packages", ".apart", "frozen", "ArtifactError", "<python>", " in 0."):
        assert noise not in verdict.feedback


def test_what_needs_no_process_takes_none():
    """These would each take a second or more if anything were started."""
    syntax = judged("def f(:\n", {"test_answer.py": TESTS})
    assert (syntax.status, syntax.cause) == (REJECTED, "syntax")
    assert syntax.feedback.startswith("The code is not valid Python: line 1:")
    nothing = judged("I cannot.", {"test_answer.py": TESTS})
    assert (nothing.status, nothing.cause) == (REJECTED, "no code")
    surrogate = judged("def f(x): return '\ud800'", {"test_answer.py": TESTS})
    assert (surrogate.status, surrogate.cause) == (REJECTED, "encoding")
    broken = judged(GOOD, {"test_answer.py": "def test_f(:\n"})
    assert (broken.status, broken.cause) == (PENDING, "guard failed")
    assert "file test_answer.py of the suite is not valid Python: line 1" in broken.feedback
    assert sum(each.seconds for each in (syntax, nothing, surrogate, broken)) < 0.5


def test_the_suite_may_lie_in_a_folder_and_the_module_has_any_name(tmp_path):
    (tmp_path / "conftest.py").write_text("import pytest\n\n@pytest.fixture\ndef two():\n    return 2\n")
    (tmp_path / "test_it.py").write_text("import solution\n\ndef test_f(two):\n    assert solution.f(two) == 4\n")
    guard = PytestGuard(folder=str(tmp_path), module="solution", name="suite")
    verdict = guard(GOOD, GuardContext(specification=Specification(id="s", specification="a task")))
    assert (verdict.status, verdict.guard, verdict.guard_version) == (ACCEPTED, "suite", guard.version)
    (tmp_path / "test_it.py").write_text("def test_other(): ...\n")
    assert PytestGuard(folder=str(tmp_path), module="solution", name="suite").version != guard.version


def test_settings_that_cannot_be_are_refused_when_the_guard_is_made(tmp_path):
    with pytest.raises(UsageError, match="no module name"):
        PytestGuard(module="a-b")
    with pytest.raises(UsageError, match="there is no folder"):
        PytestGuard(folder=str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"test_a\.py of the suite is not valid Python"):
        PytestGuard(files={"test_a.py": "def"})
    with pytest.raises(GuardError, match="specification 's'"):
        judged(GOOD, {"test_a.py": 3})
