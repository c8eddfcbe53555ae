"""`guardlearn ablate`: ways of training compared at equal wall time, on the validation side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from guardlearn.cli import console, stopping
from guardlearn.cli.options import SandboxOption, opened_as_set
from guardlearn.errors import UsageError
from guardlearn.printing import printable

if TYPE_CHECKING:
    from guardlearn.ablation import AblationSettings, Planned
    from guardlearn.loop.rounds import Bench
    from guardlearn.report.ablation import Ablation


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    specs: Annotated[
        list[Path] | None,
        typer.Argument(help="Specification files; those on the validation side measure. Default: [loop] specs."),
    ] = None,
    over: Annotated[
        str, typer.Option("--over", help="What varies: views | policy | retry_prompt | budget | method.")
    ] = "views",
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="An arm (repeatable): a view, a policy or predicate, a percentage, a method."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The arm that the others are held against; default: as it is set.")
    ] = None,
    guard: Annotated[str | None, typer.Option("--guard", help="Name of the guard; [loop] guard.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Base model; [loop] model.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Gets everything; default: [ablation] folder, then the axis.")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Training seeds, as in 0,1,2; [ablation] seeds.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Chains per specification; [ablation] samples.")
    ] = None,
    rmax: Annotated[
        int | None, typer.Option("--rmax", min=1, help="Attempts of a chain, the first included; [ablation] r_max.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Wall time of each training; default: the reference's own.")
    ] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter of the training process.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be compared; train nothing.")] = False,
    sandbox: SandboxOption = "auto",
    as_json: console.Json = False,
) -> None:
    """Train each arm for the same wall time, measure all on the validation side. Run again, it continues.

    What is shared by all arms stands in [loop], [training] and [ablation] of guardlearn.toml. Held-out is never read.
    """
    from guardlearn.ablation import AXES

    if over not in AXES:
        raise UsageError(f"--over {over!r} is unknown; choose {' or '.join(AXES)}")
    given = {"samples": samples, "r_max": rmax, "minutes": minutes, "seeds": _seeds(seeds)}
    wanted = _configured({"specs": tuple(map(str, specs or ())) or None, "guard": guard, "model": model}, given)
    folder = output or Path(wanted.ablation.folder) / over
    asked: dict[str, Any] = {"over": over, "names": tuple(arm or ()), "reference": reference, "folder": folder}
    bench = _bench(wanted, python)
    if dry_run:
        _tell_plan(db, wanted, bench, asked, as_json)
        return
    try:
        ablation = _run(db, wanted, bench, asked)
    except KeyboardInterrupt:
        console.say("guardlearn: stopped; the same command continues")
        stopping.leave(stopping.INTERRUPTED)
    if as_json:
        console.emit(ablation)
    else:
        tell(ablation)
        console.say(f"report: {folder / 'ablation.html'}")


def tell(ablation: Ablation) -> None:
    """Show what an ablation came to, for people."""
    from guardlearn.report import ablation as words

    console.table(words.headline(ablation), *words.arm_rows(ablation))
    console.table(f"differences to {ablation.reference}, at equal wall time", *words.difference_rows(ablation))
    for said in ablation.says:
        print(printable(said))
    for caveat in words.caveats(ablation):
        print(printable(f"note: {caveat}"))


def _configured(loop: dict[str, Any], ablation: dict[str, Any]) -> AblationSettings:
    """Return the settings file's tables with what was given on the command line in its place; None was not."""
    from guardlearn import settings
    from guardlearn.ablation import read_settings

    found = read_settings(settings.read())
    return msgspec.structs.replace(
        found,
        loop=msgspec.structs.replace(found.loop, **{name: value for name, value in loop.items() if value is not None}),
        ablation=msgspec.structs.replace(
            found.ablation, **{name: value for name, value in ablation.items() if value is not None}
        ),
    )


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise UsageError(f"--seeds {text!r} is no list of whole numbers; write them as in 0,1,2") from None


def _bench(wanted: AblationSettings, python: str | None) -> Bench:
    """Open everything but the generator; what is missing is said before anything is trained."""
    from guardlearn.guards import load_guard
    from guardlearn.loop.rounds import Bench
    from guardlearn.models import resolve_model

    config = wanted.loop
    if not config.specs or not config.guard:
        how = "name files after the repository, or specs" if not config.specs else "give --guard, or guard"
        what = "specifications" if not config.specs else "guard"
        raise UsageError(f"no {what} to measure with; {how} in [loop] of guardlearn.toml")
    specs = [spec for file in config.specs for spec in console.read_specifications(Path(file))]
    twice = next((spec.id for place, spec in enumerate(specs) if spec.id in {each.id for each in specs[:place]}), None)
    if twice is not None:
        raise UsageError(f"specification id {twice!r} stands twice in {', '.join(config.specs)}; ids name pairs")
    return Bench(
        model_folder=resolve_model(config.base_model),
        guard=load_guard(config.guard),
        specs=specs,
        open_generator=opened_as_set,
        python=python,
    )


def _run(db: str, wanted: AblationSettings, bench: Bench, asked: dict[str, Any]) -> Ablation:
    from guardlearn.ablation import ablate
    from guardlearn.dag import ArtifactDAG
    from guardlearn.report.ablation_files import write_ablation

    with ArtifactDAG.load(db, read_only=True) as dag:
        ablation = ablate(dag, wanted, bench, stage=console.progress, **asked)
    write_ablation(asked["folder"], ablation)
    return ablation


def _tell_plan(db: str, wanted: AblationSettings, bench: Bench, asked: dict[str, Any], as_json: bool) -> None:
    from guardlearn.ablation import fewest_groups, plan_ablation
    from guardlearn.dag import ArtifactDAG

    with ArtifactDAG.load(db, read_only=True) as dag:
        planned = plan_ablation(dag, wanted, bench, **asked, keep=False)
    needed, seeds = fewest_groups(len(planned.arms) - 1), wanted.ablation.seeds
    rows = [[arm.name, _trained_on(planned, arm.name, seeds), arm.training.method] for arm in planned.arms]
    if as_json:
        said = [
            {"arm": arm.name, "select": arm.select, "training": dataclasses.asdict(arm.training), "traces": row[1]}
            for arm, row in zip(planned.arms, rows, strict=True)
        ]
        known = {"specs": len(planned.specs), "groups": planned.groups, "groups_needed": needed}
        console.emit(
            {"over": planned.over, "reference": planned.reference, "arms": said, **known}
            | {"same": planned.same, "left_out": planned.left_out, "notes": planned.notes}
        )
        return
    console.table(f"arms of {planned.over}, held against {planned.reference}", ["arm", "traces", "method"], rows)
    console.say(
        f"measured on {len(planned.specs)} specifications in {planned.groups} groups of the validation side; "
        f"{needed} groups are the fewest that can tell one of these arms from the reference"
    )
    for name, other in planned.same.items():
        console.say(f"{name} would train the same as {other}")
    for name, why in planned.left_out.items():
        console.say(f"{name} is left out: {why}")
    for note in planned.notes:
        console.say(note)


def _trained_on(planned: Planned, arm: str, seeds: tuple[int, ...]) -> list[int]:
    return [len(planned.extractions[arm, seed].traces) for seed in seeds]
