"""The reference of the Python API: each stage's public names (`__all__`), by their docstrings."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from guardlearn_site.docstrings import lines_marked_up
from guardlearn_site.links import DOCS, prose

__all__ = ["documented", "exports", "home", "linked", "listed", "modules", "names_of"]

_MODULES = re.compile(r"^<!-- site: modules (.*) -->$", re.MULTILINE)


def names_of(module: str) -> list[str]:
    """Return the public names of a module that are documented there: not those that another one documents."""
    places = documented()
    return [name for name in _public(module) if places.get((home(module, name), name)) == module]


@functools.cache
def documented() -> dict[tuple[str, str], str]:
    """Return (defining module, name) → the module below which the reference has it.

    That is the first of its own stage, in the order of the pages, that exports it: `guardlearn.dag.ArtifactDAG`, though
    the class stands in `guardlearn.dag.store`.
    """
    found: dict[tuple[str, str], str] = {}
    for module in listed():
        for name in _public(module):
            defined = home(module, name)
            if _stage(defined) == _stage(module):
                found.setdefault((defined, name), module)
    return found


@functools.cache
def listed() -> list[str]:
    """Return the modules that the pages of docs/reference name, packages before what is in them."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md"))]
    return sorted(name for text in pages for line in _MODULES.findall(text) for name in line.split())


@functools.cache
def home(module: str, name: str) -> str:
    """Return the module that defines a public name; for what is no class or function, the one that assigns it.

    Raises:
        LookupError: A constant that the module neither assigns, below itself or in itself, nor imports.
    """
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isroutine(value):
        defined = str(value.__module__)
        if defined.startswith("guardlearn"):
            return defined
    for candidate in _family(module):
        if _assigned(candidate, name) is not None:
            return candidate
    for statement in _body(module):
        if isinstance(statement, ast.ImportFrom) and name in [alias.name for alias in statement.names]:
            return home(str(statement.module), name)
    raise LookupError(f"{module}.{name} is neither assigned nor imported in {module}")


def modules(*names: str) -> str:
    """Return a section for each module: what it holds, then its public names in the order of its source."""
    return "\n".join(line for name in names for line in _module(name))


def exports() -> str:
    """Return a table of what `from guardlearn import …` gives, with the module that says more."""
    import guardlearn

    rows = []
    for name in guardlearn.__all__:
        if name == "__version__":
            continue
        value = getattr(guardlearn, name)
        said = "".join((inspect.getdoc(value) or "").splitlines()[:1]).replace("|", "\\|")
        rows.append(f"| {{py:obj}}`{name} <{_exported(name)}.{name}>` | {said} |")
    return "\n".join(["| name | |", "|---|---|", *rows])


def linked(text: str) -> str:
    """Return Markdown in which each `guardlearn.…` that the reference has leads there."""
    return "".join(_reference(part) or part for _, part in prose(text))


def _reference(part: str) -> str:
    import guardlearn

    path = re.fullmatch(r"`(guardlearn\.[\w.]+)`", part)
    if path is None:
        return ""
    module, _, name = path[1].rpartition(".")
    if path[1] in listed():
        return f"{{py:mod}}{part}"
    if module == "guardlearn" and name in guardlearn._EXPORTS:
        return f"{{py:obj}}`{path[1]} <{_exported(name)}.{name}>`"
    return f"{{py:obj}}{part}" if module in listed() and name in names_of(module) else ""


def _exported(name: str) -> str:
    """Return the module below which the reference has what `guardlearn` exports."""
    import guardlearn

    return documented()[home(f"guardlearn.{guardlearn._EXPORTS[name]}", name), name]


def _module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield from (f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :no-members:", "   :no-index:", "")
    yield from (f".. py:module:: {name}", "")
    for each in names_of(name):
        yield from _entry(module, each)
    yield from ("```", "")


def _ours(base: type) -> bool:
    return base.__module__.startswith("guardlearn")


def _entry(module: ModuleType, name: str) -> Iterator[str]:
    value, path = getattr(module, name), f"{module.__name__}.{name}"
    if inspect.isclass(value):
        ours = any(map(_ours, value.__bases__))
        bases = ["   :show-inheritance:"] if ours else []
        known = documented()
        if any(_ours(base) and (base.__module__, base.__name__) not in known for base in value.__bases__):
            bases.append("   :inherited-members:")  # what stands in a base that no page has is said here
        yield from (f".. autoclass:: {path}", "   :members:", "   :undoc-members:", *bases, "")
    elif inspect.isroutine(value):
        yield from (f".. autofunction:: {path}", "")
    else:
        yield from (f".. py:data:: {path}", "")
        node = _assigned(home(module.__name__, name), name)
        yield from (f"   {line}".rstrip() for line in lines_marked_up((node or "").splitlines()))
        yield ""


def _public(module: str) -> list[str]:
    return list(getattr(importlib.import_module(module), "__all__", []))


def _stage(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _family(module: str) -> Iterator[str]:
    """Yield a module and what lies below it."""
    yield module
    for each in pkgutil.iter_modules(getattr(importlib.import_module(module), "__path__", [])):
        yield from _family(f"{module}.{each.name}")


def _assigned(module: str, name: str) -> str | None:
    """Return the docstring below `NAME = …` in a module, "" where it has none; None: it is not assigned there."""
    body = _body(module)
    for statement, after in zip(body, [*body[1:], None], strict=True):
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            said = after.value if isinstance(after, ast.Expr) else None
            return inspect.cleandoc(str(said.value)) if isinstance(said, ast.Constant) else ""
    return None


@functools.cache
def _body(module: str) -> list[ast.stmt]:
    found = importlib.util.find_spec(module)
    return ast.parse(Path(found.origin).read_text(encoding="utf-8")).body if found and found.origin else []
