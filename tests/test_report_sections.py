"""Sections of the report: each says what it has, one without data is left out; odd evaluations still have a page."""

from __future__ import annotations

import itertools
import json
import math
import re

import msgspec
import pytest

import report_samples as samples
from evidences import evidence_of
from guardlearn import report
from guardlearn.errors import DataError
from guardlearn.report import round_words, words
from guardlearn.report.stories import Story, TraceStory


def page_of(whole, **given):
    about = {"story": whole.story, "limits": whole.limits, "round_story": whole.round_story}
    return report.html(whole.evidence, **about | given)


@pytest.fixture(scope="module")
def whole():
    return samples.report()


@pytest.fixture(scope="module")
def said(whole):
    return samples.Words(page_of(whole)).sections


def test_every_section_is_there_in_order_and_says_what_it_has(said):
    assert [name for name in said if name] == samples.SECTIONS
    for section, expected in {
        "": ["First attempts that pass: 0 % → 50 %", "base 0 %", "candidate 50 %"],
        "first-attempts": ["Every group (12)", "Share solved, by attempts", "Why first attempts fail"],
        "action-pairs": ["pair 0", "pair 1", "sign-flip, Holm"],
        "limits": ["Families are kin."],
        "training": ["validation, step 2 0.9", "training, stage 1: sft 280 105 1.60", "training, stage 2: kto 140 –"],
        "forgetting": ["2.0000 → 2.2000 nats a token (+0.2000; 1 text in 2 groups)", "news +0.3000", "hidden guards"],
        "other-action-pairs": ["prose 8 4 90 % 85 %", "-5 points", "-20 to 10"],
        "decision": ["Round 2 of me: refused", "refused by general loss", "FAILS +0.2 below 0.05"],
        "rounds": ["1 promoted because", "2 refused because", "rounds 1 on dddddddddddd; 2 on eeeeeeeeeeee"],
        "dropped": ["Kept: 1 trace, 3 training rows.", "held out 7", "too long 2"],
        "chains": ["One chain that became training data", "Accepted after 2 retries"],
        "measured-with": ["pairs share common random numbers"],
    }.items():
        shown = " ".join(said[section].split())
        assert [each for each in expected if each not in shown] == [], section


def test_answers_and_training_have_a_throughput(whole):
    rows = {row[0]: row[1:] for row in words.throughput(whole.story.result, whole.evidence)}
    attempts = whole.evidence.base.attempts
    assert rows["answers, base"] == [f"{30 / 1.5:.0f}", f"{20 / 1.5:.0f}", "–", f"{attempts * 1.5:.0f}"]
    alone = {"tokens_per_second": 10.0, "seconds": 7.0}
    assert words.throughput(alone, evidence_of({"a": [["pass"]]})) == [["training", "10", "–", "–", "7"]]
    assert words.throughput({}, evidence_of({"a": [["pass"]]})) == []


def test_an_attempt_is_shown_as_what_it_changed_and_whole_where_asked(said):
    shown = said["chains"]
    assert shown.count("@@") == 4  # two differences, an opening and a closing mark each
    assert "-    return 1 / x\n" in shown and "-    return x and 1 / x\n" in shown
    assert "+    return 1 / x if x else 0" in shown
    assert shown.count("The whole of it") == 2
    assert "f(0) is 0, say so" in shown


def test_equal_amended_and_long_attempts_are_told_apart(whole):
    first, _, last = samples.chain()
    again = msgspec.structs.replace(last, artifact=first.artifact, specification="Divide 1 by x, 0 by 0.")
    long = msgspec.structs.replace(last, artifact="y = 1\n" * 600)
    told = Story(manifest={}, result={}, traces=(TraceStory(attempts=(first, again, long), rows=()),))
    shown = samples.Words(page_of(whole, story=told)).sections["chains"]
    assert "The same as before." in shown and "Specification, amended" in shown
    assert "+Divide 1 by x, 0 by 0." in shown
    assert "y = 1 (3,600 characters, 601 lines)" in shown and "+y = 1" not in shown
    assert "the base model's tokenizer was not at hand" in shown


@pytest.mark.parametrize("left_out", ["story", "round_story", "limits"])
def test_what_is_not_known_leaves_no_empty_section(whole, left_out):
    empty = () if left_out == "limits" else None
    there = samples.Words(page_of(whole, **{left_out: empty}))
    gone = {
        "story": {"dropped", "chains", "manifest"},
        "round_story": {"forgetting", "other-action-pairs", "decision", "rounds"},
        "limits": set(),  # the evidence has caveats of its own
    }[left_out]
    assert [name for name in there.sections if name] == [name for name in samples.SECTIONS if name not in gone]
    links = [attributes["href"] for tag, attributes in there.tags if tag == "a"]
    assert links == [f"#{name}" for name in there.sections if name]


def test_a_round_that_measured_nothing_else_leaves_out_those_sections_too(whole):
    bare = msgspec.structs.replace(
        whole.round_story, forgetting=None, others=(), unmeasured={}, reason="", rounds=(), conditions=()
    )
    there = samples.Words(page_of(whole, round_story=bare)).sections
    assert not {"forgetting", "other-action-pairs", "decision", "rounds"} & there.keys()


def each_group(chain):
    return {f"g{number}.0": [chain] for number in range(8)}


ODD = {
    "all pass": (each_group(["pass"]), each_group(["pass"])),
    "all fail": (each_group(["fail"] * 4), each_group(["fail"] * 4)),
    "no verdict at all": (each_group(["silent"]), each_group(["silent"])),
    "one specification": ({"a": [["fail", "pass"]]}, {"a": [["pass"]]}),
    "the base alone": ({"a": [["fail", "pass"]]}, None),
}
UNFAILED = ("all pass", "no verdict at all")


@pytest.mark.parametrize("name", ODD)
def test_odd_evaluations_have_a_page_and_markdown_without_empty_parts(name):
    found = evidence_of(*ODD[name])
    reader = samples.Words(report.html(found))
    assert all(text.strip() for section, text in reader.sections.items() if section)
    assert ("Why first attempts fail" in reader.sections["first-attempts"]) == (
        name not in ("all pass", "no verdict at all")
    )
    curve = "Share solved, by attempts" in reader.sections["first-attempts"]
    assert curve == (name != "no verdict at all")
    written = report.markdown(found)
    assert ("Why first attempts fail" in written) == (name not in UNFAILED)
    assert "nan" not in written and "None" not in written


@pytest.mark.slow
def test_the_words_of_odd_evaluations_claim_nothing():
    def said(name):
        return " ".join(" ".join(samples.Words(report.html(evidence_of(*ODD[name]))).sections.values()).split())

    assert "First attempts that pass: 100 % → 100 % (+0 points" in said("all pass")
    assert "First attempts that pass: 0 % → 0 %" in said("all fail")
    assert "no first attempt got a verdict" in said("no verdict at all")
    assert "One group only: nothing can be said about other groups" in said("one specification")
    for name in ODD:
        assert "passes first time more often" not in said(name)


def test_evidence_without_single_pairs_is_told_without_groups_and_specifications(whole):
    short = msgspec.structs.replace(whole.evidence, per_spec=[])
    there = samples.Words(report.html(short)).sections
    assert "specifications" not in there and "Every group" not in there["first-attempts"]
    assert "Share solved, by attempts" in there["first-attempts"]
    assert "By group" not in report.markdown(short) and "By action pair" in report.markdown(short)


def test_an_empty_evidence_is_told_as_empty():
    found = msgspec.structs.replace(
        evidence_of({"a": [["silent"]]}), per_spec=[], by_action_pair=[], specs=0, groups=0, drops={}, costs=[]
    )
    there = samples.Words(report.html(found)).sections
    assert "first-attempts" not in there and "action-pairs" not in there
    assert "0 specifications in 0 groups" in there[""]
    assert "0 specifications in 0 groups" in report.markdown(found)


def test_rounds_on_the_same_specifications_need_no_warning():
    assert round_words.unlike_rounds({1: "a", 2: "a"}) == round_words.unlike_rounds({}) == ""
    assert "rounds 1, 3 on a; 2 on b" in round_words.unlike_rounds({1: "a", 2: "b", 3: "a"})


@pytest.mark.slow
def test_the_whole_report_survives_a_file(whole, tmp_path):
    diverged = msgspec.structs.replace(whole.story, losses=((1, 2.0), (2, math.nan)))
    for told in (whole, msgspec.structs.replace(whole, story=diverged), samples.report("\ud800 <b>")):
        path = tmp_path / "report.json"
        path.write_text(report.report_json(told), encoding="utf-8")
        again = report.load_report(path)
        assert again.evidence == told.evidence and again.round_story == told.round_story and again.limits == told.limits
        assert page_of(again) == page_of(told)
    assert report.load_report(path).story.traces == told.story.traces


def test_an_evidence_file_is_a_report_with_nothing_else(whole, tmp_path):
    (tmp_path / "evidence.json").write_text(report.to_json(whole.evidence), encoding="utf-8")
    assert report.load_report(tmp_path / "evidence.json") == report.Report(evidence=whole.evidence)


@pytest.mark.parametrize(
    ("altered", "told"),
    [
        ({"r_max": 0}, "r_max is 0"),
        ({"r_max": 5}, "solved_by_attempt has 4 entries, r_max is 5"),
        ({"candidate": None}, "whether there is a candidate"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_an_evidence_that_no_evaluation_writes_is_refused_in_one_line(whole, tmp_path, altered, told):
    content = json.loads(report.to_json(whole.evidence)) | altered
    (tmp_path / "evidence.json").write_text(json.dumps(content), encoding="utf-8")
    for read in (report.load, report.load_report):
        with pytest.raises(DataError, match="is no evidence of guardlearn") as failed:
            read(tmp_path / "evidence.json")
        assert told in str(failed.value) and "\n" not in str(failed.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(whole, tmp_path, number):
    text = report.to_json(whole.evidence).replace('"temperature": 0.7', f'"temperature": {number}')
    assert number in text
    (tmp_path / "evidence.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not finite"):
        report.load(tmp_path / "evidence.json")


@pytest.mark.slow
@pytest.mark.parametrize("odd", ["x", 3, [1], [{"a": None}], {"first": "x", "base": None}, None], ids=repr)
def test_an_account_of_a_training_that_is_anybodys_is_told_as_far_as_it_goes(whole, odd):
    keys = ("host", "versions", "loss", "validation_loss", "stages", "seconds", "tokens_per_second", "steps")
    told = Story(manifest={"rows": odd, "item_ids": odd}, result=dict.fromkeys(keys, odd), losses=((1, 2.0),))
    assert "manifest" in samples.Words(page_of(whole, story=told)).sections
    assert "Manifest" in report.markdown(whole.evidence, story=told)


def test_tables_and_headings_are_made_for_a_screen_reader(whole):
    reader = samples.Words(page_of(whole))
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("main") == tags.count("h1") == tags.count("nav") == 1
    assert tags.count("caption") == tags.count("table") > 12
    assert all(given.get("scope") in ("col", "row") for tag, given in reader.tags if tag == "th")
    boxes = [given for _, given in reader.tags if given.get("class") == "scroll"]
    assert all(box["tabindex"] == "0" and box["role"] == "group" and box["aria-label"] for box in boxes)
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    drawn = [given for tag, given in reader.tags if tag == "svg"]
    assert len(drawn) == 5 and all(given["role"] == "img" and given["aria-label"] for given in drawn)
