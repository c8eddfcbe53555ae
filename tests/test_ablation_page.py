"""What an ablation says, whichever way it falls: sentences, tables, page, Markdown; nothing in a name can act."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from guardlearn.errors import DataError
from guardlearn.evidence import Rate
from guardlearn.report import ablation as told
from guardlearn.report.ablation import Ablation, ArmFigures, Figures, Versus
from guardlearn.report.ablation_files import ABLATION, load_ablation, write_ablation
from guardlearn.report.ablation_page import ablation_page, markdown

HOSTILE = '<script>window.ran = 1</script>| `x` \x1b[2J\nitem("a|b")'


def rate(share: float | None, half: float = 0.1, silent: int = 0) -> Rate:
    low, high = (None, None) if share is None else (max(0.0, share - half), min(1.0, share + half))
    return Rate(rate=share, low=low, high=high, passed=0, judged=40, no_verdict=silent, method="t")


def arm(name: str, share: float | None, traces: int = 32, wall: float | None = 60.0, **given: Any) -> ArmFigures:
    figures = Figures(name=name, first_attempt=rate(share, **given), by_seed=[share, share])
    return ArmFigures(
        traces=[traces] * 2, groups=[8, 8], steps=[25], passes=[3.0, 3.5], wall_seconds=[wall, 61.0], figures=figures
    )


def versus(name: str, value: float | None, half: float | None = 0.05, p: float | None = 0.01, **given: Any) -> Versus:
    low, high = (None, None) if value is None or half is None else (value - half, value + half)
    return Versus(**{
        "arm": name, "rate": value, "low": low, "high": high, "p_value": p, "adjusted_p_value": p,
        "minimum_detectable": 0.12, "pairs": 40, "method": "t",
    } | given)  # fmt: skip


def ablation(**given: Any) -> Ablation:
    differences = given.pop("differences", [versus("first_attempt", 0.2), versus("repair", -0.02, p=0.6)])
    made: dict[str, Any] = {
        "over": "views",
        "outcome": "first attempts",
        "reference": "both",
        "arms": [arm("both", 0.6), arm("first_attempt", 0.8), arm("repair", 0.58)],
        "untrained": [Figures(name="untrained", first_attempt=rate(0.07), by_seed=[0.07])],
        "differences": differences,
        "seeds": [0, 1],
        "samples": 1,
        "r_max": 1,
        "specs": 20,
        "groups": 10,
        "seconds": 60.0,
        "uneven": 0.03,
        "same": {},
        "left_out": {},
        "notes": [],
        "says": [told.sentence(each, "both", "first attempts", len(differences)) for each in differences],
        "about": {"model": "demo", "guard": "house", "pairing": "common random numbers"},
    }
    return Ablation(**(made | given))


# -- what may be concluded


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (versus("a", 0.2), "interval +15.0 to +25.0: better (p = 0.0100, adjusted for 3 comparisons)"),
        (versus("a", -0.2), "interval -25.0 to -15.0: worse (p = 0.0100"),
        (
            versus("a", 0.02, p=0.6),
            ": not told apart; these groups could have shown differences of 12.0 points and more",
        ),
        (versus("a", 0.2, p=0.08), "not told apart by the test (p = 0.0800, adjusted for 3 comparisons); it could"),
        (versus("a", 0.02, p=0.6, minimum_detectable=None), "could have shown no difference at all"),
        (versus("a", 0.1, half=None), "one group says nothing about others, so there is no interval"),
        (versus("a", None, p=None), "no pair of chains got two verdicts, so nothing is known"),
    ],
)
def test_a_sentence_says_what_may_be_concluded(found, said):
    assert said in told.sentence(found, "r", "first attempts", 3)


def test_fewer_attempts_are_better():
    fewer, more = (told.sentence(versus("a", value), "r", "attempts", 1) for value in (-0.2, 0.2))
    assert fewer == "a minus r: -0.20 attempts until accepted, 95 % interval -0.25 to -0.15: better (p = 0.0100)"
    assert ": worse (p" in more


def test_one_comparison_is_not_adjusted():
    assert "adjusted" not in told.sentence(versus("a", 0.2), "r", "first attempts", 1)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([versus("a", 0.2), versus("b", -0.2)], "3 views of a trace: a better, b worse than both"),
        ([versus("a", 0.2), versus("b", 0.0, p=1.0)], "a better than both; the others not told apart"),
        ([versus("a", 0.2, p=0.05), versus("b", 0.0, p=1.0)], "none told apart from both"),
    ],
)
def test_the_headline_names_what_was_told_apart(differences, said):
    assert said in told.headline(ablation(differences=differences))


def test_what_speaks_against_it_is_said():
    found = ablation(
        arms=[arm("both", 0.6, silent=3), arm("repair", 0.6, wall=None)],
        uneven=0.31,
        same={"all": "refinement"},
        left_out={"human": "it selects no trace of the train side"},
        notes=["A note."],
        seeds=[0],
        about={"pairing": "specification"},
    )
    text = "\n".join(told.caveats(found))
    for said in (
        "A note.",
        "all would have trained the same as refinement",
        "human was left out: it selects no trace",
        "3 first attempts of both got no verdict",
        "one lies 31 % from the median",
        "1 trainings were interrupted",
        "Pairs share the specification only",
        "One training seed only",
    ):
        assert said in text
    assert "uneven" not in "\n".join(told.caveats(ablation()))


# -- renderings


def test_the_table_has_every_arm_its_time_and_the_untrained_model():
    columns, rows = told.arm_rows(ablation())
    assert all(len(row) == len(columns) for row in rows)
    first = dict(zip(columns, rows[0], strict=True))
    assert first["arm"] == "both (reference)" and first["first attempts that pass"] == "60 %"
    assert (first["traces"], first["steps"], first["passes"], first["wall, s"]) == ("32", "25", "3 to 3.5", "60 to 61")
    assert rows[-1][:3] == ["untrained", "0", "0"]
    assert not any(name.startswith("attempts needed") for name in columns)


def test_attempts_have_columns_where_there_are_retries():
    retried = msgspec.structs.replace(
        arm("feedback", 0.5).figures, expected_attempts=1.5, expected_attempts_low=1.2, expected_attempts_high=1.8,
        solved_within_r_max=0.9,
    )  # fmt: skip
    found = ablation(arms=[msgspec.structs.replace(arm("feedback", 0.5), figures=retried)], r_max=4, outcome="attempts")
    columns, rows = told.arm_rows(found)
    at = columns.index("attempts needed (at most 4)")
    assert rows[0][at : at + 3] == ["1.50", "1.20 to 1.80", "90 %"]
    assert "Attempts until accepted, with 95 % intervals by group. feedback: 1.50 (1.20 to 1.80)" in ablation_page(
        found
    )


def test_the_page_and_the_markdown_hold_the_figures_and_no_dead_end():
    found = ablation()
    page, text = ablation_page(found), markdown(found)
    for said in ("first_attempt", "+20.0", "+15.0 to +25.0", "60 s a training", "10 groups", "better"):
        assert said in page
        assert said.replace("_", r"\_") in text
    assert page.count("<svg") == 2 and "held-out was not read" in page.lower()
    assert text.startswith("**3 views of a trace: first\\_attempt better than both; the others not told apart**")


def test_a_learning_curve_is_drawn_over_traces():
    arms = [arm("100 %", 0.8, traces=40), arm("25 %", 0.4, traces=10), arm("50 %", 0.7, traces=20)]
    page = ablation_page(ablation(over="budget", arms=arms, reference="100 %", differences=[versus("25 %", -0.4)]))
    assert page.count("<svg") == 3 and "First attempts that pass, by traces" in page


@pytest.mark.parametrize("outcome", ["first attempts", "attempts"])
def test_nothing_known_is_shown_as_such(outcome):
    nothing = [arm("both", None), arm("repair", None)]
    found = ablation(arms=nothing, differences=[versus("repair", None, p=None)], outcome=outcome, r_max=3, uneven=None)
    page = ablation_page(found)
    assert page.count("<svg") == 2 and "nan" not in page and "None" not in page
    assert "None" not in markdown(found)


def test_a_name_never_acts(tmp_path):
    found = ablation(arms=[arm("both", 0.6), arm(HOSTILE, 0.8)], differences=[versus(HOSTILE, 0.2)])
    page, text = ablation_page(found), markdown(found)
    assert "<script>window" not in page and "\x1b" not in page
    assert "<script>" not in text and "\x1b" not in text
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| ")}) <= 2
    for line in re.findall(r"^\| .*$", text, re.MULTILINE):  # no cell opens another
        assert line.endswith(" |")


def test_files_come_back_as_they_were(tmp_path):
    found = ablation(arms=[arm("both", 0.6), arm("lone \ud800", None)])
    assert write_ablation(tmp_path / "new", found).is_file()
    assert load_ablation(tmp_path / "new" / ABLATION) == found
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "ablation.html",
        "ablation.json",
        "ablation.md",
    ]
    with pytest.raises(DataError, match=r"no ablation at .*; run: guardlearn ablate"):
        load_ablation(tmp_path / "nowhere.json")
    (tmp_path / "other.json").write_text('{"over": 1}')
    with pytest.raises(DataError, match=r"other\.json is no ablation of guardlearn"):
        load_ablation(tmp_path / "other.json")
