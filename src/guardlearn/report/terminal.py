"""Evidence on a terminal: one sentence, one table before and after, the causes of failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardlearn.evidence import Evidence
from guardlearn.printing import printable
from guardlearn.report import words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["terminal"]

_CAUSES_SHOWN = 8


def terminal(evidence: Evidence, console: Console | None = None) -> None:
    """Print the evidence as tables on stdout.

    Args:
        evidence: what was measured.
        console: where to print; None: stdout. Nothing in a name of others reaches it as a command.
    """
    from rich.console import Console
    from rich.text import Text

    out = console or Console()
    out.print(Text(printable(words.headline(evidence)), style="bold"))
    out.print(Text(words.attempts(evidence)))
    out.print(_figures(evidence))
    if evidence.difference is not None:
        out.print(
            _table("Candidate minus base", ["", ""], [list(row) for row in words.comparison(evidence.difference)])
        )
    causes = words.cause_rows(evidence)
    if causes:
        hidden = len(causes) - _CAUSES_SHOWN
        title = "Why first attempts fail" + (f" (first {_CAUSES_SHOWN} of {len(causes)} causes)" if hidden > 0 else "")
        out.print(_table(title, ["cause", *words.sides(evidence)], causes[:_CAUSES_SHOWN]))
    for caveat in words.caveats(evidence):
        out.print(Text(printable(f"note: {caveat}")))


def _figures(evidence: Evidence) -> Table:
    sides = words.sides(evidence)
    title = f"{evidence.specs} specifications in {evidence.groups} groups, {evidence.samples_per_spec} sample(s) each"
    rows = [[what, *cells[: len(sides)]] for what, *cells in words.figures(evidence)]
    return _table(title, ["", *sides], rows)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="", header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index and name else "left", overflow="fold")
    table.show_header = any(columns)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # Text: an identifier may look like markup
    return table
