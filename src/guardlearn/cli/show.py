"""`guardlearn show`: an attempt with the chain that led to it, the differences and the feedback between."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn import provenance
from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.printing import printable
from guardlearn.types import RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag.tree import Link

_RELATIVES_SHOWN = 10
_STYLES = {"accepted": "green", "rejected": "red", "pending": "yellow", "superseded": "cyan"}
_DIFFERENCE_STYLES = {"+": "green", "-": "red", "@": "cyan"}

Line = tuple[str, str]
"""What is printed, and its style on a terminal."""


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    item_id: Annotated[str, typer.Argument(metavar="ID", help="An item's id.")],
    full: Annotated[bool, typer.Option("--full", help="Whole artifacts instead of differences.")] = False,
    as_json: console.Json = False,
) -> None:
    """Show the attempts that led to one: the first whole, then what each changed, with the feedback between."""
    with opened(db) as dag:
        chain = dag.provenance(item_id)
        links = dag.tree(item_id)
        broken = provenance.broken(dag, chain)
    children = [link for link in links if link.parent_id == item_id]
    siblings = provenance.siblings(chain, links)
    if as_json:
        differences = [
            provenance.difference(earlier.artifact, later.artifact, *map(provenance.attempt_name, (earlier, later)))
            for earlier, later in pairwise(chain)
        ]
        found = {"item": chain[-1], "chain": chain, "differences": differences, "children": children}
        console.emit(found | {"siblings": siblings, "broken": broken})
        return
    _write([*_opening(chain[0], broken), *_attempts(chain, siblings, full), *_continued(children, links)])


def _opening(first: RepositoryItem, broken: str | None) -> Iterator[Line]:
    if broken:
        yield f"broken chain: {broken}", "bold red"
    about = [f"action pair {first.action_pair_id}"]
    about += [f"workflow {first.workflow_id}"] if first.workflow_id else []
    about += [f"group {first.group}"] if first.group else []
    about += [f"side {first.side.value}"] if first.side else []
    yield ", ".join(about), "dim"
    yield "specification:", "bold"
    yield from _indented(first.specification)
    if first.constraints:
        yield "constraints:", "bold"
        yield from _indented(first.constraints)


def _attempts(chain: Sequence[RepositoryItem], siblings: Sequence[Link], full: bool) -> Iterator[Line]:
    for before, item in zip([None, *chain], chain, strict=False):
        yield "", ""
        yield _headline(item), f"bold {_STYLES[item.status.value]}"
        yield from ((line, "dim") for line in _about(item, before))
        yield from _relatives("beside it", [link for link in siblings if before and link.parent_id == before.id])
        if before:
            yield from _amended("specification", before.specification, item.specification)
            yield from _amended("constraints", before.constraints, item.constraints)
        if redacted := bool(item.facts and item.facts.redacted):
            yield "    its texts were redacted", "yellow"
        elif full or before is None or (before.facts and before.facts.redacted):
            yield from _indented(item.artifact)
        elif before.artifact == item.artifact:
            yield "    the same artifact as before", "yellow"
        else:
            yield from _coloured(before.artifact, item.artifact, *map(provenance.attempt_name, (before, item)))
        if item.feedback and not redacted:
            first, *more = item.feedback.split("\n")
            yield f"feedback: {first}", ""
            yield from ((f"          {line}", "") for line in more)


def _headline(item: RepositoryItem) -> str:
    told = f"{provenance.attempt_name(item)}: {provenance.verdict(item)}"
    return "  ".join([told, item.id, *(f"[{flag}]" for flag in provenance.flags(item))])


def _about(item: RepositoryItem, before: RepositoryItem | None) -> Iterator[str]:
    """Return when and by whom, and the settings where they are not those of the attempt before."""
    judged = f", guard {provenance.judged_by(item)}" if item.guard else ""
    yield f"{item.created_at.isoformat()}, source {item.source.value}{judged}"
    settings = provenance.settings(item)
    if settings and (before is None or settings != provenance.settings(before)):
        yield settings
    if item.metadata:
        yield provenance.scalars(item.metadata)
    if item.seen_history is not None:
        yield f"was shown a history of its own, of {len(item.seen_history)} entries, instead of the chain's"


def _amended(what: str, before: str, after: str) -> Iterator[Line]:
    if before != after:
        yield f"{what} amended:", "bold"
        yield from _coloured(before, after, "before", "after")


def _continued(children: Sequence[Link], links: Sequence[Link]) -> Iterator[Line]:
    """Say how the chain went on after its last item."""
    if not children:
        return
    yield "", ""
    yield from _relatives("went on", children)
    yield from _relatives("and then", provenance.descendants(children, links))


def _relatives(label: str, links: Sequence[Link]) -> Iterator[Line]:
    for link in links[:_RELATIVES_SHOWN]:
        yield f"{label}: attempt {link.attempt}: {link.status.value}  {link.id}", _STYLES[link.status.value]
    if len(links) > _RELATIVES_SHOWN:
        yield f"{label}: {len(links) - _RELATIVES_SHOWN} more", "dim"


def _coloured(before: str, after: str, name: str, other: str) -> Iterator[Line]:
    for line in provenance.difference_lines(before, after, name, other):
        yield f"    {line}", _DIFFERENCE_STYLES.get(line[:1], "")


def _indented(text: str) -> Iterator[Line]:
    for line in text.removesuffix("\n").split("\n"):
        yield f"    {line}", ""


def _write(lines: Sequence[Line]) -> None:
    """Print lines, styled on a terminal and plain elsewhere; nothing in them reaches the terminal as a command."""
    from rich.console import Console
    from rich.text import Text

    out = Console(highlight=False)
    for text, style in lines:
        shown = printable(text).replace("\n", "\\n")  # a line end inside an id makes no line of its own
        if out.is_terminal:
            out.print(Text(shown, style), soft_wrap=True)
        else:
            sys.stdout.write(shown + "\n")
