"""guards/feedback.py: a program's output becomes feedback that is clean, bounded and the same on every machine."""

from __future__ import annotations

import site
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.errors import GuardError
from guardlearn.guards.feedback import FEEDBACK_CHARS, bounded, clean

CLEANED = [
    ("\x1b[31mred\x1b[0m and \x1b]8;;http://x\x07link\x1b]8;;\x07", "red and link"),
    ("\x1b(B\x1b[1;32mok\x1b[K\x1b[?25h", "ok"),
    ("10%\r50%\r100%\ndone\r\n", "100%\ndone"),
    ("a\x00b\x07c\x7f\u0085d", "abcd"),
    ("half \ud800 a pair", "half  a pair"),
    ("<Thing object at 0x7f3a5c2b1d90>", "<Thing object at 0x…>"),
    ("<function f at 0x5c2d>", "<function f at 0x…>"),
    ("Thread 0x00007f3a5c2b1d90 (most recent call first)", "Thread 0x… (most recent call first)"),
    ("mask 0xff and 0xdeadbeef stay", "mask 0xff and 0xdeadbeef stay"),
    ("1 failed, 2 passed in 0.31s", "1 failed, 2 passed in …"),
    ("1 passed in 75.12s (0:01:15)", "1 passed in …"),
    ("Finished `dev` profile target(s) in 1m 02s", "Finished `dev` profile target(s) in …"),
    ("test_a (0.02 s) took 15 ms", "test_a (…) took …"),
    ("0.12s call test_a.py::test_f", "… call test_a.py::test_f"),
    ("  duration_ms 12.345", "  duration_ms …"),
    ("==4711== Invalid read", "==…== Invalid read"),
    ("worker pid 4711 died, process=17", "worker pid … died, process=…"),
    ("assert '90s' == '1m 30s'", "assert '90s' == '1m 30s'"),
    ("assert f(90) == 'in 90s'", "assert f(90) == 'in 90s'"),
    ("/sandbox/answer.py:3: error", "answer.py:3: error"),
    ("cd /sandbox", "cd"),
    ("/sandboxes/a stays", "/sandboxes/a stays"),
    (f"{sysconfig.get_path('stdlib')}/ast.py:50", "<python>/ast.py:50"),
    (f"{site.getsitepackages()[0]}/_pytest/main.py:3", "<python>/_pytest/main.py:3"),
    (f"{sys.prefix}/bin/ruff failed", "<python>/ruff failed"),
    (f"{tempfile.gettempdir()}/guardlearn-abc_123/answer.py", "answer.py"),
    ("/tmp/x/y /var/folders/ab/cd/T/z", "<tmp>/x/y <tmp>/z"),
    ("/home/ada/x.py /Users/ada/y.py", "<home>/x.py <home>/y.py"),
    (f"{Path.home()}/.cache/x", "<home>/.cache/x"),
    (f"{Path.cwd()}/tests/x.py", "tests/x.py"),
    ("/etc/passwd and /usr/share/x stay", "/etc/passwd and /usr/share/x stay"),
    ("\n\none\n\n\n\n\ntwo   \n\n", "one\n\ntwo"),
]


@pytest.mark.parametrize(("text", "shown"), CLEANED)
def test_what_differs_between_runs_and_machines_goes(text, shown):
    assert clean(text) == shown


@settings(deadline=None)
@given(st.text())
def test_cleaning_twice_is_cleaning_once(text):
    assert clean(clean(text)) == clean(text)


@settings(deadline=None)
@given(st.text(alphabet="ab\n", max_size=300), st.integers(1, 120))
def test_a_bounded_text_keeps_its_head_and_its_tail(text, characters):
    shown = bounded(text, characters)
    if len(text) <= characters:
        assert shown == text
        return
    head, _, rest = shown.partition("\n… ")
    count, _, tail = rest.partition(" characters left out …\n")
    assert text.startswith(head) and text.endswith(tail)
    assert len(head) + int(count) + len(tail) == len(text)
    assert len(head) + len(tail) <= characters


def test_the_usual_bound_keeps_the_first_complaint_and_the_summary():
    lines = ["first: it is wrong", *[f"line {n}" for n in range(5000)], "last: 5000 errors"]
    shown = clean("\n".join(lines))
    assert shown.startswith("first: it is wrong\nline 0\n") and shown.endswith("\nlast: 5000 errors")
    assert "characters left out" in shown and len(shown) < FEEDBACK_CHARS + 50


def test_keep_picks_lines_and_all_stay_where_none_matches():
    assert clean("a.py:1: x\nnoise\na.py:2: y", keep=r"^a\.py:\d+") == "a.py:1: x\na.py:2: y"
    assert clean("usage: tool\nerror", keep=r"^a\.py:\d+") == "usage: tool\nerror"


def test_a_pattern_without_end_is_told_of():
    with pytest.raises(GuardError, match="did not decide within its limits"):
        clean("a" * 40 + "b", keep="^(a+)+$")


@pytest.mark.parametrize("unit", ["/", "\x1b]", "\r", "in 1", "0x0", "(1.", "\n", "/tmp/guardlearn-", "1 s "])
def test_hostile_output_takes_no_time(unit):
    began = time.process_time()
    clean(unit * (2_000_000 // len(unit)))
    assert time.process_time() - began < 1
