"""`guardlearn compare`: two models that were evaluated apart, on the same specifications."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from guardlearn.cli import console
from guardlearn.errors import UsageError
from guardlearn.printing import printable

if TYPE_CHECKING:
    from guardlearn.comparing import Compared, Measured, ModelFigures

_WHICH = "Which model of its evidence: base | candidate; default: the candidate where there is one."


def command(
    a: Annotated[Path, typer.Argument(help="An evaluation: its folder, or its evidence.json.")],
    b: Annotated[Path, typer.Argument(help="The evaluation that is compared with A; may be the same.")],
    which_a: Annotated[str | None, typer.Option("--which-a", help=_WHICH)] = None,
    which_b: Annotated[str | None, typer.Option("--which-b", help=_WHICH)] = None,
    common: Annotated[bool, typer.Option("--common", help="Compare the specifications that are in both only.")] = False,
    as_json: console.Json = False,
) -> None:
    """Compare first attempts of two evaluations, B minus A, paired by specification; refuse what cannot be paired."""
    from guardlearn.comparing import compare

    same_place = a.resolve() == b.resolve()
    compared = compare(_read(a, which_a, "A", same_place), _read(b, which_b, "B", same_place), common=common)
    if as_json:
        console.emit(compared)
    else:
        _show(compared)


def _read(path: Path, which: str | None, letter: str, same_place: bool) -> Measured:
    from guardlearn import report
    from guardlearn.comparing import measured

    if which not in (None, "base", "candidate"):
        raise UsageError(f"--which-{letter.lower()} is {which!r}; allowed: base, candidate")
    evidence = report.load(path / report.EVIDENCE if path.is_dir() else path)
    found = measured(evidence, cast(Literal["base", "candidate"] | None, which), f"{letter} ({path})")
    return found._replace(name=f"{letter} ({path}, {found.which})") if same_place else found


def _show(compared: Compared) -> None:
    from guardlearn.report import words

    for one in (compared.a, compared.b):
        print(printable(f"{one.name}: {one.which}, model {one.model}, adapter {one.adapter or 'none'}"))
    columns = [_column(compared, one) for one in (compared.a, compared.b)]
    rows = [[what, *(column[what] for column in columns)] for what in columns[0]]
    rows += [[f"pass@{row.k}", words.percent(row.a), words.percent(row.b)] for row in compared.pass_at_k]
    title = (
        f"{compared.specs} specifications in {compared.groups} groups, {compared.samples_per_spec} sample(s) each; "
        f"a pair shares {compared.pairing}"
    )
    console.table(title, ["", "A", "B"], rows)
    differences = [list(row) for row in words.comparison(compared.difference, "B")]
    if compared.mcnemar_p_value is not None:
        differences.insert(4, ["exact McNemar test", words.p_value(compared.mcnemar_p_value)])
    differences += [
        [f"pass@{row.k}", f"{words.points(row.difference)} ({words.interval(row.low, row.high)})"]
        for row in compared.pass_at_k
    ]
    changes = compared.changes
    differences.append(["gained, lost, the same", f"{changes.gained}, {changes.lost}, {changes.same}"])
    console.table("B minus A", ["", ""], differences)
    if len(compared.by_action_pair) > 1:
        _show_action_pairs(compared)
    for note in compared.notes:
        print(printable(f"note: {note}"))


def _show_action_pairs(compared: Compared) -> None:
    from guardlearn.report import words

    rows = [
        [
            row.action_pair_id,
            row.specs,
            row.groups,
            words.percent(row.base),
            words.percent(row.candidate),
            f"{words.points(row.difference)} ({words.interval(row.low, row.high)})",
            words.p_value(row.p_value),
            words.p_value(row.adjusted_p_value),
        ]
        for row in compared.by_action_pair
    ]
    columns = ["action pair", "specs", "groups", "A", "B", "B minus A", "sign-flip", "Holm"]
    console.table("By action pair", columns, rows)


def _column(compared: Compared, one: ModelFigures) -> dict[str, str]:
    from guardlearn.report import words

    first, bound, paid = one.first_attempt, one.bound, one.cost
    expected = words.interval(one.expected_attempts_low, one.expected_attempts_high, scale=1, digits=2)
    return {
        "first attempts that pass": words.percent(first.rate),
        "  95 % interval, by group": words.interval(first.low, first.high),
        "  passed, of those with a verdict": f"{first.passed} of {first.judged}",
        f"attempts needed (at most {compared.r_max})": words.number(one.expected_attempts),
        "  95 % interval": expected,
        f"unsolved after {compared.r_max} attempts": words.percent(bound.observed if bound else None),
        f"  its bound, (1 - first attempts)^{compared.r_max}": words.percent(bound.bound if bound else None),
        "tokens written for each accepted": words.number(paid.completion_tokens if paid else None, 0),
        "seconds for each accepted": words.number(paid.seconds if paid else None),
    }
