"""Where an OpenAI-compatible server is and how it is asked: the table [openai] of guardlearn.toml.

A key is no setting: it comes from OPENAI_API_KEY alone. Nothing here imports the client.
"""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec

from guardlearn.errors import ModelError, UsageError

__all__ = [
    "NO_KEY",
    "OpenAISettings",
    "Served",
    "address",
    "api_key",
    "is_loopback",
    "served",
    "shown",
    "special_tokens_in",
]

NO_KEY = "none"
"""Sent where there is no key, as the client wants one."""
_OPENAI = "https://api.openai.com/v1"
_OWN = ("temperature", "top_p", "max_tokens", "seed")
_NEVER = ("model", "messages", "stop", "stream", "n", "api_key")


class OpenAISettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a server is reached and asked; the table [openai]."""

    base_url: str = ""
    """For example "http://localhost:8000/v1"; "": OPENAI_BASE_URL, and without that OpenAI's own."""
    concurrency: int = 8
    """Requests under way at once; ≥ 1."""
    connect_seconds: float = 10.0
    """Longest wait for a connection."""
    read_seconds: float = 600.0
    """Longest silence; a server is silent for as long as it writes the answer."""
    request_seconds: float = 900.0
    """Longest try, from the first byte sent to the last received."""
    tries: int = 8
    """Most tries of a request; ≥ 1."""
    give_up_seconds: float = 1800.0
    """No try of a request begins later than this after its first one."""
    tokenizer: str = ""
    """Folder with the served model's tokenizer.json, whose special tokens are then broken up inside texts; "": none is
    known, unless the model's name is a folder here."""
    omit: tuple[str, ...] = ()
    """Of temperature, top_p, max_tokens and seed: what this server does not take."""
    send_stop: bool = False
    """Whether the server ends answers at stop strings, which saves tokens. Without it they are cut here, exactly: many
    servers leave the string out and do not say so (put back where they do: vLLM, SGLang)."""
    extra_body: dict[str, Any] = {}
    """Sent along as it is, for example {top_k = 50}, which is no field of OpenAI's."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UsageError: names the setting, its value and what is allowed.
        """
        url = urlsplit(self.base_url)
        own = sorted(set(self.extra_body) & {*_OWN, *_NEVER})
        checks = {
            "base_url": (not self.base_url or (url.scheme in ("http", "https") and url.hostname), "http(s)://HOST/v1"),
            "concurrency": (self.concurrency >= 1, "at least 1"),
            "tries": (self.tries >= 1, "at least 1"),
            "omit": (set(self.omit) <= set(_OWN), f"of {', '.join(_OWN)}"),
            "extra_body": (not own, f"anything but {', '.join((*_OWN, *_NEVER))}: they come from the command"),
        }
        checks |= {
            name: (0 < getattr(self, name) < float("inf"), "a number of seconds above 0")
            for name in ("connect_seconds", "read_seconds", "request_seconds", "give_up_seconds")
        }
        for field, (right, allowed) in checks.items():
            if not right:
                value = own if field == "extra_body" else getattr(self, field)
                raise UsageError(f"{field} is {_safe(value)}; allowed: {allowed}")


def address(settings: OpenAISettings) -> str:
    """Return the base URL that is asked: the settings' own, else OPENAI_BASE_URL's, else OpenAI's.

    Raises:
        UsageError: the variable holds no http(s) URL.
    """
    named = os.environ.get("OPENAI_BASE_URL", "").strip()
    if not settings.base_url and named:
        try:
            settings = msgspec.structs.replace(settings, base_url=named)
        except UsageError as error:
            raise UsageError(str(error).replace("base_url", "OPENAI_BASE_URL", 1)) from None
    return (settings.base_url or _OPENAI).rstrip("/")


def api_key(url: str) -> str:
    """Return the key in OPENAI_API_KEY; a server on this machine may do without, and gets a placeholder.

    Raises:
        UsageError: another machine's server, and no key; or something that cannot be a key. The key is not shown.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and is_loopback(url):
        return NO_KEY
    if not key:
        raise UsageError(
            f"OPENAI_API_KEY is not set, and {shown(url)} may want a key; export it, or OPENAI_API_KEY=none where "
            "none is asked for; base_url under [openai] in guardlearn.toml, or OPENAI_BASE_URL, names another server"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError("OPENAI_API_KEY holds blanks or characters that no key has; export it again")
    return key


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown(url: str) -> str:
    """Return `url` as it may be printed: without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Served(NamedTuple):
    """An adapter on a server."""

    name: str
    """Name the server answers to."""
    folder: Path | None
    """The adapter's folder on this machine; None: not given."""


def served(adapter: str | Path) -> Served:
    """Return what NAME or NAME=FOLDER means; a name that is itself a folder here is both.

    Raises:
        ModelError: NAME=FOLDER, and there is no such folder.
    """
    text = str(adapter)
    name, equals, named = text.partition("=")
    if Path(text).is_dir() or not equals:
        return Served(text, Path(text) if Path(text).is_dir() else None)
    folder = Path(named).expanduser()
    if not name or not folder.is_dir():
        raise ModelError(f"adapter {text!r}: there is no folder {named!r}; give the served name, or NAME=FOLDER")
    return Served(name, folder)


def special_tokens_in(folder: Path) -> tuple[str, ...]:
    """Return the strings that the tokenizer of a model folder reads as control tokens, sorted.

    Raises:
        ModelError: no readable tokenizer.json there.
    """
    try:
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        return tuple(sorted(token["content"] for token in added if token["special"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} holds no readable tokenizer.json ({type(error).__name__}); name the model's folder in "
            "openai.tokenizer, or leave it out"
        ) from None


def _safe(value: object) -> str:
    return repr(shown(value)) if isinstance(value, str) and "@" in value else repr(value)
