"""`guardlearn audit`: whether a guard's verdicts can be believed."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from guardlearn.cli import console
from guardlearn.cli.options import AddressOption, GuardOption, SandboxOption
from guardlearn.errors import UsageError

if TYPE_CHECKING:
    from guardlearn.audit import AuditConfig, AuditReport, Finding
    from guardlearn.engines import Engine
    from guardlearn.types import Guard

_SHOWN = 20


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read, unless --mark or --rejudge is given.")],
    guard: GuardOption,
    specs: Annotated[
        Path | None, typer.Option("--specs", help="The specification file, for what the guard reads in its metadata.")
    ] = None,
    where: Annotated[str | None, typer.Option("--where", help="Audit the items of this predicate only.")] = None,
    repeat: Annotated[int | None, typer.Option(min=1, help="Times each artifact is judged (3).")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Items judged again, a sample; 0: all (100).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sample (0).")] = None,
    mark: Annotated[bool, typer.Option("--mark", help="Mark every stale item; fresh() leaves it out then.")] = False,
    rejudge: Annotated[
        bool, typer.Option("--rejudge", help="Store what the guard says of stale items now, as events.")
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="Where guards run: local (this process) | ray (a cluster).")
    ] = "local",
    address: AddressOption = None,
    sandbox: SandboxOption = "auto",
    as_json: console.Json = False,
) -> None:
    """Judge stored artifacts again, try artifacts that do nothing, find stale verdicts.

    Exit code 1: something is wrong. Defaults stand in guardlearn.toml, table audit.
    """
    from guardlearn import predicates
    from guardlearn.audit import audit
    from guardlearn.cli.actor import actor
    from guardlearn.dag import ArtifactDAG
    from guardlearn.guards import load_guard

    config = _config({"repeat": repeat, "limit": limit, "seed": seed})
    loaded = load_guard(guard)
    specifications = console.read_specifications(specs) if specs else []
    chosen = predicates.parse(where) if where else None
    with contextlib.ExitStack() as opened:
        dag = opened.enter_context(ArtifactDAG.load(db, read_only=not (mark or rejudge)))
        report = audit(
            dag,
            loaded,
            config,
            where=chosen,
            specifications=specifications,
            mark=mark,
            rejudge=rejudge,
            actor=actor(),
            engine=_cluster(opened, engine, address, guard, loaded),
            on_progress=opened.enter_context(console.progress("audit")),
        )
    if as_json:
        console.emit(msgspec.to_builtins(report) | {"wrong": report.wrong})
    else:
        _show(report, db, bool(specs))
    if report.wrong:
        raise typer.Exit(1)


def _cluster(opened: contextlib.ExitStack, engine: str, address: str | None, name: str, guard: Guard) -> Engine | None:
    """Return the Ray engine where it was asked for; None: guards run in this process."""
    if engine not in ("local", "ray") or (address is not None and engine != "ray"):
        raise UsageError(f"engine {engine!r} with address {address!r}; allowed: local, or ray (and --address with it)")
    if engine == "local":
        return None
    from guardlearn.engines.ray import RayEngine
    from guardlearn.guards import load_guard

    return opened.enter_context(RayEngine(None, guard, address=address, open_guard=partial(load_guard, name)))


def _config(given: dict[str, Any]) -> AuditConfig:
    from guardlearn import settings
    from guardlearn.audit import AuditConfig

    read = settings.read().table("audit", AuditConfig)
    return msgspec.structs.replace(read, **{name: value for name, value in given.items() if value is not None})


def _show(report: AuditReport, db: str, with_specs: bool) -> None:
    from guardlearn.audit import CHECKS

    title = f"guard {report.guard} {report.guard_version[:12]} in {db}: {report.items} items"
    rows = [[c.name, c.tried, c.wrong, c.allowed, c.no_verdict, CHECKS[c.name]] for c in report.checks]
    console.table(title, ["check", "tried", "wrong", "allowed", "no verdict", "what should hold"], rows)
    if report.findings:
        _show_findings(report.findings)
    if report.stale.items:
        _show_stale(report)
    if report.first_failure:
        missing = report.unknown_specifications and not with_specs
        hint = "; if it reads the specification's metadata, give the file with --specs" if missing else ""
        console.say(f"no verdict, the first time: {report.first_failure}{hint}")
    for line in report.wrong:
        console.say(f"wrong: {line}")
    if not report.wrong:
        console.say(f"nothing wrong found, {report.seconds:.0f} s")


def _show_findings(findings: tuple[Finding, ...]) -> None:
    rows = [
        [
            f"{each.check}{' (allowed)' if each.allowed else ''}",
            each.kind,
            each.specification_id,
            each.item_id,
            ", ".join(each.verdicts),
            each.artifact[:60].replace("\n", "\\n"),
        ]
        for each in findings[:_SHOWN]
    ]
    more = f", the first {_SHOWN} of {len(findings)} (all: --json)" if len(findings) > _SHOWN else ""
    console.table(f"findings{more}", ["check", "kind", "specification", "item", "verdicts", "artifact"], rows)


def _show_stale(report: AuditReport) -> None:
    stale = report.stale
    changes = ", ".join(f"{name} {count}" for name, count in stale.changes.items()) or "no verdict"
    console.say(f"stale: {stale.items} items were judged by another version; {stale.judged} judged again: {changes}")
    if stale.stored:
        console.say(f"stale: {stale.stored} new verdicts are stored as events, these items are fresh")
    if stale.marked:
        console.say(f"stale: {stale.marked} items are marked; fresh() leaves them out")
    left = stale.items - stale.judged
    if left > 0 and stale.stored:
        console.say(f"stale: {left} were not judged again; raise --limit (0: all)")
