"""Ready guards that run nothing of an artifact: Python that parses, and regular expressions."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import answers, patterns
from guardlearn.guards.verdicts import accepted, no_verdict, rejected, signed
from guardlearn.guards.versions import code_digest
from guardlearn.types import GuardContext, Verdict

__all__ = ["PythonGuard", "RegexGuard"]


class PythonGuard:
    """Accepts Python source that compiles; nothing of it is run."""

    def __init__(
        self,
        *,
        name: str = "python",
        constraints: str = "",
        extract: answers.Extract = "python",
        longest_chars: int = 200_000,
    ) -> None:
        """Configure the guard.

        Args:
            name: stored with each verdict.
            constraints: default Ω.
            extract: what of an answer is judged, see `answers.taken`.
            longest_chars: longer source is rejected unread.
        """
        self.name = name
        self.constraints = constraints
        self.extract = extract
        self.longest_chars = longest_chars
        grammar = ".".join(map(str, sys.version_info[:2]))  # what compiles differs between versions of Python
        self.version = code_digest(sys.modules[__name__], answers, vars(self), grammar)

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact`."""
        began = time.monotonic()
        return signed(self._judge(artifact), self, began)

    def _judge(self, artifact: str) -> Verdict:
        if len(artifact) > self.longest_chars:
            return rejected("too long", f"The answer is longer than {self.longest_chars} characters.")
        code, cause, fault = answers.taken(artifact, self.extract)
        if fault:
            return rejected(cause, fault)
        if fault := answers.python_fault(code):
            return rejected("syntax", f"The code is not valid Python: {fault}")
        return accepted()


class RegexGuard:
    """Accepts a text in which every pattern of `match` is found and none of `forbid`."""

    def __init__(
        self,
        *,
        match: Sequence[str] = (),
        forbid: Sequence[str] = (),
        full: bool = False,
        message: str = "",
        name: str = "regex",
        constraints: str = "",
        extract: answers.Extract = "",
    ) -> None:
        """Configure the guard.

        Args:
            match: regular expressions of Python's `re` that must be found; (?m), (?s), (?i) set their flags.
            forbid: regular expressions that must not be found.
            full: whether each of `match` must match the text from start to end.
            message: feedback of every rejection; "" says which pattern decided.
            name: stored with each verdict.
            constraints: default Ω.
            extract: what of an answer is judged, see `answers.taken`.

        Raises:
            UsageError: there is no pattern, or one does not compile.
        """
        if not match and not forbid:
            raise UsageError(f"guard {name!r} has no pattern; give match = […], forbid = […] or both")
        self.name = name
        self.constraints = constraints
        self.match = tuple(patterns.checked(each, f"guard {name!r}: match") for each in match)
        self.forbid = tuple(patterns.checked(each, f"guard {name!r}: forbid") for each in forbid)
        self.full, self.message, self.extract = full, message, extract
        self.version = code_digest(sys.modules[__name__], answers, patterns, vars(self))

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact`; a pattern that does not decide within its limits gives no verdict."""
        began = time.monotonic()
        try:
            verdict = self._judge(artifact)
        except GuardError as error:
            verdict = no_verdict(str(error))
        return signed(verdict, self, began)

    def _judge(self, artifact: str) -> Verdict:
        text = artifact
        if self.extract:
            text, cause, fault = answers.taken(artifact, self.extract)
            if fault:
                return rejected(cause, fault)
        for pattern in self.match:
            if patterns.search(pattern, [text], full=self.full) == [None]:
                reason = f"The text must match the regular expression {pattern}"
                return rejected("missing", self.message or _printable(reason))
        for pattern in self.forbid:
            if (place := patterns.search(pattern, [text])[0]) is not None:
                line = text.count("\n", 0, place[0]) + 1
                found = f"line {line} has {text[slice(*place)][:80]!r}"
                reason = f"The text must not match the regular expression {pattern}, and {found}"
                return rejected("forbidden", self.message or _printable(reason))
        return accepted()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


python = PythonGuard()
"""The ready guard."""
