"""The report as Markdown: it reads as the page does, and nothing that others wrote leaves the place it is shown in."""

from __future__ import annotations

import html
import html.parser
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import report_samples as samples
from evidences import evidence_of
from guardlearn import report
from guardlearn.printing import printable
from guardlearn.report.markup import code, fenced, folded, grid, plain
from guardlearn.report.texts import label

READ = MarkdownIt("commonmark", {"html": True}).enable("table")
"""Reads CommonMark and GitHub's tables; raw HTML acts, as it would there."""

SHOWN = set("p strong table thead tbody tr th td details summary pre code ul li".split())
ODD = st.text(st.sampled_from("```~~|<>&@#:/\\*_[]()!$^-+=1a. w\n\n\r\t\x1b\x00\u202e\u2028🦜\ud800"), max_size=40)
NASTY = [
    "</details><script>alert(1)</script>",
    "```\n</code></pre>\n````\n# heading",
    "a | b \\| c ||",
    "@octocat #12 https://example.org www.example.org :tada: user@example.org GH-1",
    "<!-- ", "--> <img src=x onerror=alert(1)>", "[x](javascript:alert(1)) ![y](http://z)",
    "\x1b]8;;http://evil\x07click\x1b]8;;\x07 \x1b[2J\r$\\alpha$ ~~~ **bold** _it_ [^1] &lt;b&gt; &#60;",
]  # fmt: skip


class Rendered(html.parser.HTMLParser):
    """Tags, attributes, and what is said, by whether it stands in code."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.codes = [], [], "", []
        self.open = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        self.open.append(tag)
        if tag == "code":
            self.codes.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += data
        if "code" in self.open:
            self.codes[-1] += data


def rendered(written):
    return Rendered(READ.render(written))


@given(ODD)
def test_a_fence_holds_any_text_and_only_it(text):
    tokens = READ.parse(f"before\n\n{fenced(text)}\n\nafter\n")
    (block,) = [token for token in tokens if token.type == "fence"]
    assert [token.type for token in tokens if token.level == 0].count("paragraph_open") == 2
    assert block.content == printable(text).removesuffix("\n") + "\n" or (block.content == "" and text in ("", "\n"))


@given(ODD)
def test_inline_code_says_the_text_in_a_sentence_and_in_a_cell(text):
    expected = label(text, 120) if label(text, 120).strip() else "(empty)"
    sentence = rendered(f"x {code(text)} y")
    assert sentence.text.strip() == f"x {expected} y" and set(sentence.tags) <= {"p", "code"}
    cell = rendered(grid(["a", "b"], [[code(text), "z"], [code(text), code(text)]]))
    assert cell.tags.count("td") == 4 and set(cell.tags) <= SHOWN
    assert cell.codes == ([] if expected == "(empty)" else [expected] * 3)


@given(ODD)
def test_a_sentence_reads_as_it_stands_alone_in_a_list_and_in_a_cell(text):
    expected = " ".join(printable(text).split())
    alone = rendered(plain(text))
    assert alone.text.strip() == expected and set(alone.tags) <= {"p"}
    listed = rendered(f"- {plain(text)}\n- end")
    assert " ".join(listed.text.split()) == f"{expected} end".strip() and listed.tags.count("li") == 2
    cell = rendered(grid(["a", "b"], [[plain(text), "z"]]))
    assert cell.tags.count("td") == 2 and set(cell.tags) <= SHOWN
    assert " ".join(cell.text.split()) == f"a b {expected} z".replace("  ", " ")


@given(ODD)
def test_a_code_host_finds_nobody_to_notify_and_nothing_to_link(text):
    read = html.unescape(re.sub("<(?!!)[^>]*>", "", READ.render(plain(text))))  # comments part what stands beside them
    assert not re.search(r"[@#]\w|://|\bwww\.|:\w+:", read, re.IGNORECASE)


@pytest.mark.parametrize("odd", NASTY)
def test_the_whole_report_shows_odd_texts_and_runs_none(odd):
    whole = samples.report(odd)
    written = report.markdown(whole.evidence, story=whole.story, limits=whole.limits, round_story=whole.round_story)
    shown = rendered(written)
    assert set(shown.tags) == SHOWN and not {name for name, _ in shown.attributes} - {"style"}
    assert shown.tags.count("details") == len(re.findall("(?m)^</details>$", written)) == 12
    assert "\x1b" not in written and "\r" not in written
    # an artifact, a feedback and a name each, as they are
    assert f"f(0) fails{printable(odd)}" in shown.text
    assert any(samples.FIRST in block for block in shown.codes)
    assert label(f"divide{odd}", 120)[:6] == "divide" and label(f"style{odd}", 120) in shown.codes


def test_the_report_says_what_the_page_says():
    whole = samples.report()
    written = report.markdown(whole.evidence, story=whole.story, limits=whole.limits, round_story=whole.round_story)
    text = " ".join(rendered(written).text.split())
    for expected in (
        report.headline(whole.evidence),
        "95 % interval, by group 0 to",
        "What this does not show: Families are kin.",
        "Round 2 of me: refused. refused by general loss",
        "FAILS +0.2 below 0.05",
        "By group (12)",
        "g00 2 0 of 2 2 of 2",
        "pair 0 12 12",
        "+0.2000; 1 text in",
        "rounds 1 on dddddddddddd; 2 on eeeeeeeeeeee",
        "held out 7",
        "Chain 1: accepted after 2 retries",
        "- return 1 / x + return x and 1 / x",
        "training, stage 1: sft 280 105",
    ):
        assert expected in text
    assert written.startswith("**First attempts that pass: 0 % → 50 % (+50 points")


def test_a_section_without_data_is_left_out():
    titles = re.findall("<summary>(.*)</summary>", report.markdown(evidence_of({"a": [["pass"]]})))
    assert titles == ["By group (1)", "Share solved, by attempts until accepted", "By action pair", "Measured with"]


def test_long_tables_and_texts_are_cut_and_say_so():
    many = {f"g{number:03}": [["fail", "pass"]] for number in range(450)}
    written = report.markdown(evidence_of(many))
    assert "250 more rows left out." in written and len(written) < 65_536
    long = samples.item("long", artifact="y = 1\n" * 2_000)
    told = report.Story(manifest={}, result={}, traces=(samples.TraceStory(attempts=(long,), rows=()),))
    written = report.markdown(evidence_of({"a": [["pass"]]}), story=told)
    assert "more characters left out." in written and written.count("y = 1") == 120


def test_what_is_too_long_for_a_pull_request_is_named_instead():
    long = [samples.item(f"i{place}", artifact=f"{place} 🦜\n" * 110, feedback="🦜" * 4_000) for place in range(6)]
    told = report.Story(manifest={}, result={}, traces=(samples.TraceStory(attempts=tuple(long), rows=()),))
    written = report.markdown(evidence_of({"a": [["pass"]]}), story=told)
    assert len(written.encode()) < 65_536 and "🦜" not in written
    assert "so left out: Chain 1: accepted after 5 retries. The page has it." in written
    assert "<summary>Measured with</summary>" in written


def test_folded_content_stays_markdown():
    shown = rendered(folded("a < b", grid(["x"], [["`y`"]])))
    assert shown.tags[:2] == ["details", "summary"] and "a < b" in shown.text and shown.codes == ["y"]
