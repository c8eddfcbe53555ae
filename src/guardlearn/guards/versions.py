"""The digest that says which code judged: equal versions judge alike, as far as their own code and settings go."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

from guardlearn.digests import digest_json

__all__ = ["code_digest"]


def code_digest(*objects: Any) -> str:
    """Return the digest of code and settings: equal digests judge alike, as far as their own code goes.

    Args:
        objects: functions, classes and modules (by source, else by bytecode), instances (by class and attributes)
            and JSON values (by value).
    """
    return digest_json([_fingerprint(each) for each in objects])


def _fingerprint(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_fingerprint(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _fingerprint(each) for key, each in value.items()}
    if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):  # typed at a prompt, or built in
            code = getattr(value, "__code__", None)
            return _bytecode(code) if code else f"{value.__module__}.{value.__qualname__}"
    return [_fingerprint(type(value)), _fingerprint(vars(value) if hasattr(value, "__dict__") else repr(value))]


def _bytecode(code: CodeType) -> list[Any]:
    constants = [_bytecode(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]
