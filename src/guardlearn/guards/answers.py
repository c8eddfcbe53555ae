"""What an answer holds: its code, taken out of fences and explanations, and the bytes a file of it has."""

from __future__ import annotations

import ast
import re
import threading
import warnings
from typing import Literal

__all__ = ["Extract", "extract_block", "extract_code", "parse_python", "python_fault", "taken", "unencodable"]

Extract = Literal["", "code", "python"]
"""What of an answer is judged: all of it, its first fenced block, or its Python code whether fenced or not."""

# warnings.catch_warnings changes the filters of the whole process; one parser at a time keeps them in order
_PARSING = threading.Lock()
_LONGEST_ANSWER_CHARS = 20_000

_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})", re.MULTILINE)
_FENCED = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n`]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)|\Z)", re.DOTALL | re.MULTILINE
)
_CODE_START = re.compile(r"^(?:def |async def |import |from \w+ import |class |@\w)", re.MULTILINE)
_MOST_CUTS = 20  # tries to leave a trailing explanation out; each one parses


def extract_code(artifact: str) -> str:
    """Return the Python code of an answer, or "".

    The first fenced block with a function is taken, closed or not; without one, the text from its first line of code
    up to a stray fence, as far as it parses, so that an explanation before or after does no harm.
    """
    if len(artifact) > _LONGEST_ANSWER_CHARS:
        return ""
    for match in _FENCED.finditer(artifact):
        if _CODE_START.search(match["code"]):
            return match["code"]
    start = _CODE_START.search(artifact)
    if start is None:
        return ""
    lines = _FENCE.split(artifact[start.start() :], maxsplit=1)[0].splitlines()
    ends = [len(lines), *(n for n in range(len(lines) - 1, 0, -1) if lines[n] and not lines[n][0].isspace())]
    for end in ends[:_MOST_CUTS]:
        code = "\n".join(lines[:end])
        if parse_python(code) is not None:
            return code
    return "\n".join(lines)


def extract_block(artifact: str) -> str:
    """Return what the first fenced block of an answer holds, closed or not; without one, the answer as it is."""
    match = _FENCED.search(artifact)
    return match["code"] if match else artifact


def parse_python(code: str) -> ast.Module | None:
    """Return the syntax tree of Python source, None where it does not parse."""
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answer's doubtful escapes are no concern of ours
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # NUL bytes; too deeply nested
            return None


def python_fault(code: str) -> str:
    """Return why Python source does not compile, as "line 3: …", or "" where it does; nothing is run."""
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(code, "<artifact>", "exec", dont_inherit=True)
        except SyntaxError as error:
            lines = code.splitlines()
            text = error.text or (lines[error.lineno - 1] if error.lineno and error.lineno <= len(lines) else "")
            shown = f"\n    {text.strip()[:200]}" if text.strip() else ""
            return f"{f'line {error.lineno}: ' if error.lineno else ''}{error.msg}{shown}"
        except ValueError as error:  # NUL bytes
            return str(error)
        except (RecursionError, MemoryError):
            return "it is nested too deeply"
    return ""


def taken(artifact: str, extract: Extract) -> tuple[str, str, str]:
    """Return (what of an artifact is judged, "", ""), or ("", cause, feedback) where there is no such thing.

    What is returned can be written to a file: half of a surrogate pair, which UTF-8 has no bytes for, is a cause.
    """
    text = artifact
    if extract:
        text = extract_code(artifact) if extract == "python" else extract_block(artifact)
        if not text and (fenced := _FENCED.search(artifact)):  # a block without a function or an import
            text = fenced["code"]
        if not text.strip():
            return "", "no code", "There is no code in the answer: reply with the code in a fenced block."
    fault = unencodable(text)
    return ("", "encoding", f"The text cannot be written to a file: {fault}.") if fault else (text, "", "")


def unencodable(artifact: str) -> str:
    """Return why no UTF-8 file can hold a text, or "": half of a surrogate pair is no character."""
    try:
        artifact.encode("utf-8")
    except UnicodeEncodeError as error:
        line = artifact.count("\n", 0, error.start) + 1
        return f"line {line} holds half of a surrogate pair (U+{ord(artifact[error.start]):04X}), which is no text"
    return ""
