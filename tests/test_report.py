"""Renderings of one evidence object: nothing left out, nothing unescaped, nothing fetched."""

from __future__ import annotations

import html.parser
import io
import json

import msgspec
import pytest
from rich.console import Console

from guardlearn import report
from guardlearn.errors import DataError
from guardlearn.evaluation import evaluate
from guardlearn.generators.replay import ReplayGenerator
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus, Specification, Verdict

HOSTILE = "<script>alert('x')</script> & \"[bold]\" \ud800"


class StyleGuard:
    name = "style<b>"
    version = "v<1>"
    constraints = ""

    def __call__(self, artifact, context):
        accepted = artifact == "good"
        status = ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED
        return Verdict(status=status, cause="" if accepted else artifact)


def evidence_of(folder, base, candidate, adapter="adapter"):
    specs = [Specification(id=name, specification=name, group=name[:3]) for name in base]
    generator = ReplayGenerator(base, candidate)
    return evaluate(specs, generator, StyleGuard(), adapter=adapter, renderer=Renderer(), folder=folder)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    base = {f"g{n:02}.{k}": ["style"] * 3 + ["good"] for n in range(37) for k in range(3)}
    base["g00.0"] = ["good"]
    candidate = {name: ["good"] for name in base} | {f"g{n:02}.1": ["cases", "good"] for n in range(6)}
    return evidence_of(tmp_path_factory.mktemp("evaluation"), base, candidate)


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    VOID = frozenset({"meta", "line", "circle", "polyline", "br"})

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], set(), [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.extend(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def printed(evidence):
    out = io.StringIO()
    report.terminal(evidence, Console(file=out, width=120, no_color=True))
    return out.getvalue()


def test_headline_is_one_plain_sentence(evidence):
    assert report.headline(evidence) == (
        "First attempts that pass: 1 % → 95 % (+94 points, 95 % interval 89 to 99, by group)"
    )


def test_headline_claims_no_none_and_no_all_by_rounding():
    shown = [report.words.percent(share) for share in (0.0, 0.001, 0.004, 0.03, 0.996, 0.9999, 1.0, None)]
    assert shown == ["0 %", "0.1 %", "0.4 %", "3 %", "99.6 %", "99.9 %", "100 %", "–"]


def test_terminal_shows_figures_causes_and_the_comparison(evidence):
    text = printed(evidence)
    for expected in (
        report.headline(evidence),
        "111 specifications in 37 groups",
        "Attempts needed, at most 4: 3.97 → 1.05",
        "1 of 111",
        "105 of 111",
        "style",
        "cases",
        "p < 0.0001",
        "smallest difference",
        "the candidate passes first time more often",
        "note: Leakage was not checked",
    ):
        assert expected in text


def test_terminal_prints_identifiers_as_they_are_not_as_markup(tmp_path):
    shown = printed(evidence_of(tmp_path, {"a": ["[red]oops[/red]"]}, {"a": ["good"]}))
    assert "[red]oops[/red]" in shown
    assert "no interval" in shown


def test_page_is_whole_needs_no_network_and_no_script(evidence):
    page = report.html(evidence)
    reader = Reader(page)
    assert not {"script", "img", "link", "iframe", "object"} & reader.tags
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in reader.attributes)
    assert "http://" not in page and "https://" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page
    for expected in ("Before and after", "Solved by attempt", "Why first attempts fail", "By group", "Measured with"):
        assert expected in reader.text
    assert all(pair.id in reader.text for pair in evidence.per_spec)
    assert evidence.digests["plan"] in reader.text


def test_page_shows_the_context_and_what_it_does_not_show(evidence):
    context = {
        "traces": 92,
        "dropped": {"held-out side": 7},
        "training": {"loss": 0.123456, "versions": {"torch": "2.13"}},
        "evidence": "not twice",
    }
    text = Reader(report.html(evidence, context=context, limits=["Families are kin."])).text
    for expected in ("92", "held-out side", "0.1235", "versions.torch", "What this does not show", "Families are kin."):
        assert expected in text
    assert "not twice" not in text


def test_hostile_words_are_escaped_everywhere(tmp_path):
    words = {f"{HOSTILE}{n}": [HOSTILE, "good"] for n in range(2)}
    shown = evidence_of(tmp_path / "log", words, words, adapter=HOSTILE)
    page = report.html(shown, context={HOSTILE: HOSTILE, "more": {HOSTILE: [HOSTILE]}}, limits=[HOSTILE])
    assert "<script" not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;") > 8
    assert HOSTILE in Reader(page).text


def test_an_evaluation_of_the_base_alone_has_a_page_too(tmp_path):
    shown = evidence_of(tmp_path, {f"g{n}": ["style", "good"] for n in range(5)}, None, adapter=None)
    assert "candidate" not in Reader(report.html(shown)).text
    assert "Attempts needed, at most 4: 2.00" in printed(shown)


def test_write_leaves_both_files_and_they_can_be_read_again(evidence, tmp_path):
    page = report.write(tmp_path / "out", evidence, limits=["x"])
    assert sorted(path.name for path in page.parent.iterdir()) == ["evidence.json", "report.html"]
    assert report.load(page.parent / "evidence.json") == evidence
    assert json.loads(report.to_json(evidence)) == json.loads(msgspec.json.encode(evidence))
    report.write(tmp_path / "out", evidence)
    assert "What this does not show" in page.read_text(encoding="utf-8")  # its own caveats stay


def test_reading_what_is_no_evidence_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="no evidence at"):
        report.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(DataError, match="is no evidence of guardlearn"):
        report.load(tmp_path / "bad.json")


def test_a_surrogate_in_a_name_does_not_stop_the_page(evidence, tmp_path):
    path = report.write(tmp_path, evidence, limits=["odd \ud800 name"])
    assert "odd \\ud800 name" in path.read_text(encoding="utf-8")
