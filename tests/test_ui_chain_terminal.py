"""What others wrote, on a real terminal: `guardlearn show` in a pty sends it no command that is not our own colour."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from databases import Files
from guardlearn.dag import ArtifactDAG
from guardlearn.types import ArtifactStatus, RepositoryItem

HOSTILE = (
    "\x1b[2J\x1b[H\x1b[31mred \x1b]0;title\x07 \x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\ \x9b31m \x1bc "
    "\x1b[6n \x85 \u202egnp.exe \0 \ud800 <script>alert(1)</script> \r over \b\b"
)
COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


def on_a_terminal(*arguments: str) -> bytes:
    """Run a command on a pty of its own, as wide as a terminal; return what it was sent."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    for name in ("NO_COLOR", "FORCE_COLOR", "CI"):
        environment.pop(name, None)
    started = subprocess.Popen(
        [sys.executable, "-m", "guardlearn", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    sent = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # Linux's word for a terminal that nobody holds any more
            break
        if not part:
            break
        sent += part
    os.close(ours)
    assert started.wait(60) == 0, sent
    return sent


def test_show_sends_a_terminal_no_command_but_colours(sqlite_files: Files, commands_start_warm: None) -> None:
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            texts = dict.fromkeys(("artifact", "feedback", "specification", "constraints"), HOSTILE)
            names = dict.fromkeys(("action_pair_id", "cause", "guard", "model"), "\x1b[31m\u202e")
            first = RepositoryItem(id="\x1b[2Jone", status=ArtifactStatus.REJECTED, **texts | names)
            dag.append(first)
            dag.append(
                RepositoryItem(
                    id="two",
                    parent_id=first.id,
                    status=ArtifactStatus.ACCEPTED,
                    artifact=f"{HOSTILE}\nmore",
                    specification=HOSTILE,
                    feedback=HOSTILE,
                    metadata={"\x1b[5m": "\x1b[5m"},
                )
            )
        sent = on_a_terminal("show", place.target, "two", "--full")
        plain = COLOUR.sub(b"", sent)
        assert COLOUR.search(sent), "this was no terminal"
        assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", plain)  # the pty itself ends lines with \r\n
        assert not re.search(rb"\r(?!\n)", plain)
        text = plain.decode()
        assert not re.search("[\x80-\x9f\u202e\ud800]", text)
        for shown in (
            r"\x1b[2J\x1b[H\x1b[31mred",
            r"\x1b]0;title\x07",
            r"\x9b31m",
            r"\u202egnp.exe",
            r"\ud800",
            "<script>",
        ):
            assert shown in text
        # nobody but us coloured: every colour that was sent is one of rich's own, closed on its line
        assert {b"\x1b[0m"} <= set(COLOUR.findall(sent)) and b"\x1b[5m" not in sent


def test_the_same_in_a_file_has_no_colours(sqlite_files: Files, commands_start_warm: None) -> None:
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            dag.append(RepositoryItem(id="one", artifact=HOSTILE, specification="s", status=ArtifactStatus.REJECTED))
        command = [sys.executable, "-m", "guardlearn", "show", place.target, "one"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
