"""Artifacts that no honest guard accepts: nothing, the task itself, programs that stop, stubs, tests that test nothing.

Most are made from an artifact that was accepted, so that whatever a guard looks at first (a fence, a signature, a
docstring, a test's name) is as it should be, and only what the artifact was asked to do is missing.
"""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from guardlearn.guards.answers import parse_python
from guardlearn.types import Specification

__all__ = ["KINDS", "Degenerate", "degenerates", "impossible"]

KINDS = {
    "empty": "nothing at all",
    "whitespace": "blanks and line ends",
    "echo": "the specification itself",
    "exit": "a program that ends at once, successfully",
    "exit first": "an accepted program that ends before it does anything",
    "exit inside": "an accepted program whose functions end it, successfully",
    "stub": "an accepted program whose functions do nothing, or return a constant",
    "no assertions": "accepted tests without their assertions",
    "no tests": "an accepted test file without its tests",
    "json": "a JSON value that holds nothing",
    "sql": "a query that reads nothing",
    "own": "an artifact of the configuration's `degenerate`",
}
"""Every kind, in words."""

_EXITS = ("import sys\nsys.exit(0)\n", "raise SystemExit\n", "import os\nos._exit(0)\n")
_INSIDE = ("raise SystemExit(0)", "import os\nos._exit(0)")
_STUBS = ("pass", "return None", "return True", "return 0")
_FENCED = re.compile(r"^(?P<fence>`{3,}|~{3,})[^\n]*\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE)
_QUERY = re.compile(r"\s*(select|with)\b", re.IGNORECASE)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Degenerate(NamedTuple):
    """One such artifact."""

    kind: str
    """A key of KINDS."""
    artifact: str


def degenerates(specification: str, accepted: str | None, own: tuple[str, ...] = ()) -> list[Degenerate]:
    """Return degenerate answers to a specification, each text once, and none that says what was accepted.

    Args:
        specification: Ψ.
        accepted: an artifact that was accepted for it; None where there is none.
        own: further ones.
    """
    found = [Degenerate("empty", ""), Degenerate("whitespace", " \n\t\n"), Degenerate("echo", specification)]
    found += [Degenerate("own", text) for text in own]
    found += [Degenerate("exit", text) for text in _EXITS] if accepted is None else _made_from(accepted)
    distinct: dict[str, Degenerate] = {}
    for each in found:
        if each.artifact != accepted:
            distinct.setdefault(each.artifact, each)
    return list(distinct.values())


def impossible(specification: Specification) -> Specification | None:
    """Return a specification that contradicts itself: the first of its `cases` with another result too.

    None where its metadata has no cases [[[argument, …], expected], …].
    """
    cases = specification.metadata.get("cases")
    if not isinstance(cases, list) or not cases or not isinstance(cases[0], list) or len(cases[0]) != 2:
        return None
    arguments, expected = cases[0]
    other = "guardlearn: no such result" if expected is None else None
    metadata = specification.metadata | {"cases": [*cases, [arguments, other]]}
    return msgspec.structs.replace(specification, metadata=metadata)


def _made_from(accepted: str) -> list[Degenerate]:
    before, code, after = _parts(accepted)
    tree = _parse(code)
    if tree is not None:
        wrapped = [(kind, f"{before}{made}\n{after}") for kind, made in _programs(tree)]
        return [Degenerate(kind, text) for kind, text in wrapped]
    if _is_json(code):
        return [Degenerate("json", f"{before}{text}\n{after}") for text in ("null", "{}", "[]")]
    if _QUERY.match(code):
        return [Degenerate("sql", f"{before}{text}\n{after}") for text in ("SELECT 1", "SELECT NULL WHERE 1 = 0")]
    return []


def _parts(accepted: str) -> tuple[str, str, str]:
    """Return what stands before, inside and after the artifact's first fenced block; all of it is inside without."""
    match = _FENCED.search(accepted)
    if match is None:
        return "", accepted, ""
    return accepted[: match.start("code")], match["code"], accepted[match.end("code") :]


def _parse(code: str) -> ast.Module | None:
    """Return the tree of Python code that does something; prose may parse, too, but defines nothing."""
    tree = parse_python(code)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign)
    return tree if tree and any(isinstance(node, kinds) for node in tree.body) else None


def _programs(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for text in _EXITS:
        yield "exit", text.rstrip("\n")
    yield "exit first", ast.unparse(_exit_first(copy.deepcopy(tree)))
    same = ast.dump(tree)
    changes: list[tuple[str, Callable[[ast.Module], ast.Module]]] = []
    if any(_is_test(node) for node in ast.walk(tree)):
        changes += [("no assertions", _without_assertions), ("no tests", _without_tests)]
    changes += [("exit inside", _with_bodies(text)) for text in _INSIDE]
    changes += [("stub", _with_bodies(text)) for text in _STUBS]
    for kind, change in changes:
        changed = change(copy.deepcopy(tree))
        if ast.dump(changed) != same:  # a program that is a stub already is what was asked for
            yield kind, ast.unparse(ast.fix_missing_locations(changed))


def _exit_first(tree: ast.Module) -> ast.Module:
    place = 0
    for node in tree.body:  # a docstring and future imports must stay first
        documents = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not documents and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        place += 1
    tree.body[place:place] = ast.parse(_EXITS[-1]).body
    return tree


def _with_bodies(text: str) -> Callable[[ast.Module], ast.Module]:
    """Return what replaces the body of every function by `text`, docstrings kept."""

    class Bodies(ast.NodeTransformer):
        def _emptied(self, node: Any) -> Any:
            kept = node.body[:1] if ast.get_docstring(node, clean=False) is not None else []
            inside = ast.parse(f"def f():\n{_indented(text)}").body[0]
            assert isinstance(inside, ast.FunctionDef)
            node.body = [*kept, *inside.body]
            return node

        visit_FunctionDef = visit_AsyncFunctionDef = _emptied

    return lambda tree: Bodies().visit(tree)


def _without_assertions(tree: ast.Module) -> ast.Module:
    class Assertions(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> ast.Pass:
            return ast.Pass()

        def visit_Expr(self, node: ast.Expr) -> ast.stmt:
            called = node.value.func if isinstance(node.value, ast.Call) else None
            asserts = isinstance(called, ast.Attribute) and called.attr.startswith("assert")
            return ast.Pass() if asserts else node

    return Assertions().visit(tree)  # type: ignore[no-any-return]


def _without_tests(tree: ast.Module) -> ast.Module:
    class Tests(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> Any:
            if _is_test(node):
                return None
            super().generic_visit(node)
            if isinstance(node, ast.ClassDef) and not node.body:
                node.body = [ast.Pass()]
            return node

    return Tests().visit(tree)  # type: ignore[no-any-return]


def _is_test(node: ast.AST) -> bool:
    return isinstance(node, _Function) and node.name.startswith("test")


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
