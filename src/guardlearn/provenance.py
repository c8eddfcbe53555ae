"""A chain as people read it: verdicts, settings, and what each attempt changed of the one before.

Pure functions of items and links (Definition 11's provenance), used by every view of a chain; how they look is the
views' business. Texts come back as they are: whoever shows them escapes them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from guardlearn.types import RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.dag.tree import Link

__all__ = [
    "attempt_name",
    "broken",
    "descendants",
    "difference",
    "difference_lines",
    "flags",
    "judged_by",
    "scalars",
    "settings",
    "siblings",
    "verdict",
]

_SETTINGS_SHOWN = 12
_LONGEST_SETTING = 60
_VERSION_DIGITS = 12


def attempt_name(item: RepositoryItem) -> str:
    """Return "attempt n", n the item's place in its chain, from 1."""
    return f"attempt {item.facts.attempt if item.facts else 1}"


def verdict(item: RepositoryItem) -> str:
    """Return the current status, and what the guard said it was about."""
    said = [item.cause] if item.cause else []
    said += ["fatal"] if item.fatal else []
    return f"{item.status.value} ({', '.join(said)})" if said else item.status.value


def flags(item: RepositoryItem) -> list[str]:
    """Return what events made of an item beside its status."""
    names = ("excluded", "redacted", "stale", "reviewed")
    return [name for name in names if item.facts and getattr(item.facts, name)]


def judged_by(item: RepositoryItem) -> str:
    """Return the guard and its version's first digits; "" where none is noted."""
    if not item.guard:
        return ""
    return f"{item.guard}{f' {item.guard_version[:_VERSION_DIGITS]}' if item.guard_version else ''}"


def settings(item: RepositoryItem) -> str:
    """Return what generated an item, in one line."""
    named = {"model": item.model, "adapter": item.adapter[:_VERSION_DIGITS]}
    return scalars({name: value for name, value in named.items() if value} | item.sampling)


def scalars(values: Mapping[str, Any]) -> str:
    """Return the short values as one line; lists, tables and long texts are left out."""
    plain = {name: value for name, value in values.items() if isinstance(value, str | int | float)}
    plain = {name: value for name, value in plain.items() if len(str(value)) <= _LONGEST_SETTING}
    shown = [f"{name} {value}" for name, value in list(plain.items())[:_SETTINGS_SHOWN]]
    if len(plain) > _SETTINGS_SHOWN:
        shown.append(f"{len(plain) - _SETTINGS_SHOWN} more")
    return ", ".join(shown)


def broken(dag: ArtifactDAG, chain: Sequence[RepositoryItem]) -> str | None:
    """Return what is wrong with a chain's beginning; None: nothing.

    Args:
        dag: ℛ; it is only read.
        chain: what `ArtifactDAG.provenance` returned.
    """
    before = chain[0].parent_id
    if not before:
        return None
    if before == chain[0].id:
        return f"the links run in a circle: {before!r} names itself as the attempt before it"
    if dag.known_ids([before]):
        return f"the links run in a circle: {chain[0].id!r} names {before!r} as the attempt before it, which follows it"
    return f"the attempt before {chain[0].id!r} is missing: {before!r} is not in this repository"


def siblings(chain: Sequence[RepositoryItem], links: Sequence[Link]) -> list[Link]:
    """Return the other attempts at what the items of a chain are attempts at.

    Args:
        chain: the path to an item.
        links: what `ArtifactDAG.tree` returned.
    """
    path = {item.id for item in chain}
    parents = {link.parent_id for link in links if link.id in path and link.parent_id}
    return [link for link in links if link.parent_id in parents and link.id not in path]


def descendants(children: Sequence[Link], links: Sequence[Link]) -> list[Link]:
    """Return what came after `children`, by attempt; they themselves are not among it."""
    by_parent: dict[str | None, list[Link]] = {}
    for link in links:
        by_parent.setdefault(link.parent_id, []).append(link)
    later: list[Link] = []
    frontier = list(children)
    while frontier:
        below = by_parent.pop(frontier.pop().id, [])
        later += below
        frontier += below
    return sorted(later, key=lambda link: link.attempt)


def difference(before: str, after: str, name: str, other: str) -> str:
    """Return the unified difference, as `diff -u` writes it; "" where there is none.

    Args:
        before: a text.
        after: what became of it.
        name: what `before` is called.
        other: what `after` is called.
    """
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(_lines(before), _lines(after), name, other)
    )


def difference_lines(before: str, after: str, name: str, other: str) -> list[str]:
    """Return the lines of a difference for showing; that neither text ends its last line is no difference."""
    if before and after and not before.endswith("\n") and not after.endswith("\n"):
        before, after = f"{before}\n", f"{after}\n"
    return difference(before, after, name, other).removesuffix("\n").split("\n")


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", text)  # splitlines would also part at form feeds and the like
