"""The tables of guardlearn.toml, from the classes that read them."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

__all__ = ["READERS", "fields", "settings"]

READERS = {
    "collect": "guardlearn.collect.CollectConfig",
    "openai": "guardlearn.generators.OpenAISettings",
    "audit": "guardlearn.audit.AuditConfig",
    "sandbox": "guardlearn.guards.sandbox.SandboxSettings",
    "loop": "guardlearn.loop.config.LoopConfig",
    "training": "guardlearn.jobs.TrainingConfig",
    "promotion": "guardlearn.gate.GateConfig",
    "ablation": "guardlearn.ablation.AblationConfig",
}
"""Table → the class that reads it. `guards` is not here: what its tables hold depends on their kind (guards.md)."""


def settings() -> str:
    """Return a section for each table: key, default, meaning."""
    return "\n".join(line for table, reader in READERS.items() for line in _table(table, reader))


def fields(reader: str) -> dict[str, tuple[str, str]]:
    """Return a settings class's keys → (default as TOML or Python writes it, first sentences of what it means)."""
    found = _load(reader)
    said = _said(found)
    return {name: (_default(found, name), said.get(name, "")) for name in inspect.get_annotations(found)}


def _table(table: str, reader: str) -> Iterator[str]:
    yield from (f"## [{table}]", "", f"Read by {{py:class}}`{reader}`.", "", "| key | default | |", "|---|---|---|")
    for name, (default, said) in fields(reader).items():
        cells = [f"`{name}`", f"`{default}`" if default else "", said]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _default(found: Any, name: str) -> str:
    """Return a field's default as it is written in the class, which is shorter than its value."""
    return _written(found).get(name, "")


def _written(found: Any) -> dict[str, str]:
    body = _body(found)
    return {
        each.target.id: ast.unparse(each.value)
        for each in body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.value is not None
    }


def _said(found: Any) -> dict[str, str]:
    """Return field → the docstring below it, on one line."""
    body = _body(found)
    return {
        each.target.id: " ".join(str(after.value.value).split())
        for each, after in itertools.pairwise(body)
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }  # fmt: skip


def _body(found: Any) -> list[ast.stmt]:
    (statement,) = ast.parse(textwrap.dedent(inspect.getsource(found))).body
    assert isinstance(statement, ast.ClassDef)
    return statement.body
