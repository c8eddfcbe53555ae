"""What a program wrote, made fit to be a guard's feedback φ: clean, bounded, and the same on every machine.

Escape sequences go, carriage returns are played out, and what differs from run to run or from machine to machine is
replaced: folders of this machine by what stands below them, addresses by 0x…, durations and process numbers by ….
The middle of a long text is left out, since a tool says what it checks first and its summary last.
"""

from __future__ import annotations

import re
import site
import sys
import sysconfig
import tempfile
from pathlib import Path

from guardlearn.guards import patterns
from guardlearn.guards.process import LIMITED_FOLDER

__all__ = ["FEEDBACK_CHARS", "bounded", "clean"]

FEEDBACK_CHARS = 2_000
"""Most characters of a feedback, unless a guard says otherwise: about 500 tokens."""

_READ_CHARS = 200_000  # of an output without end, more than this is not looked at

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # control sequences: colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system commands: titles, links
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device control and other strings
    r"|\x1b[ -/]*[0-~]?"
)
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_OVERWRITTEN = re.compile(r"^.*\r(?=[^\r\n])", re.MULTILINE)
_NUMBER = r"\d+(?:\.\d+)?"
_SPAN = rf"{_NUMBER} ?(?:ns|µs|us|ms|s|sec|secs|seconds?|milliseconds?|m|min|minutes?)"
_CHANGING = (
    (re.compile(r"\bat 0x[0-9a-fA-F]+"), "at 0x…"),
    (re.compile(r"\b0x0*[0-9a-fA-F]{9,16}\b"), "0x…"),
    (re.compile(rf"\b(in|took|after|elapsed:?) {_SPAN}(?: {_SPAN})*(?![\w'\"])(?: \(\d+:\d\d:\d\d\))?"), r"\1 …"),
    (re.compile(rf"\({_SPAN}\)"), "(…)"),
    (re.compile(rf"^{_NUMBER}s(?= (?:call|setup|teardown)\b)", re.MULTILINE), "…"),
    (re.compile(rf"\bduration_ms:? {_NUMBER}"), "duration_ms …"),
    (re.compile(r"==\d+=="), "==…=="),
    (re.compile(r"\b([Pp]id|PID|process)([ =:]+)\d+\b"), r"\1\2…"),
)  # fmt: skip


def clean(text: str, characters: int = FEEDBACK_CHARS, *, keep: str = "") -> str:
    """Return what a program wrote as feedback.

    Args:
        text: its output.
        characters: most characters of the feedback; the middle of more is left out.
        keep: a regular expression; only the lines it is found in are kept, all where it is found in none. "" keeps all.

    Raises:
        GuardError: `keep` did not decide within its limits.
    """
    text = bounded(text, max(_READ_CHARS, 4 * characters))
    text = _OVERWRITTEN.sub("", _ESCAPES.sub("", text).replace("\r\n", "\n"))
    text = _UNPRINTABLE.sub("", text)
    for pattern, shown in (*_places(), *_CHANGING):
        text = pattern.sub(shown, text)
    lines = [line.rstrip() for line in text.split("\n")]
    if keep:
        found = patterns.search(keep, lines)
        lines = [line for line, place in zip(lines, found, strict=True) if place] or lines
    return bounded(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n"), characters)


def bounded(text: str, characters: int) -> str:
    """Return at most about `characters` of a text: its head and its tail, whole lines where there are any."""
    if len(text) <= characters:
        return text
    head, tail = text[: characters * 2 // 3], text[-(characters - characters * 2 // 3) :]
    head = head[: head.rfind("\n")] if head.find("\n", len(head) // 2) >= 0 else head
    cut = tail.find("\n", 0, len(tail) // 2)
    tail = tail[cut + 1 :] if cut >= 0 else tail
    return f"{head}\n… {len(text) - len(head) - len(tail)} characters left out …\n{tail}"


def _places() -> list[tuple[re.Pattern[str], str]]:
    """Return patterns of this machine's folders, the longest first, and what is shown instead."""
    below = {LIMITED_FOLDER: "", str(Path.cwd()): "", tempfile.gettempdir(): "<tmp>/", str(Path.home()): "<home>/"}
    for each in [*site.getsitepackages(), *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix]:
        below[each] = "<python>/"
    places = {place.rstrip("/"): shown for place, shown in below.items() if len(place.rstrip("/")) > 1}
    found = [
        (re.compile(rf"{re.escape(place)}(?:/|(?![\w.-]))"), shown)
        for place, shown in sorted(places.items(), key=lambda item: -len(item[0]))
    ]
    work = re.escape(tempfile.gettempdir().rstrip("/"))
    return [
        (re.compile(rf"{work}/guardlearn-\w+(?:/|(?![\w.-]))"), ""),
        *found,
        (re.compile(r"(?:/private)?(?:/var/folders/[\w+]+/[\w+]+/T|/var/tmp|/tmp)/"), "<tmp>/"),
        (re.compile(r"/(?:home|Users)/[\w.-]+/"), "<home>/"),
    ]
