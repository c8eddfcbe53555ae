"""Lets a human edit a text in the editor of their choice, with what they should know shown below a scissors line.

As in `git commit --verbose`: what stands above the line is the text, to the byte; what stands below never is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from guardlearn.cli import console
from guardlearn.errors import UsageError

__all__ = ["edited"]

_SCISSORS = "------------------------ >8 ------------------------"
_NOTE = "Do not change or remove the line above. Everything below it is ignored."


@contextlib.contextmanager
def edited(text: str, shown: str, what: str) -> Iterator[str]:
    """Yield what a human makes of `text`; what was written is kept, and its file named, unless the block succeeds.

    Args:
        text: what is edited; line ends and bytes are kept as they are.
        shown: what stands below the scissors line.
        what: a word that the file's name begins with.

    Raises:
        UsageError: no editor is set, it failed, the scissors line was removed, or what was written is not UTF-8.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise UsageError("no editor is set; set VISUAL or EDITOR, as for git, or give the answer with --from FILE")
    line = f"# {_SCISSORS}"
    while f"\n{line}" in f"\n{text}":  # the text itself holds such a line
        line = f"# {secrets.token_hex(4)} {_SCISSORS}"
    body = f"{text}\n{line}\n{_NOTE}\n\n{shown}\n".encode("utf-8", "surrogatepass")
    handle, name = tempfile.mkstemp(prefix=f"guardlearn-{what}-", suffix=".txt")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
        # as git does: the variable may hold arguments, so a shell reads it
        code = subprocess.run(["sh", "-c", f'{editor} "$@"', editor, name], check=False).returncode
        if code:
            raise UsageError(f"the editor {editor!r} ended with code {code}; nothing was stored")
        yield _above(path.read_bytes(), line)
    except BaseException:
        if path.read_bytes() == body:
            path.unlink()
        else:
            console.say(f"what was written is kept in {path}")
        raise
    path.unlink()


def _above(written: bytes, line: str) -> str:
    try:
        above, cut, _ = f"\n{written.decode('utf-8', 'surrogatepass')}".partition(f"\n{line}")
    except UnicodeDecodeError as error:
        raise UsageError(f"what was written is not UTF-8 (byte {error.start}); nothing was stored") from None
    if not cut:
        raise UsageError(f"the line '{line}' is gone: where the text ends is not known; nothing was stored")
    return above[1:]
