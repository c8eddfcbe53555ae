"""`guardlearn report`: what lies in a folder or in the rounds of ℛ becomes a table, a page, Markdown or JSON."""

from __future__ import annotations

import contextlib
import json
import re
import shutil

import msgspec
import pytest
from typer.testing import CliRunner

import looping
import report_samples as samples
from evidences import evidence_of
from guardlearn import ArtifactDAG, report
from guardlearn.cli import app
from guardlearn.digests import digest_json
from guardlearn.errors import DataError, GuardlearnError, UsageError

pytestmark = pytest.mark.slow

BEFORE, AFTER = {"a": [["fail", "pass"]], "b": [["fail"] * 4]}, {"a": [["pass"]], "b": [["pass"]]}


def run(*arguments: object):
    """Run the command; return (stdout as bytes, stderr)."""
    done = CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": "120"})
    if isinstance(done.exception, GuardlearnError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout_bytes, done.stderr


def refused(error, words, *arguments):
    with pytest.raises(error, match=words) as failed:
        run(*arguments)
    assert "\n" not in str(failed.value)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evidence.json").write_text(report.to_json(evidence_of(BEFORE, AFTER)))
    return tmp_path / "out"


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model):
    """A learner with two rounds: the second one has other held-out specifications than the first."""
    folder = tmp_path_factory.mktemp("rounds")
    target = str(folder / "runs.db")
    trainer = looping.write_trainer(folder)
    looping.found(target)
    looping.write_project(folder, tiny_model)
    for number in range(2):
        looping.collect(target, [f"r{number} {chain}" for chain in range(5)])
        with contextlib.chdir(folder):
            done = CliRunner().invoke(app, ["loop", target, "--python", str(trainer), "--json"])
            assert done.exit_code == 0, (done.output, done.exception)
        specs = (folder / "specs.jsonl").read_text().splitlines()
        (folder / "specs.jsonl").write_text("\n".join(line for line in specs if '"held_out-11-' not in line))
    return folder


def test_without_a_format_people_get_the_table(folder):
    text, said = run(folder)
    assert "the candidate passes first time more often" in text.decode() or "none:" in text.decode()
    assert "First attempts that pass: 0 % → 100 %" in text.decode() and not said


def test_each_format_goes_to_stdout_and_says_the_same(folder):
    evidence = report.load(folder / "evidence.json")
    for source in (folder, folder / "evidence.json"):
        assert run(source, "--format", "html")[0].decode() == report.html(evidence)
        assert run(source, "--format", "markdown")[0].decode() == report.markdown(evidence)
        whole = json.loads(run(source, "--format", "json")[0])
        assert whole == json.loads(run(source, "--json")[0])
        assert whole["evidence"] == json.loads(report.to_json(evidence)) and whole["story"] is None


def test_files_are_written_whole_and_named(folder, tmp_path):
    told = json.loads(
        run(folder, "-o", tmp_path / "new" / "place", "--format", "markdown", "--format", "json", "--json")[0]
    )
    places = {
        name: tmp_path / "new" / "place" / f"report.{ending}" for name, ending in (("markdown", "md"), ("json", "json"))
    }
    assert told["files"] == {name: str(path) for name, path in places.items()} and told["notes"] == []
    assert sorted(path.name for path in (tmp_path / "new" / "place").iterdir()) == ["report.json", "report.md"]
    assert told["headline"] in places["markdown"].read_text()
    text, said = run(folder, "-o", tmp_path / "page")
    assert text == b"" and said == f"report: {tmp_path / 'page' / 'report.html'}\n"
    assert (
        run(tmp_path / "new" / "place" / "report.json", "--format", "html")[0]
        == (tmp_path / "page" / "report.html").read_bytes()
    )


def test_a_whole_report_is_rendered_again_from_its_json(tmp_path):
    whole = samples.report("\ud800 <b>")
    (tmp_path / "report.json").write_text(report.report_json(whole))
    page = run(tmp_path, "--format", "html")[0].decode()
    assert [name for name in samples.Words(page).sections if name] == samples.SECTIONS
    assert "Chain 1: accepted after 2 retries" in run(tmp_path / "report.json", "--format", "markdown")[0].decode()


def test_the_last_round_is_told_with_all_that_was_measured_and_decided(project, tmp_path):
    run(project / "runs.db", "-o", tmp_path)
    said = samples.Words((tmp_path / "report.html").read_text()).sections
    assert {"decision", "rounds", "training", "dropped", "chains", "manifest", "specifications"} <= said.keys()
    assert "Round 2 of main: refused" in said["decision"] and "superiority" in said["decision"]
    assert "Not all rounds were measured on the same held-out specifications" in said["rounds"]
    assert "rows they became are not shown" not in said["chains"] and "with loss" in said["chains"]
    assert "22 specifications in 11 groups" in said[""]


def test_an_earlier_round_is_told_by_its_number_and_by_its_folder(project):
    first = json.loads(run(project / "runs.db", "--round", "1", "--json")[0])
    assert first["round_story"]["state"] == "promoted" and first["evidence"]["specs"] == 24
    assert [row["round"] for row in first["round_story"]["rounds"]] == [1, 2]
    assert first["story"]["traces"][0]["rows"][0]["tokens"]
    folder = project / "rounds" / "001"
    assert json.loads(run(folder, "--db", project / "runs.db", "--json")[0]) == first
    alone, said = run(folder, "--json")
    told = json.loads(alone)
    assert told["round_story"] is None and told["evidence"] == first["evidence"]
    assert told["story"]["manifest"] == first["story"]["manifest"] and told["story"]["traces"] == []
    assert "chains are left out: no repository is at hand" in said


def test_a_round_whose_files_are_gone_is_told_from_the_repository(project, tmp_path):
    moved = tmp_path / "away"
    shutil.move(project / "rounds", moved)
    try:
        text, said = run(project / "runs.db", "--round", "1", "--json")
    finally:
        shutil.move(moved, project / "rounds")
    told = json.loads(text)
    assert told["evidence"]["per_spec"] == [] and told["evidence"]["difference"]["rate"] == 0.5
    assert told["story"]["result"]["backend"] == "fake" and told["story"]["dropped"] is not None
    assert "single specifications and groups are left out: no evidence at" in said


def test_evidence_that_is_not_the_rounds_own_is_not_taken_for_it(project):
    file = project / "rounds" / "001" / "evidence.json"
    before = file.read_text()
    file.write_text(before.replace('"specs": 24', '"specs": 23'))
    try:
        text, said = run(project / "runs.db", "--round", "1", "--json")
    finally:
        file.write_text(before)
    assert json.loads(text)["evidence"]["specs"] == 24
    assert "is not what the round measured" in said


def test_a_job_that_made_another_adapter_is_left_out_and_said(project, tmp_path):
    shutil.copytree(project / "rounds" / "002", tmp_path / "mixed")
    shutil.copy(project / "rounds" / "001" / "evidence.json", tmp_path / "mixed" / "evidence.json")
    text, said = run(tmp_path / "mixed", "--json")
    assert json.loads(text)["story"] is None
    assert re.search(r"job is left out: it made adapter [0-9a-f]{12}, measured was", said)


def test_a_repository_without_the_jobs_chains_is_said(project, tmp_path):
    with ArtifactDAG.create(tmp_path / "other.db"):
        pass
    text, said = run(project / "rounds" / "001", "--db", tmp_path / "other.db", "--json")
    assert json.loads(text)["story"]["traces"] == [] and "holds none of those that" in said


def test_what_the_demos_specifications_cannot_show_is_said_whoever_measured_on_them(folder):
    from guardlearn.demo.run import LIMITS
    from guardlearn.demo.tasks import specifications

    evidence = report.load(folder / "evidence.json")
    digest = digest_json([msgspec.to_builtins(spec) for spec in specifications("held_out")])
    measured = msgspec.structs.replace(evidence, digests=evidence.digests | {"specifications": digest})
    (folder / "evidence.json").write_text(report.to_json(measured))
    assert json.loads(run(folder, "--json")[0])["limits"] == list(LIMITS)


def test_what_cannot_be_reported_is_refused_in_one_line(project, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with ArtifactDAG.create(tmp_path / "new.db"):
        pass
    refused(DataError, "nothing at", tmp_path / "none")
    refused(DataError, "holds no evidence.json", tmp_path / "empty")
    refused(DataError, "is no evidence of guardlearn", project / "specs.jsonl")
    refused(UsageError, "--format is 'pdf'; allowed: html, markdown, json", folder, "--format", "pdf")
    refused(UsageError, "2 times", folder, "--format", "json", "--format", "html")
    refused(UsageError, "choose within a repository", folder, "--round", "1")
    refused(UsageError, "names a second one", project / "runs.db", "--db", tmp_path / "new.db")
    refused(UsageError, "has no rounds", tmp_path / "new.db")
    refused(UsageError, "there is no round 7; rounds: 1, 2", project / "runs.db", "--round", "7")
    refused(UsageError, "no learner 'you'", project / "runs.db", "--learner", "you")
    refused(UsageError, "is a file", folder, "-o", folder / "evidence.json")
