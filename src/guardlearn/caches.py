"""Where guardlearn keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return guardlearn's folder in the user's cache (XDG_CACHE_HOME, else ~/.cache); it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG rules ask to ignore a relative path
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "guardlearn"
