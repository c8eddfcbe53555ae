"""`guardlearn adapters`: the registry: what there is, what is live, what differs; promote, go back, prune, rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup

from guardlearn.cli import console
from guardlearn.cli.opening import opened

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG
    from guardlearn.lineage import AdapterRecord, Difference, Presence, Promotion

__all__ = ["app"]

_MEGA = 1_000_000

_HELP = ["-h", "--help"]


class _Group(TyperGroup):
    """Takes the options of `list` without its name, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name there where an option follows the repository."""
        if len(args) > 1 and args[1].startswith("-") and not args[0].startswith("-") and args[1] not in _HELP:
            args = [args[0], "list", *args[1:]]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    invoke_without_command=True,
    add_completion=False,
    context_settings={"help_option_names": _HELP},
)

Name = Annotated[
    str,
    typer.Argument(help="promoted, 3 or LEARNER/3 (of round 3), a digest's first digits (6 or more), or a folder."),
]
LearnerOption = Annotated[str | None, typer.Option("--learner", help="Whose; needed where there are several.")]


class _Asked(msgspec.Struct, frozen=True):
    """What the options before the subcommand say."""

    db: str
    as_json: bool


@app.callback()
def command(
    context: typer.Context,
    db: Annotated[str, typer.Argument(help="The repository.")],
    as_json: console.Json = False,
) -> None:
    """Adapters that rounds made: list (what you get without a subcommand), show, diff, promote and more."""
    context.obj = _Asked(db, as_json)
    if context.invoked_subcommand is None:
        _list(context.obj, None, as_json)


@app.command("list")
def list_(context: typer.Context, learner: LearnerOption = None, as_json: console.Json = False) -> None:
    """List every round's adapter: what was decided, what it gained, what is live."""
    _list(context.obj, learner, as_json)


@app.command()
def show(context: typer.Context, name: Name, as_json: console.Json = False) -> None:
    """Show one record as it stands in the repository; `guardlearn why` tells it for people."""
    from guardlearn import lineage

    with opened(context.obj.db) as dag:
        record = lineage.find(dag, name)
        found = lineage.presence(record)
    if as_json or context.obj.as_json:
        console.emit(msgspec.to_builtins(record) | {"name": record.name, "folder_state": found})
        return
    rows = [[label, value] for label, value in _fields(record, found) if value not in ("", None)]
    console.table(f"adapter {record.name}", ["", ""], rows)


@app.command()
def diff(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="A", help="A name, as for show.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: console.Json = False,
) -> None:
    """Show what differs between two: what they learned from, how they were trained, how they did."""
    from guardlearn import lineage

    with opened(context.obj.db) as dag:
        found = lineage.difference(lineage.find(dag, first), lineage.find(dag, second))
    if as_json or context.obj.as_json:
        console.emit(found)
    else:
        _show_difference(found)


@app.command()
def promote(
    context: typer.Context,
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is stored with your name.")],
    as_json: console.Json = False,
) -> None:
    """Make an adapter live by hand, whatever the gate said; its folder must be as its round left it."""
    from guardlearn import lineage
    from guardlearn.cli.actor import actor
    from guardlearn.dag import ArtifactDAG

    with ArtifactDAG.load(context.obj.db) as dag:
        promotion = lineage.promote(dag, lineage.find(dag, name), actor=actor(), reason=reason)
    _say_live(promotion, as_json or context.obj.as_json)


@app.command()
def rollback(
    context: typer.Context,
    to: Annotated[
        str | None, typer.Option("--to", help="A name, or base for no adapter; default: what was live before.")
    ] = None,
    learner: LearnerOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is stored with your name.")] = "",
    as_json: console.Json = False,
) -> None:
    """Go back to what was live before; again, to what was live before that."""
    from guardlearn import lineage
    from guardlearn.cli.actor import actor
    from guardlearn.dag import ArtifactDAG

    with ArtifactDAG.load(context.obj.db) as dag:
        promotion = lineage.roll_back(dag, learner, to=to, actor=actor(), reason=reason)
    _say_live(promotion, as_json or context.obj.as_json)


@app.command()
def prune(
    context: typer.Context,
    keep: Annotated[int, typer.Option("--keep", min=0, help="Leave the newest so many of each learner.")] = 0,
    promoted_too: Annotated[
        bool, typer.Option("--promoted-too", help="Also those that were live once; never what is live.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, say what would be.")] = False,
    learner: Annotated[str | None, typer.Option("--learner", help="Of this learner alone.")] = None,
    as_json: console.Json = False,
) -> None:
    """Remove the folders of refused adapters; the repository still tells their rounds, `show` says "pruned"."""
    from guardlearn import lineage
    from guardlearn.cli.actor import actor
    from guardlearn.dag import ArtifactDAG

    with ArtifactDAG.load(context.obj.db, read_only=dry_run) as dag:
        found = lineage.prune(dag, learner, actor=actor(), keep=keep, promoted_too=promoted_too, dry_run=dry_run)
    freed = sum(each.size_bytes for each in found if each.removed)
    if as_json or context.obj.as_json:
        console.emit({"adapters": found, "removed": sum(each.removed for each in found), "freed_bytes": freed})
        return
    if found:
        rows = [[each.name, f"{each.size_bytes / _MEGA:.1f} MB", each.said, each.folder] for each in found]
        console.table("refused adapters", ["adapter", "size", "", "folder"], rows)
    console.say(f"removed: {sum(each.removed for each in found)}; freed: {freed / _MEGA:.1f} MB")


@app.command()
def rebuild(
    context: typer.Context,
    name: Name,
    output: Annotated[Path, typer.Option("-o", "--output", help="The job folder to appear.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The base model; default: what its round was given.")
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Write an adapter's job folder again, from its manifest and the repository, byte for byte or not at all."""
    from guardlearn import lineage
    from guardlearn.jobs import rebuild_job
    from guardlearn.models import resolve_model

    with opened(context.obj.db) as dag, console.late_progress("rebuild") as on_progress:
        record = lineage.find(dag, name)
        base = resolve_model(model or lineage.base_of(record))
        digest = record.manifest_digest or None
        manifest = lineage.manifest_of(record)
        summary = rebuild_job(dag, manifest, output, base, digest=digest, on_progress=on_progress)
    if as_json or context.obj.as_json:
        console.emit(msgspec.structs.asdict(summary) | {"adapter": record.name, "folder": str(output)})
    else:
        console.say(f"{output}: the job of {record.name}, {summary.rows} + {summary.validation_rows} rows")


def _list(asked: _Asked, learner: str | None, as_json: bool) -> None:
    from guardlearn import lineage

    with opened(asked.db) as dag:
        found = lineage.records(dag, lineage.one_learner(dag, learner) if learner else None)
        with console.late_progress("adapters") as on_progress:
            places = []
            for done, record in enumerate(found, 1):
                places.append(lineage.presence(record))
                on_progress(done, len(found), record.name)
        now = [each for each in _live(dag) if learner in (None, each.learner)]
    if as_json or asked.as_json:
        rows = [_row(record, place) for record, place in zip(found, places, strict=True)]
        console.emit({"adapters": rows, "live": now})
        return
    lines = [_line(record, place) for record, place in zip(found, places, strict=True)]
    columns = ["", "round", "decision", "gain, points", "95 % interval", "items", "digest", "folder", "why"]
    if lines:
        console.table(f"{len(found)} adapters of rounds in {asked.db}", columns, lines)
    for each in now:
        what = each.adapter if each.adapter_digest else "the bare base"
        console.say(f"live for {each.learner}: {what} (by {each.actor}, {each.created_at:%Y-%m-%d %H:%M} UTC)")
    if not found:
        console.say("no round yet: `guardlearn loop` runs one")
    elif not now:
        console.say("live: the bare base; nothing was promoted yet")


def _live(dag: ArtifactDAG) -> list[Promotion]:
    """Return the last promotion of each learner."""
    from guardlearn.dag import rounds

    with dag.reading() as connection:
        return list({each.learner: each for each in rounds.read_promotions(connection)}.values())


def _row(record: AdapterRecord, place: Presence) -> dict[str, Any]:
    low, high = record.interval or (None, None)
    names = ("learner", "round", "state", "digest", "folder", "live", "reason", "mode", "planned_at", "decided_at")
    return {name: getattr(record, name) for name in names} | {
        "name": record.name,
        "items": len(record.item_ids),
        "gain": record.gain,
        "low": low,
        "high": high,
        "folder_state": place.state,
    }


def _line(record: AdapterRecord, place: Presence) -> list[Any]:
    low, high = record.interval or (None, None)
    return [
        "live" if record.live else "",
        record.name,
        record.state,
        _points(record.gain),
        f"{_points(low)} to {_points(high)}" if low is not None else "",
        len(record.item_ids),
        record.digest[:12],
        place.state,
        record.reason,
    ]


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.1f}"


def _fields(record: AdapterRecord, place: Presence) -> Iterator[tuple[str, Any]]:
    yield "state", f"{record.state}{', live' if record.live else ''}"
    yield "folder", f"{record.folder} ({place.said})" if place.state != "there" else record.folder
    yield "digest", record.digest
    yield "parent", record.parent or "the bare base"
    yield "incumbent", record.incumbent or "the bare base"
    yield "base model", f"{record.base_model} {record.base_model_digest[:12]}".strip()
    yield "predicate", record.predicate
    new = f", {len(record.new_item_ids)} new" if record.new_item_ids else ""
    yield "items", f"{len(record.item_ids)}{new}, digest {record.item_ids_digest[:12]}, up to seq {record.seq}"
    yield "rows", record.rows
    yield "validation rows", record.validation_rows
    yield "sides", record.sides_digest
    yield "views", ", ".join(record.views)
    yield "template", record.template_digest
    yield "seed", record.seed
    yield from ((f"training {name}", _short(value)) for name, value in sorted(record.training.items()))
    yield from ((f"weighting {name}", _short(value)) for name, value in sorted(record.weighting.items()))
    yield from ((f"result {name}", _short(value)) for name, value in sorted(record.result.items()))
    low, high = record.interval or (None, None)
    yield "gain", f"{_points(record.gain)} points [{_points(low)}, {_points(high)}]" if record.gain is not None else ""
    yield "reason", record.reason
    for each in record.promotions:
        yield "made live", f"{each.created_at.isoformat()} by {each.actor} ({each.action}) {each.reason}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 100 else f"{text[:97]}..."


def _show_difference(found: Difference) -> None:
    rows: list[list[Any]] = [
        ["items in both", found.items_in_both, found.items_in_both],
        ["items in one alone", found.items_in_first, found.items_in_second],
        ["for example", ", ".join(found.examples_in_first), ", ".join(found.examples_in_second)],
    ]
    if found.predicate:
        rows.append(["predicate", *found.predicate])
    rows += [[name, _short(one), _short(other)] for name, (one, other) in found.config.items()]
    rows += [[name, _figure(one), _figure(other)] for name, (one, other) in found.evidence.items()]
    rows.append(["decision", *found.decision])
    told = [row for row in rows if row[1:] != ["", ""]]
    console.table("what differs", ["", found.first, found.second], told)
    if found.same_weights:
        console.say("their weights are the same, to the last bit")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _say_live(promotion: Promotion, as_json: bool) -> None:
    if as_json:
        console.emit(promotion)
        return
    what = f"{promotion.adapter} ({promotion.adapter_digest[:12]})" if promotion.adapter_digest else "the bare base"
    console.say(f"live for {promotion.learner} now: {what}")
