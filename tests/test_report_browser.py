"""The report's pages in Chromium: by light and dark, on a phone, on paper, with the keyboard, for a screen reader."""

from __future__ import annotations

import re

import pytest

import chromium
import report_samples as samples
from chromium import Visit
from evidences import evidence_of
from guardlearn import report
from guardlearn.report.history import history_page

pytestmark = pytest.mark.browser

PAPER = {"width": 688, "height": 1017}
"""A4 less 14 mm on each side, at 96 dots to the inch."""


@pytest.fixture(scope="module")
def engine():
    with chromium.launched() as engine:
        yield engine


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Addresses of pages: one with everything, one of a learner's rounds, one of which nothing can be said."""
    whole, folder = samples.report(), tmp_path_factory.mktemp("pages")
    about = {"story": whole.story, "limits": whole.limits, "round_story": whole.round_story}
    texts = {
        "whole": report.html(whole.evidence, **about),
        "rounds": history_page("me", whole.round_story.rounds, "Rounds no longer help."),
        "silent": report.html(evidence_of({"a": [["silent"]]})),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in texts}


@pytest.fixture
def whole(engine, pages):
    with Visit(engine, **chromium.READERS["light"]) as visit:
        visit.page.goto(pages["whole"])
        yield visit.page


@pytest.mark.parametrize("reader", chromium.READERS)
@pytest.mark.parametrize("name", ["whole", "rounds", "silent"])
def test_axe_finds_nothing_serious_and_the_page_asks_for_nothing_and_says_nothing(engine, pages, name, reader):
    with Visit(engine, **chromium.READERS[reader]) as visit:
        visit.page.goto(pages[name])
        for _ in range(2):  # folded, then unfolded
            assert visit.findings() == []
            wide = visit.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= chromium.READERS[reader]["viewport"]["width"]
            visit.page.evaluate(chromium.UNFOLD)
        assert visit.requests == [pages[name]] and visit.said == []


def test_light_and_dark_differ(engine, pages):
    grounds = set()
    for reader in ("light", "dark"):
        with Visit(engine, **chromium.READERS[reader]) as visit:
            visit.page.goto(pages["whole"])
            grounds.add(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert visit.page.emulate_media(media="print") is None
            assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(grounds) == 2


CUT = """() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)
  .map(box => `${box.getAttribute('aria-label')}: ${box.scrollWidth} of ${box.clientWidth}`)"""
HIDDEN = """() => [...document.querySelectorAll('details')].filter(each => !each.open && !(
    each.lastElementChild.checkVisibility({contentVisibilityAuto: true, visibilityProperty: true})
    && each.lastElementChild.getBoundingClientRect().height > 0)).map(each => each.innerText)"""


def test_on_paper_everything_is_open_and_no_table_is_cut(whole):
    assert len(whole.evaluate(HIDDEN)) > 3  # on the screen they are folded
    whole.set_viewport_size(PAPER)
    whole.emulate_media(media="print")
    whole.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert whole.evaluate(HIDDEN) == [] and whole.evaluate(CUT) == []
    assert not whole.locator("nav").is_visible()
    assert whole.pdf(format="A4").startswith(b"%PDF")


def test_without_a_mouse_sections_are_reached_and_folds_opened(whole):
    whole.keyboard.press("Tab")
    link = whole.evaluate("document.activeElement.getAttribute('href')")
    assert link == "#first-attempts"
    assert whole.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    whole.keyboard.press("Enter")
    assert whole.url.endswith("#first-attempts")
    for _ in range(40):
        whole.keyboard.press("Tab")
        if whole.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    fold = whole.evaluate_handle("document.activeElement.parentElement")
    assert not fold.evaluate("each => each.open")
    whole.keyboard.press("Enter")
    assert fold.evaluate("each => each.open")


def test_a_wide_table_scrolls_by_keyboard_on_a_phone(engine, pages):
    with Visit(engine, **chromium.READERS["phone"]) as visit:
        visit.page.goto(pages["whole"])
        box = visit.page.get_by_role("group", name="First attempts by action pair")
        assert box.evaluate("each => each.scrollWidth > each.clientWidth")
        box.focus()
        visit.page.keyboard.press("ArrowRight")
        for _ in range(100):
            if box.evaluate("each => each === document.activeElement && each.scrollLeft > 0"):
                return
            visit.page.wait_for_timeout(50)
        pytest.fail("the box did not scroll")


def test_a_screen_reader_is_told_headings_tables_figures_and_sides(whole):
    assert whole.get_by_role("heading", level=1).all_inner_texts() == [
        report.headline(samples.evidence()).replace(" %", "\xa0%")
    ]
    assert (
        whole.get_by_role("main").count() == whole.get_by_role("navigation", name="Sections of this page").count() == 1
    )
    assert len(whole.get_by_role("heading", level=2).all()) == len(samples.SECTIONS)
    for figure in (
        "First attempts that pass, by group. g00: base 0 of 2",
        "Share solved within 1 to 4",
        "Training loss",
    ):
        assert whole.get_by_role("img", name=re.compile(f"^{re.escape(figure)}")).count() == 1
    pairs = whole.get_by_role("table", name="First attempts by action pair")
    assert pairs.get_by_role("columnheader").all_inner_texts()[:2] == ["action pair", "specifications"]
    assert pairs.get_by_role("rowheader").all_inner_texts() == ["pair 0", "pair 1"]
    told = whole.locator("dl.tiles").aria_snapshot()
    assert "base 0 %" in told.replace("\xa0", " ") and "candidate 50 %" in told.replace("\xa0", " ")


def test_what_is_trained_on_is_told_without_colour(whole):
    """The mask's edge is said to a screen reader, and marked in another way than by colour where paper has none."""
    edge = "getComputedStyle(document.querySelector('.tokens span + mark'), '::before').content"
    assert whole.evaluate(edge) == '" [with loss:] "'
    whole.emulate_media(media="print")
    line = "getComputedStyle(document.querySelector('.tokens mark')).textDecorationLine"
    assert whole.evaluate(line) == "underline"
