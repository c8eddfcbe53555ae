"""`guardlearn impact`: which adapters learned from an item, from what a guard judged, or from a workflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.opening import opened

if TYPE_CHECKING:
    from guardlearn.lineage import Impact


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    guard: Annotated[
        str | None, typer.Option("--guard", help="What a guard judged: NAME, or NAME@VERSION (its first digits do).")
    ] = None,
    item: Annotated[str | None, typer.Option("--item", help="An item, by id.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Everything in a workflow, by id.")] = None,
    as_json: console.Json = False,
) -> None:
    """List the adapters that learned from it, with how much of each it is. None at all is an answer, too."""
    from guardlearn import lineage

    with opened(db) as dag:
        found = lineage.impact(dag, guard=guard, item=item, workflow=workflow)
    if as_json:
        console.emit(found)
    else:
        _show(found)


def _show(found: Impact) -> None:
    meant = f"{found.items} item{'s' if found.items > 1 else ''}" if found.items else "not in this repository any more"
    if not found.adapters:
        console.say(f"no adapter learned from {found.asked} ({meant})")
        return
    rows = [
        [
            each.name,
            "live" if each.live else each.state,
            each.digest[:12],
            each.items,
            each.trained,
            f"{each.share:.1%}",
            f"through {each.through}" if each.through else _examples(each.examples, each.items),
        ]
        for each in found.adapters
    ]
    columns = ["adapter", "", "digest", "its items", "of", "share", "which"]
    console.table(f"learned from {found.asked} ({meant})", columns, rows)
    if history := sum(each.in_history for each in found.adapters):
        console.say(f"{history} of these by way of an earlier attempt of the chain, whose feedback was learned from")


def _examples(ids: list[str], count: int) -> str:
    more = f" and {count - len(ids)} more" if count > len(ids) else ""
    return f"{', '.join(ids)}{more}"
