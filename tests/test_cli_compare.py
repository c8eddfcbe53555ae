"""`guardlearn compare`: two folders or files in, one table or one JSON object out."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from evidences import evidence_of, spec
from guardlearn import report
from guardlearn.cli import app
from guardlearn.errors import DataError, GuardlearnError, UsageError

A = {f"g{n}.{k}": [["fail", "pass"], ["fail"] * 4] for n in range(20) for k in range(2)}
B = {name: [["pass"], ["fail", "pass"]] for name in A}


def save(folder, evidence):
    folder.mkdir()
    (folder / report.EVIDENCE).write_text(report.to_json(evidence))


@pytest.fixture
def places(tmp_path):
    """One evaluation of base and candidate, and each of them measured alone."""
    save(tmp_path / "both", evidence_of(A, B, cost=(20, 1.5)))
    save(tmp_path / "before", evidence_of(A, cost=(20, 1.5)))
    save(tmp_path / "after", evidence_of(B, cost=(20, 1.5), seed=3))
    return tmp_path


def run(*arguments: object):
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "160"})
    if isinstance(done.exception, GuardlearnError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_json_says_what_the_evaluation_said(places):
    said = json.loads((places / "both" / "evidence.json").read_text())
    both = places / "both"
    for found in (
        json.loads(run(both, both, "--which-a", "base", "--json")),
        json.loads(run(places / "before", both / "evidence.json", "--json")),
    ):
        assert found["difference"] == said["difference"]
        assert found["changes"] == said["changes"]
        assert found["by_action_pair"] == said["by_action_pair"]
        assert found["b"]["first_attempt"] == said["candidate"]["first_attempt"]
        assert [row["k"] for row in found["pass_at_k"]] == [2]


def test_the_default_is_the_candidate_where_there_is_one(places):
    found = json.loads(run(places / "both", places / "before", "--json"))
    assert (found["a"]["which"], found["b"]["which"]) == ("candidate", "base")
    assert found["difference"]["rate"] == -0.5
    assert run(places / "both", places / "both", "--which-b", "base").count("(") > 0


def test_people_get_a_table(places):
    text = run(places / "before", places / "after")
    assert "40 specifications in 20 groups, 2 sample(s) each; a pair shares specification" in text
    assert "+50 points" in text and "pass@2" in text and "B passes first time more often" in text
    assert "Seeds 0 and 3" in text
    assert "(1 - first attempts)^4" in text and "seconds for each accepted" in text
    assert "By action pair" not in text  # there is one only


def test_action_pairs_and_mcnemar_are_shown(places):
    names = [f"{pair}{n}" for pair in "xy" for n in range(8)]
    specs = [spec(name, action_pair_id=f"[{name[0]}]\x1b[2J", group=name) for name in names]
    before = {name: [["fail", "pass"]] for name in names}
    after = before | {f"x{n}": [["pass"]] for n in range(8)}
    save(places / "c", evidence_of(before, after, specs=specs))
    text = run(places / "c", places / "c", "--which-a", "base")
    assert "exact McNemar test" in text and "p = 0.0078" in text and "By action pair" in text and "Holm" in text
    assert "p = 0.0156" in text  # twice the p-value of one of two action pairs
    assert "\x1b" not in text


@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_what_cannot_be_paired_is_one_line(places, extra):
    save(places / "other", evidence_of(A, r_max=5))
    with pytest.raises(UsageError, match=r"A \(.*before\) and B \(.*other\) cannot be paired: R_max 4 and 5; measure"):
        run(places / "before", places / "other", *extra)


def test_common_compares_what_is_in_both(places):
    fewer = dict(list(B.items())[:6])
    save(places / "fewer", evidence_of(fewer))
    with pytest.raises(UsageError, match="--common compares the 6 that are in both"):
        run(places / "before", places / "fewer")
    text = run(places / "before", places / "fewer", "--common")
    assert "6 specifications in 3 groups" in text and "34 specifications that only A has" in text


def test_bad_names_say_what_is_allowed(places):
    with pytest.raises(UsageError, match="--which-b is 'both'; allowed: base, candidate"):
        run(places / "before", places / "after", "--which-b", "both")
    with pytest.raises(UsageError, match=r"A \(.*before\) has no candidate"):
        run(places / "before", places / "after", "--which-a", "candidate")
    with pytest.raises(DataError, match=r"no evidence at .*nowhere"):
        run(places / "before", places / "nowhere")
    (places / "broken.json").write_text("{}")
    with pytest.raises(DataError, match="is no evidence of guardlearn"):
        run(places / "broken.json", places / "after")
