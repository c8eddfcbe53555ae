"""Reads a predicate's text: the same syntax as in Python, and nothing else of Python.

    expression  →  expression "|" expression | expression "&" expression | "~" expression | "(" expression ")" | word
    word        →  NAME "(" [constant | NAME "=" constant] {"," …} ")"

`parse(repr(p)) == p` for every predicate without `satisfies`. The text is walked as a syntax tree against the
vocabulary; it is never evaluated.
"""

from __future__ import annotations

import ast
import difflib
import warnings
from typing import Any

from guardlearn.errors import PredicateError, UsageError
from guardlearn.predicates.expression import Not, Predicate, and_, or_
from guardlearn.predicates.vocabulary import VOCABULARY

__all__ = ["parse"]

_INSTEAD: dict[type, str] = {ast.And: "write & instead of and", ast.Or: "write | instead of or"}
_LONGEST = 100_000


def parse(text: str) -> Predicate:
    """Return the predicate that `text` writes.

    Raises:
        PredicateError: the text is malformed or uses an unknown word; `column` is 1-based.
    """
    if not text.strip():
        raise PredicateError("the predicate is empty; write everything() to select every item", 1)
    if len(text) > _LONGEST:
        raise PredicateError(f"the predicate has {len(text)} characters; at most {_LONGEST} are read", _LONGEST)
    line = text.replace("\r", " ").replace("\n", " ")  # configuration files break long predicates; columns stay right
    stripped = line.lstrip()
    return _Reader(line, len(line) - len(stripped)).read(stripped)


class _Reader:
    """Walks the syntax tree of one text."""

    def __init__(self, line: str, indent: int) -> None:
        self._line = line
        self._indent = indent

    def read(self, source: str) -> Predicate:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "invalid escape sequence", "'int' object is not callable" …
                tree = ast.parse(source, mode="eval")
            return self._expression(tree.body)
        except SyntaxError as error:
            column = self._indent + (error.offset or 1)
            raise self._error(f"{error.msg}", column) from error
        except (RecursionError, MemoryError) as error:
            raise self._error("it is nested too deeply", 1) from error
        except (UnicodeEncodeError, ValueError) as error:
            if isinstance(error, PredicateError):
                raise
            raise self._error("it holds NUL or a lone surrogate; write them as \\x00 or \\ud800", 1) from error

    def _expression(self, node: ast.expr) -> Predicate:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            join = and_ if isinstance(node.op, ast.BitAnd) else or_
            return join(*(self._expression(side) for side in _chain(node, type(node.op))))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return Not(self._expression(node.operand))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._word(node.func.id, node)
        raise self._refusal(node)

    def _word(self, name: str, call: ast.Call) -> Predicate:
        factory = VOCABULARY.get(name)
        if factory is None:
            near = difflib.get_close_matches(name, VOCABULARY, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise self._error(f"unknown word {name!r}; {hint}the words are: {', '.join(VOCABULARY)}", self._at(call))
        if name == "satisfies":
            raise self._error("satisfies takes a Python function, which text cannot name", self._at(call))
        arguments = [self._constant(argument) for argument in call.args]
        options = {keyword.arg or "**": self._constant(keyword.value) for keyword in call.keywords}
        try:
            return factory(*arguments, **options)
        except TypeError as error:
            raise self._error(str(error), self._at(call)) from error
        except UsageError as error:
            raise self._error(str(error), self._at(call)) from error

    def _constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            value = node.operand.value
            if isinstance(value, int | float):
                return -value
        raise self._error("an argument must be a string or a number", self._at(node))

    def _refusal(self, node: ast.expr) -> PredicateError:
        column = self._at(node)
        if isinstance(node, ast.BoolOp):
            column = self._at(node.values[0])
            return self._error(_INSTEAD[type(node.op)], column)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self._error("write ~ instead of not", column)
        if isinstance(node, ast.Name) and node.id in VOCABULARY:
            return self._error(f"write {node.id}(), with parentheses", column)
        return self._error("only words of the vocabulary joined by &, | and ~ are read, as in refinement()", column)

    def _at(self, node: ast.expr) -> int:
        # ast counts UTF-8 bytes, people count characters
        before = self._line[self._indent :].encode("utf-8")[: node.col_offset]
        return self._indent + len(before.decode("utf-8", "ignore")) + 1

    def _error(self, what: str, column: int) -> PredicateError:
        shown = self._line if len(self._line) <= 200 else self._line[:200] + "…"
        return PredicateError(f"predicate {shown!r}, column {column}: {what}", column)


def _chain(node: ast.BinOp, operator: type[ast.operator]) -> list[ast.expr]:
    """Return a & b & c as [a, b, c], so that only real nesting is recursion."""
    sides: list[ast.expr] = []
    left: ast.expr = node
    while isinstance(left, ast.BinOp) and isinstance(left.op, operator):
        sides.append(left.right)
        left = left.left
    return [left, *reversed(sides)]
