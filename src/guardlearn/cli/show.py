"""`guardlearn show`: an attempt with the chain that led to it, the differences and the feedback between."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened
from guardlearn.types import RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.dag.tree import Link

_RELATIVES_SHOWN = 10
_SETTINGS_SHOWN = 12
_LONGEST_SETTING = 60
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
        broken = _broken(dag, chain)
    children = [link for link in links if link.parent_id == item_id]
    siblings = _siblings(chain, links)
    if as_json:
        differences = [
            _difference(earlier.artifact, later.artifact, _name(earlier), _name(later))
            for earlier, later in pairwise(chain)
        ]
        found = {"item": chain[-1], "chain": chain, "differences": differences, "children": children}
        console.emit(found | {"siblings": siblings, "broken": broken})
        return
    _write([*_opening(chain[0], broken), *_attempts(chain, siblings, full), *_continued(children, links)])


def _broken(dag: ArtifactDAG, chain: Sequence[RepositoryItem]) -> str | None:
    """Return what is wrong with the chain's beginning."""
    before = chain[0].parent_id
    if not before:
        return None
    if before == chain[0].id:
        return f"the links run in a circle: {before!r} names itself as the attempt before it"
    if dag.known_ids([before]):
        return f"the links run in a circle: {chain[0].id!r} names {before!r} as the attempt before it, which follows it"
    return f"the attempt before {chain[0].id!r} is missing: {before!r} is not in this repository"


def _siblings(chain: Sequence[RepositoryItem], links: Sequence[Link]) -> list[Link]:
    """Return the other attempts at what the items of the chain are attempts at."""
    path = {item.id for item in chain}
    parents = {link.parent_id for link in links if link.id in path and link.parent_id}
    return [link for link in links if link.parent_id in parents and link.id not in path]


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
            yield from _coloured(before.artifact, item.artifact, _name(before), _name(item))
        if item.feedback and not redacted:
            first, *more = item.feedback.split("\n")
            yield f"feedback: {first}", ""
            yield from ((f"          {line}", "") for line in more)


def _headline(item: RepositoryItem) -> str:
    flags = [name for name in ("excluded", "redacted", "stale", "reviewed") if item.facts and getattr(item.facts, name)]
    said = [item.cause] if item.cause else []
    said += ["fatal"] if item.fatal else []
    verdict = f"{item.status.value} ({', '.join(said)})" if said else item.status.value
    return "  ".join([f"{_name(item)}: {verdict}", item.id, *(f"[{flag}]" for flag in flags)])


def _name(item: RepositoryItem) -> str:
    return f"attempt {item.facts.attempt if item.facts else 1}"


def _about(item: RepositoryItem, before: RepositoryItem | None) -> Iterator[str]:
    """Return when and by whom, and the settings where they are not those of the attempt before."""
    yield f"{item.created_at.isoformat()}, source {item.source.value}{_judged_by(item)}"
    settings = _settings(item)
    if settings and (before is None or settings != _settings(before)):
        yield settings
    if item.metadata:
        yield _scalars(item.metadata)
    if item.seen_history is not None:
        yield f"was shown a history of its own, of {len(item.seen_history)} entries, instead of the chain's"


def _judged_by(item: RepositoryItem) -> str:
    if not item.guard:
        return ""
    return f", guard {item.guard}{f' {item.guard_version[:12]}' if item.guard_version else ''}"


def _settings(item: RepositoryItem) -> str:
    named = {"model": item.model, "adapter": item.adapter[:12]}
    return _scalars({name: value for name, value in named.items() if value} | item.sampling)


def _scalars(values: dict[str, Any]) -> str:
    """Return the short values as one line; lists and tables are left to --json."""
    plain = {name: value for name, value in values.items() if isinstance(value, str | int | float)}
    plain = {name: value for name, value in plain.items() if len(str(value)) <= _LONGEST_SETTING}
    shown = [f"{name} {value}" for name, value in list(plain.items())[:_SETTINGS_SHOWN]]
    if len(plain) > _SETTINGS_SHOWN:
        shown.append(f"{len(plain) - _SETTINGS_SHOWN} more")
    return ", ".join(shown)


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
    by_parent: dict[str | None, list[Link]] = {}
    for link in links:
        by_parent.setdefault(link.parent_id, []).append(link)
    later: list[Link] = []
    frontier = list(children)
    while frontier:
        below = by_parent.pop(frontier.pop().id, [])
        later += below
        frontier += below
    yield from _relatives("and then", sorted(later, key=lambda link: link.attempt))


def _relatives(label: str, links: Sequence[Link]) -> Iterator[Line]:
    for link in links[:_RELATIVES_SHOWN]:
        yield f"{label}: attempt {link.attempt}: {link.status.value}  {link.id}", _STYLES[link.status.value]
    if len(links) > _RELATIVES_SHOWN:
        yield f"{label}: {len(links) - _RELATIVES_SHOWN} more", "dim"


def _difference(before: str, after: str, name: str, other: str) -> str:
    """Return the unified difference, as `diff -u` writes it; "" where there is none."""
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(_lines(before), _lines(after), name, other)
    )


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)  # splitlines would also part at form feeds and the like


def _coloured(before: str, after: str, name: str, other: str) -> Iterator[Line]:
    if before and after and not before.endswith("\n") and not after.endswith("\n"):
        before, after = f"{before}\n", f"{after}\n"  # neither ends a line: that is no difference to be noted
    for line in _difference(before, after, name, other).removesuffix("\n").split("\n"):
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
        shown = console.visible(text).replace("\n", "\\n")  # a line end inside an id makes no line of its own
        if out.is_terminal:
            out.print(Text(shown, style), soft_wrap=True)
        else:
            sys.stdout.write(shown + "\n")
