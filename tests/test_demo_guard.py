"""demo/guard.py: what the house style accepts, which cause a rejection has, and that no answer can forge a verdict."""

from __future__ import annotations

import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.demo import HouseStyle, house_style
from guardlearn.demo.guard import extract_code
from guardlearn.errors import GuardError
from guardlearn.guards.process import Limits
from guardlearn.types import ArtifactStatus, GuardContext, Specification, Verdict

GOOD = 'def f(x: int) -> int:\n    """Return x plus 2."""\n    return x + 2\n'


def context(signature: str = "f(x: int) -> int", cases: object = None) -> GuardContext:
    cases = [[[1], 3], [[-2], 0]] if cases is None else cases
    spec = Specification(id="s", specification="x plus 2", metadata={"signature": signature, "cases": cases})
    return GuardContext(specification=spec)


def judge(artifact: str, **options: object) -> Verdict:
    return house_style(artifact, context(**options))  # type: ignore[arg-type]


def with_body(body: str) -> str:
    docstring = '    """Return x plus 2."""\n'
    return "def f(x: int) -> int:\n" + docstring + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n"


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"```python\n{GOOD}```",
        f"```python\n{GOOD}",
        f"Here is the code:\n\n```\n{GOOD}```\nIt adds 2.",
        f"~~~py\n{GOOD}~~~",
        f"Sure!\n{GOOD}\nThis function adds 2 to x.",
        f"{GOOD}```\n",
        f"```bash\npip install x\n```\n```python\n{GOOD}```",
        f"```python\n{GOOD}```\nor\n```python\ndef f(x): ...\n```",
        f"import math\n\n\n{GOOD}\n\nprint(f(1))",
        with_body("import math\nreturn int(math.floor(x)) + 2"),
    ],
)
def test_right_answers_in_any_wrapping_are_accepted(answer):
    verdict = judge(answer)
    assert verdict.passed, verdict.feedback
    assert (verdict.cause, verdict.feedback, verdict.guard) == ("", "", "guardlearn.demo:house_style")
    assert verdict.guard_version == house_style.version


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "cause", "words"),
    [
        ("I cannot do that.", "no code", "code block"),
        ("", "no code", "def f(x: int) -> int:"),
        ("x" * 100_000, "no code", "code block"),
        ("```python\ndef f(x: int) -> int\n    return x\n```", "syntax", "not valid Python"),
        ("def f(x: int) -> int:\n    return '\0'", "syntax", "not valid Python"),
        (GOOD.replace("f(", "g("), "signature", "`def f(x: int) -> int:`"),
        (GOOD.replace(": int", ""), "signature", "exactly"),
        (GOOD.replace("-> int", "-> float"), "signature", "exactly"),
        (GOOD.replace("x: int", "x: int = 1"), "signature", "exactly"),
        (GOOD.replace("x: int", "x: a" + ".a" * 600), "signature", "exactly"),
        (GOOD.replace("x + 2", "-" * 9000 + "x"), "syntax", "not valid Python"),
        (with_body("raise ValueError('two\\n\\nlines')"), "cases", "raised ValueError: two lines"),
        ("async " + GOOD, "signature", "exactly"),
        ("class A:\n" + textwrap.indent(GOOD, "    "), "signature", "exactly"),
        (GOOD.replace("x + 2", "x + 3"), "cases", "`f(1)` must return 3, but it returned 4"),
        (with_body("return x + 2.0"), "cases", "returned 3.0"),
        (with_body("return True"), "cases", "returned True"),
        (with_body("return (x + 2,)"), "cases", "returned a tuple"),
        (with_body("return open"), "cases", "type builtin_function_or_method"),
        (with_body("return x / 0"), "cases", "raised ZeroDivisionError"),
        (with_body("return f(x)"), "cases", "raised RecursionError"),
        (with_body("return 10 ** 6000"), "cases", "raised ValueError"),
        (with_body("raise SystemExit"), "cases", "raised SystemExit"),
        ("import numpy\n" + GOOD, "cases", "ModuleNotFoundError"),
        (with_body("return [0] * 10 ** 9"), "memory", "too much memory"),
        (with_body("import os\nos.kill(os.getpid(), 11)"), "crash", "crashes"),
        (with_body("import os\nos._exit(0)"), "cases", "ends the program"),
        ("```python\nwhile True: pass\n" + GOOD, "timeout", "too long"),
        (with_body("return 'x' * 10 ** 7"), "output", "too much"),
    ],
)
def test_each_fault_has_its_cause_and_its_words(answer, cause, words):
    verdict = judge(answer)
    assert (verdict.status, verdict.cause) == (ArtifactStatus.REJECTED, cause)
    assert words in verdict.feedback
    assert "\n" not in verdict.feedback


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        '"""Return x plus 2"""',
        '"""Returns x plus 2."""',
        '"""Add 2 to x."""',
        '"""return x plus 2."""',
        '"""Return x plus 2.\n    """',
        '"""\n    Return x plus 2."""',
        '"""Return x.\n\n    Returns:\n        int.\n    """',
        '"Return " "x" \\\n    " plus 2."',
        "# Return x plus 2.",
        'f"""Return x plus 2."""',
    ],
)
def test_other_docstrings_are_against_the_style(docstring):
    answer = f"def f(x: int) -> int:\n    {docstring}\n    return x + 2\n"
    verdict = judge(answer)
    assert verdict.cause == "style"
    assert '"""Return the result."""' in verdict.feedback
    assert HouseStyle(style=False)(answer, context()).passed


def test_style_is_judged_before_the_cases_are_run():
    verdict = judge("def f(x: int) -> int:\n    while True: pass")
    assert verdict.cause == "style"


@pytest.mark.parametrize(
    "body",
    [
        # writes results of its own into every open file
        "import os\nfor n in range(3, 32):\n try: os.write(n, b'value 3\\n' * 9)\n except OSError: pass\nos._exit(0)",
        # finds the nonce in the caller's frame and speaks for the harness
        """
        import os, sys
        frame = sys._getframe()
        while "nonce" not in frame.f_globals: frame = frame.f_back
        spoken = frame.f_globals
        for value in (1, 2, 4): spoken["send"]("value", str(value))
        os._exit(0)
        """,
        # replaces what encodes and compares
        "import sys\nsys._getframe(3).f_globals['encode'] = lambda value: 'true'\nreturn x",
        "class Equal(int):\n    __eq__ = lambda self, other: True\n    __hash__ = None\nreturn Equal(9)",
    ],
)
def test_no_answer_can_speak_for_the_checker(body):
    verdict = judge(with_body(body))
    assert (verdict.status, verdict.cause) == (ArtifactStatus.REJECTED, "cases")


def test_the_answers_own_output_does_not_matter():
    assert judge(with_body("print('3 value ready')\nimport sys\nsys.stderr.write('x')\nreturn x + 2")).passed


def test_values_are_compared_with_their_types():
    body = 'def f(x: int) -> float:\n    """Return x."""\n    return {}\n'
    signature = "f(x: int) -> float"
    assert judge(body.format("x / 3"), signature=signature, cases=[[[1], 1 / 3]]).passed
    assert judge(body.format("x * 0.1"), signature=signature, cases=[[[3], 0.3]]).passed
    assert judge(body.format("x"), signature=signature, cases=[[[2], 2.0]]).passed
    assert not judge(body.format("True"), signature=signature, cases=[[[1], 1.0]]).passed
    assert not judge(body.format("float('nan')"), signature=signature, cases=[[[1], 1.0]]).passed
    assert not judge(body.format("float('inf')"), signature=signature, cases=[[[1], 1.0]]).passed


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
            st.lists,
            max_leaves=8,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_json_value_comes_back_as_it_went(values):
    identity = 'def f(x: object) -> object:\n    """Return x."""\n    return x\n'
    verdict = judge(identity, signature="f(x: object) -> object", cases=[[[value], value] for value in values])
    assert verdict.passed, verdict.feedback


def test_a_checker_that_cannot_run_gives_no_verdict():
    # too little memory for the interpreter itself: the artifact is not to blame
    verdict = HouseStyle(limits=Limits(memory_bytes=1 << 20))(GOOD, context())
    assert (verdict.status, verdict.cause) == (ArtifactStatus.PENDING, "no verdict")
    assert not verdict.passed


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"signature": "f(x: int) -> int"},
        {"signature": "f(x", "cases": [[[1], 2]]},
        {"signature": "f(x: int) -> int", "cases": []},
        {"signature": "f(x: int) -> int", "cases": [[1, 2]]},
        {"signature": "f(x): pass\ndef g(y)", "cases": [[[1], 2]]},
    ],
)
def test_a_specification_it_cannot_check_is_an_error(metadata):
    spec = Specification(id="odd", specification="?", metadata=metadata)
    with pytest.raises(GuardError, match="'odd'"):
        house_style(GOOD, GuardContext(specification=spec))


def test_the_version_follows_the_settings():
    assert HouseStyle().version == house_style.version
    assert HouseStyle(sandbox="none").version == house_style.version  # where it runs is not what it says
    assert HouseStyle(style=False).version != house_style.version
    assert HouseStyle(limits=Limits(cpu_seconds=2)).version != house_style.version


def test_it_may_be_called_from_many_threads():
    answers = [GOOD, GOOD.replace("+ 2", "+ 3"), "nothing", GOOD.replace("Return", "Give")] * 8
    with ThreadPoolExecutor(8) as pool:
        causes = [verdict.cause for verdict in pool.map(judge, answers)]
    assert causes == ["", "cases", "no code", "style"] * 8


PIECES = ["`", "```", "~~~", "\n", "def ", "f", "(", ")", ":", "    ", "return", "x", '"""', "import "]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_extraction_takes_any_text(text):
    code = extract_code(text)
    assert all(line in text for line in code.splitlines())
