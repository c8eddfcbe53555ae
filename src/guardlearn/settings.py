"""guardlearn.toml: the knobs that are no command-line options, read strictly.

    [guards.NAME]   a guard, see docs/guards.md      [collect]   the collection loop
    [sandbox]       where artifacts run              [openai]    a served model
    [loop]          rounds of learning               [audit]     the guard audit
    [training]      how a round trains               [promotion] the gate
    [ablation]      comparing ways of training

Each stage declares its table as a frozen msgspec struct beside the code it configures and asks for it with
`read().table("collect", CollectSettings)`, so this module knows names of tables and nothing of what is in them.
Every error is one line that names file, table and key, and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from guardlearn.errors import DataError, UsageError

__all__ = ["FILE_NAME", "TABLES", "Settings", "closest", "convert", "read"]

FILE_NAME = "guardlearn.toml"
TABLES = ("guards", "sandbox", "collect", "openai", "audit", "loop", "training", "promotion", "ablation")
"""Tables a settings file may have."""

T = TypeVar("T")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a settings file says; empty where there is none."""

    path: Path | None = None
    """The file; None: there is none."""
    tables: Mapping[str, Mapping[str, Any]] = {}
    """Every table as TOML gives it."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the file start from."""
        return self.path.parent if self.path else Path()

    @property
    def guards(self) -> Mapping[str, Any]:
        """The tables [guards.NAME] by name, unread."""
        return self.tables.get("guards", {})

    def table(self, name: str, into: type[T]) -> T:
        """Return the table `name` as a struct; one that is not in the file has every default.

        Args:
            name: one of `TABLES`, or a dotted name below one.
            into: a frozen struct with `forbid_unknown_fields`, or a dataclass.

        Raises:
            DataError: a key is unknown, missing or of a wrong type.
        """
        value: Any = self.tables
        for part in name.split("."):
            value = value.get(part, {}) if isinstance(value, Mapping) else value
        return convert(value, into, self.where(name))

    def where(self, table: str) -> str:
        """Return how messages name a table: "guardlearn.toml, [collect]"."""
        return f"{self.path or FILE_NAME}, [{table}]"


def read(path: Path | None = None) -> Settings:
    """Return the settings of a file.

    Args:
        path: the file; None takes guardlearn.toml of the working folder, which need not exist.

    Raises:
        UsageError: `path` was given and is no file.
        DataError: the file is no TOML, or has a table that guardlearn does not know.
    """
    found = Path(FILE_NAME) if path is None else path
    try:
        raw = found.read_bytes()
    except FileNotFoundError:
        if path is None:
            return Settings()
        raise UsageError(f"there is no settings file {path}; `guardlearn init` writes one") from None
    except OSError as error:
        raise DataError(f"{found} cannot be read: {error.strerror}") from error
    try:
        tables = tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{found} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{found} is no TOML: {error}") from None
    _check_tables(found, tables)
    return Settings(path=found, tables=tables)


def _check_tables(path: Path, tables: Mapping[str, Any]) -> None:
    for name, value in tables.items():
        if name not in TABLES:
            raise DataError(f"{path}: unknown table [{name}]{closest(name, TABLES)}; it may have {_listed(TABLES)}")
        if not isinstance(value, dict):
            raise DataError(f"{path}: {name} is {_shown(value)}; write a table [{name}]")
    for name, value in tables.get("guards", {}).items():
        if not isinstance(value, dict):
            raise DataError(f"{path}, [guards]: {name} is {_shown(value)}; write a table [guards.{name}] with a kind")


def convert(value: Any, into: type[T], where: str) -> T:
    """Return a TOML table as a struct or dataclass.

    Args:
        value: what TOML gave.
        into: what it should become; a struct should forbid unknown fields.
        where: names the table in messages, as in "guardlearn.toml, [collect]".

    Raises:
        DataError: `value` is no table, or a key of it is unknown, missing or of a wrong type.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is {_shown(value)}; it must be a table")
    _check_keys(value, into, where)
    try:
        return msgspec.convert(dict(value), into)
    except msgspec.ValidationError as error:
        raise DataError(_worded(str(error), into, where)) from None


def _check_keys(value: Mapping[str, Any], into: Any, where: str) -> None:
    """Refuse keys that `into`, or a struct or dataclass below it, does not have; msgspec lets dataclasses have any."""
    allowed, hints = _fields(into), typing.get_type_hints(into)
    for key, inner in value.items():
        if key not in allowed:
            raise DataError(_unknown(where, key, allowed))
        below = _struct_in(hints[key])
        if isinstance(inner, Mapping) and dataclasses.is_dataclass(below):
            _check_keys(inner, below, f"{where}: {key}")


def closest(word: str, words: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the nearest of `words`, or ""."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _unknown(where: str, key: str, allowed: Iterable[str]) -> str:
    return f"{where}: unknown key {key!r}{closest(key, allowed)}; it may have {_listed(allowed)}"


def _worded(message: str, into: Any, where: str) -> str:
    """Return one of msgspec's messages in ours: "Expected `int`, got `str` - at `$.limits.wall`"."""
    problem, _, place = message.partition(" - at ")
    keys = [part for part in re.split(r"[.$`\[\]]+", place) if part and part != "..."]
    named = ".".join(keys)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL)
    if unknown:
        return _unknown(f"{where}: {named}" if named else where, unknown[1], _fields(_type_at(into, keys)))
    missing = re.fullmatch(r"Object missing required field `(.*)`", problem)
    if missing:
        return f"{where}: {missing[1]} is missing; write {missing[1]} = …"
    for ours, theirs in (("list", "array"), ("table", "object"), ("string", "str")):
        problem = problem.replace(f"`{theirs}`", f"`{ours}`")
    return f"{where}: {f'{named}: ' if named else ''}{problem[:1].lower()}{problem[1:]}"


def _fields(kind: Any) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return list(getattr(kind, "__struct_encode_fields__", ()))


def _type_at(kind: Any, keys: list[str]) -> Any:
    """Return the struct that stands at `keys` below `kind`; list positions and dict keys are stepped over."""
    for key in keys:
        hints = typing.get_type_hints(kind) if _fields(kind) else {}
        kind = _struct_in(hints.get(key, kind))
    return kind


def _struct_in(hint: Any) -> Any:
    if _fields(hint):
        return hint
    return next((found for each in typing.get_args(hint) if _fields(found := _struct_in(each))), hint)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _shown(value: Any) -> str:
    return repr(value)[:60]
