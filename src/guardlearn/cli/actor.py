"""Who runs a command: what is stored beside what people decide."""

from __future__ import annotations

import getpass
import os

__all__ = ["actor"]


def actor() -> str:
    """Return GUARDLEARN_ACTOR, else the login name, else the user's number."""
    try:
        return os.environ.get("GUARDLEARN_ACTOR") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
