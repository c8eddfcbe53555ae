"""An artifact made of `<script>` and terminal escapes is text: in the page, in its Markdown, in a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from markdown_it import MarkdownIt

import chromium
import report_samples as samples
from chromium import Visit
from guardlearn import report

ODD = (
    "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'></div></details></section>"
    "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31m\b\b\u202e\u2066```\n</code></pre><svg onload='window.owned = 1'> "
    "<style>body { display: none }</style> <a href='javascript:window.owned = 1'>link</a> <meta http-equiv=refresh "
    "content='0;url=http://example.org'> <!-- \x00 \ud800 | {{ 7 * 7 }}"
)
SEEN = "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'></div></details></section>"
COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
"""What Rich writes to colour what is ours."""


@pytest.fixture(scope="module")
def engine():
    with chromium.launched() as engine:
        yield engine


@pytest.fixture(scope="module")
def whole():
    return samples.report(ODD)


def written(whole):
    about = {"story": whole.story, "limits": whole.limits, "round_story": whole.round_story}
    read = MarkdownIt("commonmark", {"html": True}).enable("table")
    page = f"<!doctype html><title>ours</title><h1>ours</h1>{read.render(report.markdown(whole.evidence, **about))}"
    return {"page": report.html(whole.evidence, **about), "markdown": page}


@pytest.mark.browser
@pytest.mark.parametrize("guarded", [True, False], ids=["with its policy", "without its policy"])
@pytest.mark.parametrize("name", ["page", "markdown"])
def test_a_browser_shows_it_and_runs_nothing(engine, whole, tmp_path, name, guarded):
    place = tmp_path / "page.html"
    place.write_bytes(written(whole)[name].encode("utf-8", "backslashreplace"))
    with Visit(engine, bypass_csp=not guarded) as visit:
        visit.page.goto(place.as_uri())
        visit.page.evaluate(chromium.UNFOLD)
        visit.page.wait_for_timeout(200)
        assert visit.page.evaluate("window.owned") is None
        assert visit.requests == [place.as_uri()] and visit.said == []
        assert visit.page.evaluate("document.title").startswith(("guardlearn: First attempts", "ours"))
        assert visit.page.locator("script, img, meta[http-equiv=refresh], a[href^=javascript], body style").count() == 0
        shown = visit.page.inner_text("body")
        assert shown.count(SEEN) > 10  # an artifact, a feedback, a cause, a group, a reason: each as it is
        assert visit.page.locator("h1").is_visible()


def test_marks_stand_for_what_would_act_on_the_reading_direction_or_a_terminal(whole):
    page = written(whole)["page"]
    for code in ("1B", "07", "9B", "08", "202E", "2066", "00", "D800"):
        assert f'data-c="U+{code:>04}"' in page
    assert "\u202e" not in re.sub(r'<span class="ch" data-c="U\+202E">\u202e</span>', "", strip_spoken(page))
    assert "\x1b" not in page.replace('<span class="ch" data-c="U+001B"></span>', "")


def strip_spoken(page):
    """Leave out what is said of a figure or a table: an attribute turns no text around it."""
    return re.sub(r'aria-label="[^"]*"', "", page)


def in_terminal(*arguments, folder):
    """Run the command in a terminal of its own; return all that reached it."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "guardlearn", "report", *map(str, arguments)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment)
    os.close(slave)
    said, until = b"", time.monotonic() + 120
    try:
        while time.monotonic() < until:
            ready, _, _ = select.select([master], [], [], 0.2)
            try:
                piece = os.read(master, 65_536) if ready else b""
            except OSError:  # the terminal's other end was closed
                break
            said += piece
            if not ready and process.poll() is not None:
                break
        assert process.wait(60) == 0, said
    finally:
        process.kill()
        os.close(master)
    return said


@pytest.mark.slow
@pytest.mark.usefixtures("commands_start_warm")
@pytest.mark.parametrize("arguments", [(), ("--format", "markdown"), ("--json",)], ids=["table", "markdown", "json"])
def test_a_terminal_is_told_and_not_commanded(tmp_path, arguments):
    whole = samples.report(ODD.replace("\ud800", ""))  # with it JSON would be ASCII anyway
    (tmp_path / "report.json").write_text(report.report_json(whole), encoding="utf-8")
    said = in_terminal(tmp_path / "report.json", *arguments, folder=tmp_path)
    left = COLOUR.sub(b"", said) if not arguments else said
    assert b"owned" in left
    for control in (b"\x1b", b"\x07", b"\x08", b"\x9b", b"\x00", "\u202e".encode(), "\x9b".encode()):
        assert control not in left
    assert (b"\\u001b]0;owned" if arguments == ("--json",) else b"\\x1b]0;owned") in left.replace(b"\r\n", b"")
