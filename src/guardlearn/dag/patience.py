"""How long one waits for another process's transaction, on either database."""

from __future__ import annotations

import math
import os

from guardlearn.errors import UsageError

__all__ = ["busy_hint", "busy_seconds"]

_SETTING = "GUARDLEARN_BUSY_SECONDS"
_DEFAULT = 30.0
_MOST = 86_400.0


def busy_seconds() -> float:
    """Return how long a writer waits for another one: GUARDLEARN_BUSY_SECONDS, or 30.

    Raises:
        UsageError: the setting is no number of seconds from 0 to 86400.
    """
    text = os.environ.get(_SETTING, "")
    if not text:
        return _DEFAULT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _MOST:
        raise UsageError(f"{_SETTING}={text!r} is no waiting time; give seconds from 0 to {_MOST:.0f}")
    return seconds


def busy_hint() -> str:
    """Return what to do when that was not long enough."""
    return f"; another process is writing, try again when it is done, or wait longer: {_SETTING}=300"
