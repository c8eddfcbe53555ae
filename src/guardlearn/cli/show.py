"""`guardlearn show`: one item of ℛ with the chain that led to it."""

from __future__ import annotations

from typing import Annotated

import typer

from guardlearn.cli import console


def command(
    db: Annotated[str, typer.Argument(help="The repository.")],
    item_id: Annotated[str, typer.Argument(metavar="ID", help="An item's id.")],
    as_json: console.Json = False,
) -> None:
    """Show an attempt, its feedback and the attempts before it."""
    from guardlearn.dag import ArtifactDAG

    with ArtifactDAG.load(db, read_only=True) as dag:
        chain = dag.provenance(item_id)
    if as_json:
        console.emit({"item": chain[-1], "chain": chain})
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    out = Console()
    last = chain[-1]
    out.print(Panel(Text(last.specification), title="specification", title_align="left"))
    for item in chain:
        attempt = item.facts.attempt if item.facts else 0
        title = f"attempt {attempt}: {item.status.value}{f' ({item.cause})' if item.cause else ''}  {item.id}"
        out.print(Panel(Text(item.artifact), title=Text(title), title_align="left"))
        if item.feedback:
            out.print(Text(f"feedback: {item.feedback}"))
    facts = {"workflow": last.workflow_id, "action pair": last.action_pair_id, "guard": last.guard, "model": last.model}
    out.print(Text(", ".join(f"{name}: {value}" for name, value in facts.items() if value), style="dim"))
