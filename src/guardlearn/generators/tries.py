"""What a failed try means: try again, ask no more, or leave this one request; and how long to wait in between."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import random
import time
from collections.abc import Mapping
from typing import Any

__all__ = ["BrokenAnswer", "Failure", "failure_of", "one_line", "pause"]

_AGAIN = frozenset({408, 409, 425, 429})
"""Beside 5xx: statuses that another try may not meet."""
_FATAL = frozenset({401, 403, 404})
"""No request will fare better: the key or the model is wrong."""
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
_chance = random.SystemRandom()  # the global generator belongs to the caller, who may have seeded it


class BrokenAnswer(Exception):
    """A server said 200 and what followed is no chat completion."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a try failed."""

    said: str
    """One line, with the status where there is one."""
    status: int | None
    """HTTP status; None: no whole answer came."""
    again: bool
    """Whether another try may succeed."""
    fatal: bool
    """Whether every other request would fail as well."""
    retry_after: float = 0.0
    """Seconds the server asks to wait; 0: it does not say."""


def failure_of(error: BaseException, secret: str) -> Failure | None:
    """Return what a try's exception means, None where it is none of the server's.

    Args:
        error: what the client raised, a `TimeoutError` or a `BrokenAnswer`.
        secret: the key; whatever a server repeats of it is left out.
    """
    import openai

    if isinstance(error, openai.APIStatusError):
        status, headers = error.status_code, error.response.headers
        told = _told(error.response.text)
        spent = "insufficient_quota" in error.response.text  # OpenAI's 429 for an account without credit
        return Failure(
            said=one_line(f"{status} {told}", secret),
            status=status,
            again=status in _AGAIN or status >= 500,
            fatal=status in _FATAL or spent,
            retry_after=_retry_after(headers),
        )
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return Failure(_named("no answer in time", error, secret), None, again=True, fatal=False)
    if isinstance(error, openai.APIConnectionError):
        return Failure(_named("no connection, or one that broke off", error, secret), None, again=True, fatal=False)
    if isinstance(error, BrokenAnswer):
        return Failure(one_line(str(error), secret), None, again=True, fatal=False)
    return None


def pause(number: int, failure: Failure) -> float:
    """Return seconds to wait after the `number`-th try (1-based): doubling, drawn, at least the server's own."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (number - 1))
    asked = failure.retry_after * _chance.uniform(1.0, 1.1)  # or all that were turned away come back as one
    return max(_chance.uniform(longest / 2, longest), asked)


def one_line(text: str, secret: str) -> str:
    """Return `text` as one line of at most 300 characters, with `secret` left out."""
    clean = text.replace(secret, "***") if len(secret) >= 5 else text  # "none" is no secret
    line = " ".join("".join(each if each.isprintable() else " " for each in clean).split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def _named(what: str, error: BaseException, secret: str) -> str:
    cause = error.__cause__
    return one_line(f"{what} ({type(cause).__name__}: {cause})" if cause and str(cause) else what, secret)


def _told(body: str) -> str:
    """Return a server's own words: error.message as OpenAI has it, or what others write instead."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return body
    for name in ("error", "message", "detail"):
        if isinstance(found, Mapping) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return seconds from Retry-After-Ms or Retry-After, which holds seconds or an HTTP date; 0 where it makes none."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        told = headers.get("retry-after", "0")
        if told.replace(".", "", 1).isdigit():
            return float(told)
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return 0.0
