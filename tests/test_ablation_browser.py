"""The page of an ablation in Chromium: light, dark, on a phone and on paper; axe finds nothing, nothing acts."""

from __future__ import annotations

import pytest

import chromium
from chromium import Visit
from guardlearn.report.ablation_page import ablation_page
from test_ablation_page import HOSTILE, ablation, arm, versus

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def engine():
    with chromium.launched() as engine:
        yield engine


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    arms = [arm("100 %", 0.8, traces=40), arm("25 %", 0.4, traces=10), arm(HOSTILE, None)]
    found = {
        "views": ablation(),
        "budget": ablation(over="budget", arms=arms, reference="100 %", differences=[versus("25 %", -0.4)]),
    }
    for name, each in found.items():
        (folder / f"{name}.html").write_text(ablation_page(each), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in found}


@pytest.mark.parametrize("reader", chromium.READERS)
@pytest.mark.parametrize("name", ["views", "budget"])
def test_axe_finds_nothing_serious_and_the_page_asks_for_nothing(engine, pages, name, reader):
    with Visit(engine, **chromium.READERS[reader]) as visit:
        visit.page.goto(pages[name])
        for _ in range(2):  # folded, then unfolded
            assert visit.findings() == []
            wide = visit.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= chromium.READERS[reader]["viewport"]["width"]
            visit.page.evaluate(chromium.UNFOLD)
        assert visit.requests == [pages[name]] and visit.said == []
        assert visit.page.evaluate("window.ran") is None


def test_on_paper_no_table_is_cut(engine, pages):
    with Visit(engine, viewport={"width": 688, "height": 1017}) as visit:
        visit.page.goto(pages["views"])
        visit.page.emulate_media(media="print")
        cut = visit.page.evaluate(
            "() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
        )
        assert cut == 0
