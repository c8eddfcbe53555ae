"""`guardlearn ui` in a real browser: axe-core, console, requests; what others wrote; keyboard; two people; growth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import browsing
from chromium import READERS, UNFOLD, Visit, launched
from databases import Files
from evidences import evidence_of
from guardlearn import report
from guardlearn.dag import ArtifactDAG
from guardlearn.types import ArtifactStatus, RepositoryItem
from guardlearn.ui.addresses import item_path, named_path, with_query
from registered import evidence, fill, round_of, train_side

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'><svg onload='window.hit = 1'> "
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 </div></details><a href='javascript:window.hit = 1'>link</a> {{ 7 * 7 }} "
    "\u202egnp \0 \ud800"
)
BAD = "<script>window.hit = 1</script>\x1b[31m/.. \u202e"
WRITABLE = HOSTILE.replace("\0", "").replace("\ud800", "")
"""What training takes, too."""
REJECTED, ACCEPTED = ArtifactStatus.REJECTED, ArtifactStatus.ACCEPTED
UNUSUAL = "status('accepted') & source('generator')"
WRONG = "status('accepted') & colour('red')"


def item(name: str, parent: str | None = None, **given: Any) -> RepositoryItem:
    fields = {
        "id": name,
        "parent_id": parent,
        "specification": "Write the function `def add(x: int, y: int) -> int:`. It returns the sum of x and y.",
        "constraints": "Reply with code only.",
        "artifact": f"def add(x, y):\n    # {name}\n    return x + y\n",
        "feedback": "House style: the body must start with a one-line docstring.",
        "cause": "style",
        "status": REJECTED,
        "group": "group-0",
        "guard": "strict",
        "guard_version": "abc",
    }
    return RepositoryItem(**fields | given)


class Watched(Visit):
    """A window on one server."""

    def __init__(self, browser: Browser, home: str, look: str = "light", **given: Any) -> None:
        super().__init__(browser, **READERS[look] | given)
        self.home = home

    def __enter__(self) -> Watched:
        return self

    @property
    def foreign(self) -> list[str]:
        """Addresses elsewhere that were asked for."""
        return [url for url in self.requests if not url.startswith((f"{self.home}/", "data:"))]

    def go(self, path: str) -> Page:
        """Open a path and wait until nothing is being loaded."""
        self.page.goto(self.home + path, wait_until="networkidle")
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as started:
        yield started


@contextlib.contextmanager
def repository(sqlite_files: Files, folder: Path | None = None) -> Iterator[str]:
    """Yield ℛ with chains, hostile ones too; with a folder, with rounds."""
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            train_side(dag)
            dag.append_many(
                [item("one"), item("two", "one"), item("three", "two", status=ACCEPTED, cause="", feedback="")]
            )
            dag.append_many([item("beside", "one", status="pending"), item("after", "three", specification="Again.")])
            texts = dict.fromkeys(("specification", "constraints", "artifact", "feedback"), HOSTILE)
            names = dict.fromkeys(("action_pair_id", "workflow_id", "cause", "guard", "model"), BAD)
            dag.append(item(BAD, group=BAD, metadata={BAD: BAD}, sampling={BAD: BAD}, **texts | names))
            dag.append(item("after bad", BAD, artifact=HOSTILE[::-1], feedback=HOSTILE, status=ACCEPTED))
            writable = dict.fromkeys(("specification", "constraints", "artifact", "feedback"), WRITABLE)
            dag.append_many([item("writable"), item("written", "writable", status=ACCEPTED, **writable)])
            dag.append_event("two", "exclude", actor=BAD, reason=BAD)
            if folder is not None:
                ids = fill(dag, range(20))
                measured = {"evidence": evidence(folder / "measured")}
                round_of(dag, folder, 1, ids[:8], measured=measured)
                round_of(dag, folder, 2, ids, "refused", measured=measured)
        yield place.target


@pytest.fixture(scope="module")
def served(
    sqlite_files: Files, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[browsing.Browser]:
    """A server of ℛ that no test of this module changes."""
    folder = tmp_path_factory.mktemp("browser")
    base = {f"g{group}.{n}": [["fail", "pass"]] for group in range(6) for n in range(2)}
    report.write(folder / "evaluations", evidence_of(base, {name: [["pass"]] for name in base}))
    with (
        repository(sqlite_files, folder) as target,
        browsing.serving(target, model=str(tiny_model), evidence=(folder / "evaluations",)) as opened,
    ):
        yield opened


def addresses(served: browsing.Browser) -> list[str]:
    """Every kind of page."""
    return [
        "/",
        "/items",
        with_query("/items", where=UNUSUAL, order="created_at"),
        with_query("/items", where=WRONG),
        item_path("three"),
        item_path(BAD),
        *(with_query(item_path("three", "rows"), view=view) for view in ("both", "preference", "verdict")),
        item_path(BAD, "rows"),
        item_path("three", "near"),
        item_path("nobody"),
        "/adapters",
        named_path("/adapters", "me/2"),
        "/rounds",
        named_path("/rounds", "me"),
        "/evidence",
        *served.get("/evidence").links("/evidence/")[:1],
    ]


@pytest.mark.parametrize("look", READERS)
def test_every_page_is_accessible_and_silent(browser: Browser, served: browsing.Browser, look: str) -> None:
    findings, wide = [], []
    with Watched(browser, served.url, look) as seen:
        for address in addresses(served):
            page = seen.go(address)
            page.evaluate(UNFOLD)
            page.wait_for_load_state("networkidle")
            findings += [f"{address}: {found}" for found in seen.findings()]
            if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
                wide.append(address)  # only boxes inside may scroll sideways
    answers = ("status of 400", "status of 404")  # what a refused address is, the browser says too
    assert findings == []
    assert [said for said in seen.said if not any(each in said for each in answers)] == []
    assert (seen.foreign, wide) == ([], [])


@pytest.mark.parametrize("look", ["light", "dark"])
def test_what_others_wrote_never_runs(browser: Browser, served: browsing.Browser, look: str) -> None:
    with Watched(browser, served.url, look) as seen:
        for address in ("/", "/items", item_path(BAD), item_path("after bad"), item_path("written")):
            page = seen.go(address)
            for view in page.locator("a.button[hx-get]").all():
                view.click()
                page.wait_for_function(
                    "name => document.querySelector('#rows-said').innerText.startsWith(name)", arg=view.inner_text()
                )
                assert harmless(page)
            assert harmless(page)
        assert "<script>window.hit = 1</script>" in page.inner_text("#rows")
        page = seen.go(item_path(BAD))
        text = page.inner_text("main")
        for shown in (
            "<script>window.hit = 1</script>",
            "<img src=x onerror='window.hit = 1'>",
            "{{ 7 * 7 }}",
            "[31mred",
        ):
            assert shown in text
        marks = page.eval_on_selector_all(".ch", "all => all.map(each => getComputedStyle(each, '::before').content)")
        assert {'"U+001B"', '"U+0007"', '"U+202E"', '"U+0000"', '"U+D800"'} <= set(marks)
    assert seen.said == seen.foreign == []


def harmless(page: Page) -> bool:
    """Whether nothing of what others wrote became an element or ran."""
    elements = page.locator("script:not([src='/static/htmx.min.js']), img, main svg[onload], a[href^='javascript']")
    return page.evaluate("window.hit === undefined && document.title.includes('guardlearn')") and elements.count() == 0


def test_tokens_are_coloured_by_their_loss(browser: Browser, served: browsing.Browser) -> None:
    with Watched(browser, served.url) as seen:
        page = seen.go(item_path("three"))
        page.click("a.button >> text=first attempt")
        page.wait_for_selector("#rows .tokens mark.end")
        assert page.inner_text("#rows-said[role=status]") == "first attempt: 1 rows"  # a screen reader says it
        colours = "all => [...new Set(all.map(each => getComputedStyle(each).backgroundColor))]"
        row = "#rows section .tokens"
        with_loss, without = (set(page.eval_on_selector_all(f"{row} > {tag}", colours)) for tag in ("mark", "span"))
        assert with_loss and without and not with_loss & without
        assert "".join(page.locator(f"{row} > mark").all_inner_texts()).rstrip() == (
            "def add(x, y):\n    # three\n    return x + y\n<|im_end|>"
        )
        page.click("a.button >> text=preference")
        page.wait_for_selector("#rows .against mark")
        against = set(page.eval_on_selector_all("#rows .against > mark:not(.end)", colours))
        assert not against & with_loss
    assert seen.said == []


def test_a_wrong_filter_is_told_under_its_field(browser: Browser, served: browsing.Browser) -> None:
    with Watched(browser, served.url) as seen:
        page = seen.go("/items")
        page.fill("#where", WRONG)
        page.wait_for_selector("#found >> text=colour")
        assert seen.said == []
        page.press("#where", "Enter")
        page.wait_for_load_state("networkidle")
        assert page.input_value("#where") == WRONG
        assert page.inner_text("#found").startswith("Column 22: unknown word 'colour'")
        assert page.inner_text(".caret mark").startswith("c")
        assert page.get_attribute("#where", "aria-invalid") == "true"
        page.fill("#where", UNUSUAL)
        page.press("#where", "Enter")
        page.wait_for_load_state("networkidle")
        assert "three" in page.inner_text("table.items")


def test_the_keyboard_leads_from_a_filter_to_a_mark(browser: Browser, sqlite_files: Files) -> None:
    with repository(sqlite_files) as target, browsing.serving(target) as served, Watched(browser, served.url) as seen:
        page = seen.go("/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
        tab_to(page, "Items")
        page.keyboard.press("Enter")
        page.wait_for_url("**/items")
        tab_to(page, "where")
        page.keyboard.type("status('accepted') & ~excluded()")
        page.keyboard.press("Enter")
        page.wait_for_url("**/items?where=*")
        tab_to(page, "three")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**{item_path('three')}")
        tab_to(page, "Mark it")
        page.keyboard.press("Enter")
        tab_to(page, "kind")
        page.keyboard.press("ArrowDown")
        tab_to(page, "reason")
        page.keyboard.type("copied from elsewhere")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=copied from elsewhere")
        assert seen.said == []
        with ArtifactDAG.load(target, read_only=True) as dag:
            assert dag.get_item("three").facts.excluded
            assert {event.reason for event in dag.events("three")} == {BAD, "copied from elsewhere"}


def tab_to(page: Page, name: str, most: int = 80) -> None:
    """Press Tab until what has this text or name is focused, and is seen to be."""
    for _ in range(most):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => { const at = document.activeElement, style = getComputedStyle(at);
            return [at.name || at.id || at.innerText.trim(), at.innerText ? at.innerText.trim() : '',
                    style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 || at.matches('.skip')]; }"""
        )
        if name in found[:2]:
            assert found[2], f"the focus on {name} cannot be seen"
            return
    raise AssertionError(f"{most} times Tab never led to {name}")


def test_two_people_marking_one_chain(browser: Browser, sqlite_files: Files) -> None:
    with repository(sqlite_files) as target, browsing.serving(target) as served:
        with Watched(browser, served.url) as ann, Watched(browser, served.url, "phone") as bob:
            for seen in (ann, bob):
                seen.go(item_path("three"))
            mark(ann, "exclude", "ann", "a copy")
            assert "ann" in ann.page.inner_text("main") and "a copy" in ann.page.inner_text("main")
            mark(bob, "review", "bob", "looks right")
            told = bob.page.inner_text("main")
            assert "ann" in told and "a copy" in told
            assert bob.findings() == []
            with ArtifactDAG.load(target, read_only=True) as dag:
                assert {event.actor for event in dag.events("three")} == {BAD, "ann"}
            bob.page.click("form.mark button")
            bob.page.wait_for_selector("text=looks right")
        with ArtifactDAG.load(target, read_only=True) as dag:
            assert {event.actor for event in dag.events("three")} == {BAD, "ann", "bob"}
            facts = dag.get_item("three").facts
            assert facts.excluded and facts.reviewed


def mark(seen: Watched, kind: str, actor: str, reason: str) -> None:
    seen.page.check(f"input[name=kind][value={kind}]")
    seen.page.fill("input[name=actor]", actor)
    seen.page.fill("input[name=reason]", reason)
    seen.page.click("form.mark button")
    seen.page.wait_for_load_state("networkidle")


def test_a_page_says_that_more_has_come(browser: Browser, sqlite_files: Files) -> None:
    with repository(sqlite_files) as target, browsing.serving(target) as served, Watched(browser, served.url) as seen:
        page = seen.go(item_path("three"))
        with ArtifactDAG.load(target) as dag:
            dag.append(item("newer"))
        page.wait_for_selector(".newer >> text=/new/", timeout=20_000)
        assert seen.findings() == seen.said == []


def test_without_script_every_page_works(browser: Browser, sqlite_files: Files) -> None:
    with (
        repository(sqlite_files) as target,
        browsing.serving(target) as served,
        Watched(browser, served.url, java_script_enabled=False) as seen,
    ):
        page = seen.go(item_path("three"))
        page.click("a.button >> text=repair")
        assert "What it becomes: repair" in page.inner_text("h1")
        page.go_back()
        page.click("text=Look for specifications that say nearly the same")
        assert "Near-duplicates" in page.inner_text("h1")
        page.go_back()
        page.check("input[name=kind][value=review]")
        page.fill("input[name=actor]", "ann")
        page.click("form.mark button")
        assert "ann" in page.inner_text("main")


def test_a_printed_chain_has_no_form_and_every_attempt(browser: Browser, served: browsing.Browser) -> None:
    with Watched(browser, served.url) as seen:
        page = seen.go(item_path("three"))
        page.emulate_media(media="print")
        assert not page.is_visible("form.mark") and not page.is_visible("nav[aria-label=Pages]")
        assert [page.is_visible(f"#a{place}") for place in (1, 2, 3)] == [True, True, True]
