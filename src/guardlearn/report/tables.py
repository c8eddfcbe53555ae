"""Tables of the page, and how plain values read in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from guardlearn.report.texts import visible
from guardlearn.report.words import DASH

__all__ = ["flat", "named", "table"]

_LIST_LETTERS = 120  # a longer list is shown by its length


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True, caption: str = "") -> str:
    """Return a table that scrolls in a box of its own, which the keyboard reaches.

    Args:
        columns: names of the columns; none: no header.
        rows: cells, as text; the first one names its row. Where it is indented, the row is a detail of the one before.
        numbers: right-align all columns but the first.
        caption: what the table shows, for who cannot see its heading; "": the names of its columns.
    """
    kinds = [' class="n"' if numbers and index else "" for index in range(max(len(row) for row in [columns, *rows]))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' if name else f"<td{kind}></td>"
        for name, kind in zip(columns, kinds, strict=False)
    )
    body = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in rows)
    header = f"<thead><tr>{head}</tr></thead>" if columns else ""
    said = escape(caption or ", ".join(filter(None, columns)) or "values", quote=True)
    title = f'<caption class="heard">{said}</caption>'
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{said}">'
        f"<table>{title}{header}<tbody>{body}</tbody></table></div>"
    )


def named(rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table of names and values, without a header."""
    if not rows:
        return ""
    return table([], rows, numbers=False, caption=caption).replace("<table>", '<table class="named">', 1)


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
    cells = "".join(f"<td{kind}>{visible(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=False))
    return f'<th scope="row"{detail}>{visible(first)}</th>{cells}'
