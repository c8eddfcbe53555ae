"""The embedded default: a small real model, a real task family and the guard that judges it (loaded when used)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardlearn.demo.guard import HouseStyle, house_style
    from guardlearn.demo.model import demo_model
    from guardlearn.demo.tasks import specifications

__all__ = ["HouseStyle", "demo_model", "house_style", "specifications"]

_HOMES = {"HouseStyle": "guard", "demo_model": "model", "house_style": "guard", "specifications": "tasks"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
