"""Candidate families of small functions for the demo, and the specifications and cases made from them.

A family is a template with parameters: its specifications are kin and never lie on two sides. The expected results
come from evaluating the family's expression, which the specification states too: it is the reference. Which families
the demo uses was decided once, by benchmarks/select_families.py; what it uses is in tasks.jsonl.
"""

from __future__ import annotations

import itertools
import re
from importlib import resources
from typing import Any

import msgspec

from guardlearn.types import Specification

__all__ = ["ACTION_PAIR", "Family", "candidates", "specifications_of"]

ACTION_PAIR = "write_function"
CASES_PER_SPECIFICATION = 8


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One family: every parameter fills the template once."""

    category: str
    """arithmetic, comparison, text or lists."""
    name: str
    """Name of the family, and of its functions."""
    arguments: str
    returns: str
    words: str
    """What the function returns, with {n}, or {a} and {b}, where the parameter goes."""
    expression: str
    parameters: tuple[Any, ...]
    """At most 4 values, each a scalar for {n} or a list for {a}, {b}, {c}."""


def candidates() -> list[Family]:
    """Return every candidate family, in a fixed order."""
    text = (resources.files(__package__) / "candidates.jsonl").read_text(encoding="utf-8")
    return [msgspec.json.decode(line, type=Family) for line in text.splitlines()]


def specifications_of(family: Family) -> list[Specification]:
    """Return the family's specifications, one a parameter, with ids "<family>-1" onwards."""
    return [_specification(family, number, value) for number, value in enumerate(family.parameters, start=1)]


def _specification(family: Family, number: int, parameter: Any) -> Specification:
    signature = f"{family.name}({family.arguments}) -> {family.returns}"
    words, expression = _fill(family.words, parameter), _expression(family, parameter)
    return Specification(
        id=f"{family.name}-{number}",
        specification=f"Write the function `def {signature}:`. It returns {words}: `return {expression}`",
        group=family.name,
        action_pair_id=ACTION_PAIR,
        metadata={"signature": signature, "cases": _cases(family, parameter)},
    )


def _expression(family: Family, parameter: Any) -> str:
    return _fill(family.expression, parameter)


def _scalars(parameter: Any) -> tuple[Any, ...]:
    return tuple(parameter) if isinstance(parameter, list) else (parameter,)


def _fill(template: str, parameter: Any) -> str:
    values = _scalars(parameter)
    return re.sub(r"\{([nabc])\}", lambda match: _literal(values["nabc".index(match[1]) - (match[1] != "n")]), template)


def _literal(value: Any) -> str:
    """Return `value` as Python source with double quotes, as the house writes it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)


def _cases(family: Family, parameter: Any) -> list[list[Any]]:
    """Return [[arguments, expected], …]: first those that tell the expression from its mutants, then a mix."""
    names, kinds = zip(*(argument.split(": ") for argument in family.arguments.split(", ")), strict=True)
    rows = [list(row) for row in itertools.product(*(_inputs(kind, _scalars(parameter)) for kind in kinds))]
    results = _evaluate(_expression(family, parameter), names, rows)
    mutants = [_evaluate(_expression(family, mutant), names, rows) for mutant in _mutants(family, parameter)]
    good = [index for index, result in enumerate(results) if result is not _FAILED]
    chosen: list[int] = []
    while len(chosen) < CASES_PER_SPECIFICATION - 2:
        best = max(good, key=lambda index: sum(not _same(mutant[index], results[index]) for mutant in mutants))
        alive = [mutant for mutant in mutants if _same(mutant[best], results[best])]
        if len(alive) == len(mutants):
            break
        chosen.append(best)
        mutants = alive
    step = max(1, len(good) // CASES_PER_SPECIFICATION)
    mix = [index for start in range(step) for index in good[start::step]]
    rarest = min(good, key=lambda index: results.count(results[index]))  # so that both truth values occur
    chosen = _unique([*chosen, rarest, *mix])[:CASES_PER_SPECIFICATION]
    return [[rows[index], results[index]] for index in chosen]


_FAILED = object()


def _evaluate(expression: str, names: tuple[str, ...], rows: list[list[Any]]) -> list[Any]:
    code = compile(expression, "<expression>", "eval")
    results = []
    for row in rows:
        try:
            results.append(eval(code, dict(zip(names, row, strict=True))))
        except (ValueError, IndexError, ZeroDivisionError):
            results.append(_FAILED)
    return results


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


def _mutants(family: Family, parameter: Any) -> list[Any]:
    """Return parameters a wrong answer might hold: its siblings', and each number off by one."""
    values = _scalars(parameter)
    nudged = [
        [*values[:index], value + step, *values[index + 1 :]]
        for index, value in enumerate(values)
        if isinstance(value, int | float)
        for step in (-1, 1)
    ]
    return [each for each in (*family.parameters, *nudged) if each != parameter]


def _inputs(kind: str, parameters: tuple[Any, ...]) -> list[Any]:
    numbers = [value for value in parameters if isinstance(value, int | float)]
    texts = [value for value in parameters if isinstance(value, str)]
    near = sorted({int(value) + step for value in numbers for step in (-1, 0, 1)})
    if kind == "int":
        return _unique([*near, -7, 0, 4, 15, 8, 30, 12, 101, 60, -40, 7, 9, 10, 1, 25])
    if kind == "float":
        close = [float(value) + step for value in numbers for step in (0.0, 0.5, -0.5, 1.0)]
        return _unique([*close, 0.0, 1.0, -2.5, 7.25, 40.0, 99.5])
    sizes = [size for size in near if 0 <= size <= 12]
    if kind == "str":
        marked = [made for text in texts for made in (text + "abc", "abc" + text, text + "x" + text, text)]
        sized = ["bananasplits"[:size] for size in sizes]
        fixed = ["banana", "Hello World", " tea: time ", "one,two,three", "a-b-c", "7", "x", "band", ""]
        return _unique([*marked, *sized, *fixed])
    return _word_lists(texts) if kind == "list[str]" else _number_lists(near, sizes)


def _word_lists(texts: list[str]) -> list[list[str]]:
    marked = [made for text in texts for made in ([text + "abc", "b" + text], [text, "x"])]
    fixed = [["pear", "fig", "apple"], ["a", "bb", "ccc", "dddd", "eeeee"], ["tea"], ["on", "ant"], []]
    return _unique([*marked, *fixed])


def _number_lists(near: list[int], sizes: list[int]) -> list[list[int]]:
    marked = [made for value in near for made in ([value], [value, value + 1, value - 1, value], [value + 1, value])]
    fixed = [[3, 1, 2, 8, 5, 9, 4], [12, -5, 30, 7, 30, 0], [50, 60, 70, 80, 20, 6], [-3, -8], [100], []]
    return _unique([*fixed[:3], *marked, *fixed[3:], *([5, 4, 3, 2, 1, 0, 6, 7][:size] for size in sizes)])


def _unique(values: list[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value not in values[:index]]
