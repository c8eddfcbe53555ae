"""The errors guardlearn raises on purpose; anything else is a bug.

    GuardlearnError
    ├── UsageError            the caller asked for something that does not exist (exit code 2)
    │   └── PredicateError    a predicate's text is malformed; says the column
    ├── DataError             what was read is not what it should be (exit code 1)
    │   ├── RepositoryError   ℛ: missing, foreign, another schema version, a broken promise
    │   └── LogError          a log line is malformed; says the line
    ├── NoTracesError         a policy selected nothing; says what the others would give
    ├── LeakageError          evaluation would read what training has seen
    ├── JobError              a job folder is incomplete, altered, or its training failed
    ├── ModelError            a model folder, tokenizer or adapter cannot be used as asked
    │   └── RequestRefused    one request cannot be answered (its prompt is too long); names its key
    ├── GeneratorUnavailable  one request got no answer; others may fare better, and the same request later
    ├── GuardError            a guard cannot be loaded or broke its protocol
    └── BackendUnavailable    a library or device is missing; says the command that helps
        └── SandboxUnavailable    no sandbox works here to run artifacts in; says what to install or to allow

Every message is one line: what was wrong, the value, what is allowed, what to do. Standard library only.
"""

from __future__ import annotations

import errno
import os
import re

__all__ = [
    "BackendUnavailable",
    "DataError",
    "GeneratorUnavailable",
    "GuardError",
    "GuardlearnError",
    "JobError",
    "LeakageError",
    "LogError",
    "ModelError",
    "NoTracesError",
    "PredicateError",
    "RepositoryError",
    "RequestRefused",
    "SandboxUnavailable",
    "UsageError",
    "missing_library",
    "write_failure",
]


class GuardlearnError(Exception):
    """Base of every expected error; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(GuardlearnError, ValueError):
    """The caller named something that does not exist, or combined options that exclude each other."""

    exit_code = 2


class PredicateError(UsageError):
    """A predicate's text cannot be parsed; `column` is 1-based, None where no place can be named."""

    def __init__(self, message: str, column: int | None = None) -> None:
        super().__init__(message)
        self.column = column


class DataError(GuardlearnError):
    """What was read is not what it should be."""


class RepositoryError(DataError):
    """ℛ is missing, foreign, of another schema version, or a promise of it was broken."""


class LogError(DataError):
    """A line of a log or of a specification file is malformed; `line` is 1-based."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class NoTracesError(GuardlearnError):
    """The chosen policy selects nothing; `alternatives` says how many items each named policy selects."""

    def __init__(self, message: str, alternatives: dict[str, int] | None = None) -> None:
        super().__init__(message)
        self.alternatives = alternatives or {}


class LeakageError(GuardlearnError):
    """A specification to be evaluated was trained on."""


class JobError(GuardlearnError):
    """A job folder is incomplete or altered, or its training failed."""


class ModelError(GuardlearnError):
    """A model folder, tokenizer or adapter cannot be used as asked."""


class GeneratorUnavailable(GuardlearnError):
    """One request got no answer after every try: its chain stays where it was; another request may fare better."""


class RequestRefused(ModelError):
    """A generator can never answer this one request; the others of its call were not asked. `key` is the request's."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key

    def __reduce__(self) -> tuple[type[RequestRefused], tuple[str, str]]:
        return type(self), (str(self), self.key)  # it travels between processes


class GuardError(GuardlearnError):
    """A guard cannot be loaded, or returned something that is no verdict."""


class BackendUnavailable(GuardlearnError):
    """A library or device that was asked for is not here; the message holds the command that helps."""


class SandboxUnavailable(BackendUnavailable):
    """No sandbox works here, so no artifact is run: what asked for verdicts stops, since none would differ."""


def missing_library(library: str, extra: str, purpose: str) -> BackendUnavailable:
    """Return the one wording for a missing optional library.

    Args:
        library: distribution that could not be imported.
        extra: guardlearn extra that installs it.
        purpose: what needs it, as a noun phrase.
    """
    return BackendUnavailable(f"{purpose} needs {library}; run: pip install 'guardlearn[{extra}]'")


def write_failure(error: BaseException) -> str | None:
    """Return the system's words where `error`, or what led to it, is a disk that took no more; else None.

    safetensors and tokenizers raise errors of their own for it, and torch loses the system's reason.
    """
    chain: list[BaseException] = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    for cause in chain:
        named = re.search(r"(?:\[Errno |\(os error )(\d+)", str(cause))  # shutil's list of failures; Rust's wording
        number = getattr(cause, "errno", None) or (int(named[1]) if named else None)
        if number in _DISK_ERRORS:
            return os.strerror(number)
    if any(said in str(cause) for cause in chain for said in ("PytorchStreamWriter", "unexpected pos")):
        return "torch could not write a whole file"
    return None


_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Full, over quota, file over the process's limit, read-only, broken."""
