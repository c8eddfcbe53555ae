"""Tables of the page, and how plain values read in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from guardlearn.report.words import DASH

__all__ = ["flat", "named", "table"]

_LIST_LETTERS = 120  # a longer list is shown by its length


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Return a table; with `numbers`, all columns but the first are right-aligned. An indented first cell is detail."""
    kinds = [' class="n"' if numbers and index else "" for index in range(max(len(row) for row in [columns, *rows]))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=False))
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in rows)
    header = f"<thead><tr>{head}</tr></thead>" if columns else ""
    return f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def named(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of names and values, without a header."""
    return table([], rows, numbers=False).replace("<table>", '<table class="named">', 1) if rows else ""


def flat(mapping: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Return a mapping as rows of (dotted name, value)."""
    rows: list[list[str]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            rows.extend(flat(value, f"{prefix}{key}."))
        else:
            rows.append([f"{prefix}{key}", _cell(value)])
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(_cell(part) for part in value) or "none"
        return shown if len(shown) <= _LIST_LETTERS else f"{len(value):,} entries"
    return str(value) or DASH


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = row
    detail = ' class="in"' if first.startswith("  ") else kinds[0]
    cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=False))
    return f"<td{detail}>{escape(first)}</td>{cells}"
