"""guards/checking.py: tests and artifact apart. What a suite can ask a stand-in, and that none speaks for itself."""

# ruff: noqa: E501 (lies are easier to compare on one line)

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import sandbox
from guardlearn.guards.apart.wire import Broken, Decoder, Encoder
from guardlearn.guards.checking import TEST_LIMITS, TestRun, run_tests

STATE = sandbox.state()
pytestmark = pytest.mark.skipif(not STATE.works, reason=f"no sandbox works here: {STATE.reason}")
BARE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # a start costs a second less


def run(artifact: str, tests: str, **options: object) -> TestRun:
    return run_tests(artifact, {"test_it.py": tests}, sandbox="bubblewrap", environment=BARE, **options)  # type: ignore[arg-type]


ARTIFACT = """
import collections, dataclasses, decimal, enum, sys

class Empty(ValueError):
    def __init__(self, text, code=3):
        super().__init__(text)
        self.code = code

class Stack:
    def __init__(self):
        self.items = []
    def push(self, item):
        self.items.append(item)
        return self
    def pop(self):
        if not self.items:
            raise Empty("nothing left")
        return self.items.pop()
    def __len__(self):
        return len(self.items)
    def __iter__(self):
        return iter(self.items)
    def __contains__(self, item):
        return item in self.items
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.items.clear()

@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: int = 0
    def __add__(self, other):
        return Point(self.x + other.x, self.y + other.y)
    def __mul__(self, factor):
        return Point(self.x * factor, self.y * factor)

class Colour(enum.Enum):
    RED = 1

class Bag(dict):
    def total(self):
        return sum(self.values())

Pair = collections.namedtuple("Pair", "left right")
factor = lambda: 1

def add(a, b): return a + b
def sort(values): values.sort()
def fill(table): table["new"] = [1]; table.setdefault("old", []).append(2)
def count(n): yield from range(n)
def every(function, values): return [function(each) for each in values]
def say(): print("hello"); print("wrong", file=sys.stderr)
def pair(): return Pair(1, 2)
def bag(): return Bag(a=1, b=2)
def counted(text): return collections.Counter(text)
def money(): return decimal.Decimal("1.10")
def red(): return Colour.RED
def half(x): return x / 2
def same(x): return x
def leave(): raise SystemExit(3)
def scaled(): return factor() * 2
"""

TESTS = '''
import decimal
import pytest
import answer
from answer import Colour, Empty, Point, Stack, add

def test_values():
    assert add(1, 2) == 3 and add("a", "b") == "ab" and add([1], [2]) == [1, 2]

def test_containers_are_changed_in_place():
    values = [3, 1, 2]
    answer.sort(values)
    assert values == [1, 2, 3]
    table = {"old": [1]}
    old = table["old"]
    answer.fill(table)
    assert table == {"old": [1, 2], "new": [1]} and old == [1, 2]

def test_objects():
    stack = Stack()
    assert stack.push(1).push(2) is stack
    assert len(stack) == 2 and list(stack) == [1, 2] and 2 in stack and stack.pop() == 2
    assert isinstance(stack, Stack) and not isinstance(stack, Point) and stack.items == [1]
    with stack as inner:
        assert inner is stack
    assert not stack

def test_exceptions():
    with pytest.raises(Empty, match="nothing left") as caught:
        Stack().pop()
    assert caught.value.code == 3 and caught.value.args == ("nothing left",)
    with pytest.raises(ValueError):
        Stack().pop()
    with pytest.raises(TypeError):
        add(1, "x")
    with pytest.raises(AttributeError):
        Stack().missing
    with pytest.raises(SystemExit):
        answer.leave()

def test_value_classes():
    assert Point(1) + Point(2, 3) == Point(3, 3) and Point(1) != Point(2) and Point(1) * 2 == Point(2)
    assert repr(Point(1)) == "Point(x=1, y=0)" and Point(1) < Point(2) and max([Point(1), Point(3)]).x == 3

def test_subclasses_of_built_in_types():
    assert answer.pair() == (1, 2) and answer.pair().right == 2
    assert answer.bag() == {"a": 1, "b": 2} and answer.bag().total() == 3 and answer.bag() != {"a": 1}
    assert answer.counted("aab") == {"a": 2, "b": 1} and answer.counted("aab").most_common(1) == [("a", 2)]
    assert answer.red() is Colour.RED and Colour.RED.name == "RED"
    assert answer.money() == decimal.Decimal("1.10")

def test_functions_go_both_ways():
    assert answer.every(lambda x: x * 2, [1, 2]) == [2, 4] and answer.every(str, [1]) == ["1"]
    assert list(answer.count(3)) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        answer.every(lambda x: x / 0, [1])
    assert answer.every(answer.half, [4]) == [2.0]

def test_output(capsys):
    answer.say()
    assert capsys.readouterr() == ("hello\\n", "wrong\\n")

def test_patching(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(answer, "factor", lambda: 7)
        assert answer.scaled() == 14
    assert answer.scaled() == 2

@pytest.mark.parametrize("value", [
    None, True, 1, 2**200, 1.5, float("inf"), "x\\ud800\\0", b"x", bytearray(b"y"), 1j, (1, [2]), {1: {2}}, frozenset([1]),
    range(3), [[1], [2]], ..., {(1, 2): None}, "", [], {},
])
def test_anything_comes_back_as_it_went(value):
    back = answer.same(value)
    assert back == value and type(back) is type(value)

def test_what_is_shared_stays_shared():
    inner = [1]
    outer = [inner, inner]
    outer.append(outer)
    back = answer.same(outer)
    assert back is outer and back[0] is back[1] is inner and back[2] is outer

def test_approximately():
    assert answer.half(1) == pytest.approx(0.5)

def test_what_is_not_there():
    assert not hasattr(answer, "missing")
'''  # fmt: skip


def test_a_suite_finds_the_artifact_as_if_it_were_a_module():
    done = run(ARTIFACT, TESTS)
    assert (done.passed, done.cause) == (True, ""), done.output
    assert "32 passed" in done.output


# Each would pass `assert f(1) == 3` or a test like it, were it believed; every test of the suite asks f.
LIES = {
    "equal": "class Any:\n    __eq__ = lambda *a: True\n    __ne__ = lambda *a: False\n    __hash__ = None",
    "an equal int": "class Any(int):\n    __eq__ = lambda *a: True\n    __hash__ = None",
    "an equal list": "class Any(list):\n    __eq__ = lambda *a: True\n    __iter__ = lambda s: iter([3])\n    __hash__ = None",
    "close": "class Any:\n    __sub__ = __rsub__ = __abs__ = lambda s, *a: s\n    __lt__ = __le__ = __gt__ = __ge__ = lambda *a: True",
    "a close float": "class Any(float):\n    __sub__ = __rsub__ = lambda *a: 0.0\n    __eq__ = lambda *a: True\n    __hash__ = None",
}  # fmt: skip


def test_no_object_is_believed_about_plain_values():
    results = "".join(f"def {name.replace(' ', '_')}(x):\n    return Any_{n}()\n" for n, name in enumerate(LIES))
    classes = "".join(lie.replace("class Any", f"class Any_{n}") + "\n" for n, lie in enumerate(LIES.values()))
    tests = "import pytest, answer\n"
    for name in LIES:
        call = f"answer.{name.replace(' ', '_')}(1)"
        for n, claim in enumerate(
            (f"{call} == 3", f"3 == {call}", f"{call} in [3]", f"abs({call} - 3) < 0.1", f"{call} == pytest.approx(3)", f"not {call} != 3")
        ):  # fmt: skip
            tests += f"def test_{name.replace(' ', '_')}_{n}():\n    assert {claim}\n"
    done = run(classes + results, tests)
    assert not done.passed
    assert f"{6 * len(LIES)} failed" in done.output, done.output
    assert "passed" not in done.output


ENDINGS = {
    "os._exit in a call": ("import os\ndef f(): os._exit(0)", "import answer\ndef test_f(): answer.f()", "tests"),
    "os._exit where a test expects an error": (
        "import os\ndef f(): os._exit(0)",
        "import answer, pytest\ndef test_f():\n    with pytest.raises(Exception): answer.f()\n",
        "crash",
    ),
    "exit on import": ("raise SystemExit(0)", "import answer\ndef test_f(): pass", "tests"),
    "an import that is left out": (
        "raise ImportError('numpy')",
        "import pytest\nanswer = pytest.importorskip('answer', exc_type=ImportError)\ndef test_f(): pass\n",
        "tests",
    ),
    "skips": ("import pytest\ndef f(): pytest.skip('no')", "import answer\ndef test_f(): answer.f()", "tests"),
    "no tests": ("f = 1", "import answer\n", "no tests"),
    "only skipped tests": ("f = 1", "import pytest\n@pytest.mark.skip\ndef test_f(): pass\n", "no tests"),
    "memory": ("def f(): return b'x' * (300 << 20)", "import answer\ndef test_f(): answer.f()", "memory"),
    "nonsense on the wire": (
        "import os\nfor n in range(3, 4096):\n try: os.write(n, b'\\0\\0\\0\\x0f[\"value\",true,1]' * 9)\n except OSError: pass\n"
        "def f(): return 3",
        "import answer\ndef test_f(): assert answer.f() == 3",
        "tests",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_artifact_cannot_end_its_tests_well(ending):
    artifact, tests, cause = ENDINGS[ending]
    done = run(artifact, tests, limits=dataclasses.replace(TEST_LIMITS, memory_bytes=200 << 20))
    assert (done.passed, done.cause) == (False, cause), done.output


@pytest.mark.slow
def test_an_artifact_that_answers_nothing_is_ended_in_time():
    limits = dataclasses.replace(TEST_LIMITS, wall_seconds=8.0)
    began = time.monotonic()
    done = run("import time\ndef f(): time.sleep(600)", "import answer\ndef test_f(): answer.f()", limits=limits)
    assert (done.passed, done.cause) == (False, "timeout")
    assert time.monotonic() - began < 30


def test_an_artifact_that_goes_on_afterwards_is_not_waited_for():
    artifact = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\ndef f(): return 3"
    began = time.monotonic()
    assert run(artifact, "import answer\ndef test_f(): assert answer.f() == 3").passed
    assert time.monotonic() - began < 45


def test_the_tests_cannot_be_read_from_the_artifact():
    artifact = (
        "import glob, os\n"
        "def f():\n"
        "    places = ('/sandbox/**', '/tmp/**', '/dev/shm/**', '/proc/*/cwd', '/proc/*/root/sandbox')\n"
        "    found = [path for place in places for path in glob.glob(place + '/test_it*', recursive=True)]\n"
        "    return found + [n for n in os.listdir('/proc') if n.isdigit() and int(n) > 2]\n"
    )
    done = run(artifact, "import answer\ndef test_f(): assert answer.f() == []")
    assert done.passed, done.output


def test_failing_tests_say_what_was_wrong():
    done = run("def f(x):\n    return x + 1", "import answer\ndef test_f(): assert answer.f(1) == 3")
    assert (done.passed, done.cause) == (False, "tests")
    assert "assert 2 == 3" in done.output
    assert 0 < done.seconds < 60


def test_a_suite_that_cannot_run_gives_no_verdict():
    with pytest.raises(GuardError, match="exit code 4"):
        run_tests("f = 1", {"test_it.py": ""}, sandbox="bubblewrap", options=("--no-such-option",))
    with pytest.raises(UsageError, match="'not a name'"):
        run_tests("f = 1", {}, module="not a name")


def test_several_suites_may_run_at_once():
    suites = [(f"def f(): return {n}", f"import answer\ndef test_f(): assert answer.f() == {n % 2}") for n in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        assert [done.passed for done in pool.map(lambda suite: run(*suite), suites)] == [True, False]


@pytest.mark.parametrize(
    "form", [["v", "os", "system", "true"], ["n"], ["q", 1], ["i", "zz"], ["r", 7], ["k", 0], ["l", ["?"]]]
)
def test_a_value_that_is_none_of_ours_is_refused(form):
    with pytest.raises(Broken):
        Decoder(lambda reference: {}[reference[0]]).decode(form)


def test_only_exact_types_are_data():
    class Pretender(int):
        pass

    referred: list[object] = []
    encoder = Encoder(lambda value: referred.append(value) or ["o", 0])
    encoder.encode([Pretender(3), os, 3])
    assert [type(each).__name__ for each in referred] == ["Pretender", "module"]
