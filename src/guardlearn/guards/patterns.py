"""Regular expressions against texts of others: in a limited process, since `re` can take for ever and hear nothing."""

from __future__ import annotations

import marshal
import re
from collections.abc import Iterable

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards.process import Limits, Outcome, run_limited

__all__ = ["Places", "checked", "search"]

Places = list[tuple[int, int] | None]
"""Where a pattern was first found in each text, as (start, end) in characters; None: nowhere."""

_LIMITS = Limits(wall_seconds=20.0, cpu_seconds=1, output_bytes=8 << 20)

_SEARCH = """
import marshal, re, sys
pattern, full, texts = marshal.loads(sys.stdin.buffer.read())
look = getattr(re.compile(pattern), "fullmatch" if full else "search")
found = [look(text) for text in texts]
sys.stdout.buffer.write(marshal.dumps([each and each.span() for each in found]))
"""


def checked(pattern: str, what: str) -> str:
    """Return `pattern` if it compiles.

    Args:
        pattern: a regular expression of Python's `re`.
        what: names it in the message.

    Raises:
        UsageError: it does not compile.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{what} {pattern!r} is no regular expression of Python's re: {error}") from None
    return pattern


def search(pattern: str, texts: Iterable[str], *, full: bool = False) -> Places:
    """Return where a pattern is found in each of `texts`.

    Args:
        pattern: as `checked` returned it.
        texts: whatever they hold; lone surrogates are characters to `re`.
        full: whether a text must match from start to end.

    Raises:
        GuardError: the search went over its limits: a second of processor time, 256 MiB.
    """
    result = run_limited(_SEARCH, marshal.dumps((pattern, full, list(texts))), _LIMITS, preload=["re", "marshal"])
    if result.outcome is Outcome.EXITED and result.returncode == 0:
        return list(marshal.loads(result.stdout))
    raise GuardError(f"the pattern {pattern[:60]!r} did not decide within its limits ({result.outcome.value})")
