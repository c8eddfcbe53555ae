"""The trace browser's pages of ℛ at a glance and of items, from a real server, without script."""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest

from browsing import Browser, serving
from databases import Files, Server
from guardlearn import ArtifactDAG, RepositoryItem, parse
from guardlearn.predicates import POLICIES, policy
from guardlearn.types import ArtifactStatus, Source
from guardlearn.ui.addresses import item_path, quoted, segments_after, unquoted, with_query
from guardlearn.ui.opened import Kept

REJECTED, ACCEPTED = ArtifactStatus.REJECTED, ArtifactStatus.ACCEPTED
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\"'&amp;"
CHAINS = 70


def fill(dag: ArtifactDAG, chains: int = CHAINS) -> None:
    """Chains of two attempts; every tenth is a human's, every seventh stays rejected."""
    for number in range(chains):
        common: dict[str, Any] = {
            "specification": f"Task {number}: write it\nwell",
            "action_pair_id": f"pair {number % 3}",
            "source": Source.HUMAN if number % 10 == 0 else Source.GENERATOR,
            "guard": "the guard",
            "group": f"g{number % 5}",
        }
        dag.append(RepositoryItem(id=f"first-{number}", artifact="x", status=REJECTED, feedback="no", **common))
        last = REJECTED if number % 7 == 0 else ACCEPTED
        dag.append(
            RepositoryItem(id=f"second-{number}", artifact="y", status=last, parent_id=f"first-{number}", **common)
        )


@pytest.fixture(scope="module")
def browser(sqlite_files: Files) -> Iterator[Browser]:
    """A browser at a filled repository; tests do not write to it."""
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            fill(dag)
        with serving(place.target) as served:
            yield served


def listed(text: str) -> list[str]:
    """The ids in a page's table of items."""
    return [unquoted(found.rpartition("/")[2]) for found in re.findall(r'<td class="id"><a href="([^"]*)"', text)]


def test_every_page_answers_and_says_what_it_is(browser: Browser) -> None:
    for path in ("/", "/items", "/overview/status", "/overview/policies", "/overview/figures", "/listing/plan"):
        answer = browser.get(path)
        assert answer.status == 200, path
        assert answer.text.count("<h1") == 1 and answer.text.count("<main") == 1, path
        assert re.search(r"<title>[^<]+ · guardlearn</title>", answer.text), path
        assert "style=" not in answer.text and "<style" not in answer.text and not re.search(r"\son\w+=", answer.text)
        for address in re.findall(r'(?:src|href|action|hx-get)="([^"]*)"', answer.text):
            assert address.startswith(("/", "#")) and not address.startswith("//"), (path, address)


def test_links_of_pages_lead_somewhere(browser: Browser) -> None:
    found = {
        link for path in ("/", "/items", "/overview/status", "/overview/figures") for link in browser.get(path).links()
    }
    own = {
        link for link in found if link.startswith(("/items?", "/listing", "/overview", "/static")) or link == "/items"
    }
    assert len(own) > 15
    for link in own:
        assert browser.get(link).status == 200, link


def test_the_first_page_shows_the_last_attempts(browser: Browser) -> None:
    answer = browser.get("/")
    assert listed(answer.text)[:3] == ["second-69", "first-69", "second-68"] and len(listed(answer.text)) == 10
    assert "140 entries" in answer.words and "Task 69: write it" in answer.words and "well" not in answer.words
    with browser.opened.dag.reading():
        sides = browser.opened.dag.sides()
    for side, count in sides.items():
        assert f"{side.value} {count}" in answer.words


def test_the_counted_parts_are_the_figures_of_stats(browser: Browser) -> None:
    dag = browser.opened.dag
    statuses = browser.get("/overview/status").words
    assert all(f"{name} {count}" in statuses for name, count in dag.count_by(None, "status").items())
    policies = browser.get("/overview/policies").words
    assert all(f"{name} {dag.count(policy(name))}" in policies for name in POLICIES)
    figures = browser.get("/overview/figures").words
    (total,) = dag.breakdown(None)
    assert f"E[retries] is {total.expected_retries:.2f}" in figures and "1 70 0 0 %" in figures
    row = next(each for each in dag.breakdown("action_pair") if each.value == "pair 1")
    assert f"pair 1 {row.items} {row.refinements} {row.chains} 0 %" in figures


def test_a_part_for_htmx_is_only_the_part(browser: Browser) -> None:
    whole, part = browser.get("/overview/status"), browser.part("/overview/status")
    assert "<html" in whole.text and "<html" not in part.text and "<h1" not in part.text
    assert "accepted" in part.words and part.headers["vary"] == "HX-Request"
    assert browser.get("/overview/nonsense").status == 404


@pytest.mark.parametrize("order", ["newest", "oldest", "latest", "earliest"])
@pytest.mark.parametrize("where", ["", "refinement()", 'source("human") | action_pair("pair 1")'])
def test_pages_forth_and_back_show_each_item_once(browser: Browser, where: str, order: str) -> None:
    by, descending = {"newest": ("seq", True), "oldest": ("seq", False)}.get(order, ("created_at", order == "latest"))
    expected = [
        item.id
        for item in browser.opened.dag.extract(parse(where) if where else None, order_by=by, descending=descending)
    ]
    pages, path = [], with_query("/items", where=where, order=order)
    while path:
        answer = browser.get(path)
        pages.append(listed(answer.text))
        assert len(pages) < 9
        path = next((link for link in answer.links("/items?") if "after=" in link), "")
    assert [item for page in pages for item in page] == expected
    assert all(len(page) == 50 for page in pages[:-1]) and len(pages) == -(-len(expected) // 50)
    backwards = []
    while path := next((link for link in answer.links("/items?") if "before=" in link), ""):
        answer = browser.get(path)
        backwards.append(listed(answer.text))
        assert len(backwards) < len(pages)
    assert backwards == pages[-2::-1]


@pytest.mark.parametrize(
    ("where", "column", "words", "caret"),
    [
        ("refinment()", 1, "did you mean refinement?", "r"),
        ("refinement() & (", 16, "never closed", "("),
        ("refinement() and reviewed()", 1, "write & instead of and", "r"),
        ("~ excluded", 3, "write excluded(), with parentheses", "e"),
        ("retries(at_least='x')", 1, "at_least", "r"),
        (f"status('accepted') & {HOSTILE}", 47, "invalid non-printable", '<span class="ch" data-c="U+001B"></span>'),
        (f"status('accepted') & item({HOSTILE!r}, 3)", 22, "give strings", "i"),
        ("__import__('os').system('id')", 1, "only words of the vocabulary", "_"),
        ("   ", None, None, None),
        ("~" * 3000 + "excluded()", 1, "nested too deeply", "~"),
        ("item('\0')", 1, "", "i"),
    ],
)
def test_a_bad_predicate_is_shown_with_its_column(
    browser: Browser, where: str, column: int | None, words: str | None, caret: str | None
) -> None:
    page = browser.get(f"/items?where={quote(where)}")
    part = browser.part(f"/listing/count?where={quote(where)}")
    if column is None:  # blanks select everything
        assert page.status == 200 and len(listed(page.text)) == 50
        return
    assert page.status == 400 and part.status == 200 and not listed(page.text)
    for text in (page.text, part.text):
        assert f"Column {column}: " in text and "<script>alert" not in text
        assert "\x1b" not in re.sub(r' value="[^"]*"', "", text)  # the field holds what was typed
        assert re.search(r'<div class="caret">.*?<mark>(.*?)</mark>', text, re.S)[1] == caret  # type: ignore[index]
    assert words in page.words
    assert 'aria-invalid="true"' in page.text and "Next page" not in page.words
    for path in ("/listing/drops", "/listing/plan", "/listing/count"):
        answer = browser.get(f"{path}?where={quote(where)}")
        assert answer.status == 400 and f"Column {column}: " in answer.text


def test_what_was_typed_stays_in_the_field(browser: Browser) -> None:
    text = "action_pair(\"<b> 'x' & y\")"
    answer = browser.get(f"/items?where={quote(text)}")
    assert answer.status == 200 and answer.fields() == {} and "<b>" not in answer.text
    assert 'value="action_pair(&#34;&lt;b&gt; &#39;x&#39; &amp; y&#34;)"' in answer.text


def test_the_live_count(browser: Browser) -> None:
    for text in ("", "refinement()", 'source("human")', "excluded()"):
        found = browser.opened.dag.count(parse(text) if text else None)
        assert browser.part(f"/listing/count?where={quote(text)}").words == f"{found} items"
    assert browser.part("/listing/count?where=item('first-3')").words == "1 item"


def test_a_count_ends_at_its_bound(sqlite_files: Files) -> None:
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            dag.append_many(
                RepositoryItem(id=f"i{number}", artifact="", specification="s", status=ACCEPTED)
                for number in range(10_001)
            )
        with serving(place.target) as browser:
            assert browser.part("/listing/count").words == "10 000+ items"
            assert browser.part("/listing/count?where=up_to(10000)").words == "10 000 items"


def test_why_items_fall_out_and_the_query(browser: Browser) -> None:
    drops = browser.get("/listing/drops?where=refinement()").words
    for reason, count in browser.opened.dag.explain_drops(parse("refinement()")).items():
        assert f"{reason} {count}" in drops
    assert "Every item is selected" in browser.part("/listing/drops").words
    plan = browser.get("/listing/plan?where=refinement()").words
    expected = browser.opened.dag.explain(parse("refinement()"))
    assert " ".join(expected.sql.split()) in plan and "facts_selection" in plan
    assert all(" ".join(step.split()) in plan for step in expected.steps)


@pytest.mark.parametrize("query", ["order=age", "after=x", "after=-1", "after=999999", "before=1e3", "after=٣"])
def test_an_edited_address_is_refused_in_one_line(browser: Browser, query: str) -> None:
    answer = browser.get(f"/items?{query}")
    assert answer.status == 400 and query.partition("=")[0] in answer.words and "Not possible" in answer.words


def test_what_is_not_there(browser: Browser) -> None:
    assert "there is no page /no/such" in browser.get("/no/such").words
    assert browser.get("/static/../pages.py").status == 404
    assert browser.get("/static/..%2fpages.py").status == 404
    assert browser.ask("DELETE", "/items", None, {"Origin": browser.url}).status == 405


def test_an_empty_repository_says_how_to_fill_it(sqlite_files: Files) -> None:
    with sqlite_files.installed() as place, serving(place.target) as browser:
        for path in ("/", "/items"):
            answer = browser.get(path)
            assert answer.status == 200 and "guardlearn collect" in answer.words
        assert browser.get("/overview/figures").status == 200
        assert "No item matches" in browser.get("/items?where=refinement()").words


def test_hostile_texts_are_only_text(databases: Files | Server) -> None:
    with databases.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            dag.append(
                RepositoryItem(
                    id=HOSTILE,
                    artifact="x",
                    specification=HOSTILE + "\ud800",
                    status=ACCEPTED,
                    action_pair_id=HOSTILE,
                    guard=HOSTILE,
                    cause=HOSTILE,
                    group=HOSTILE,
                )
            )
        with serving(place.target) as browser:
            for path in ("/", "/items", "/overview/figures"):
                answer = browser.get(path)
                assert answer.status == 200 and "alert(1)" in answer.text
                assert "<script>alert" not in answer.text
                assert not {"\x1b", "\u202e", "\x00"} & set(answer.text)
            assert listed(browser.get("/items").text) == [HOSTILE]
            address = next(link for link in browser.get("/overview/figures").links("/items?") if "script" in link)
            assert listed(browser.get(address).text) == [HOSTILE]


def test_pages_say_that_the_repository_has_grown(sqlite_files: Files) -> None:
    with sqlite_files.installed() as place, serving(place.target) as browser, ArtifactDAG.load(place.target) as dag:
        fill(dag, 60)
        page = browser.get("/items")
        (poll,) = re.findall(r'hx-get="(/newer[^"]*)"', page.text)
        assert browser.part(poll).status == 204 and "every" in page.text
        second = next(link for link in page.links("/items?") if "after=" in link)
        before = listed(browser.get(second).text)
        dag.append(RepositoryItem(id="new", artifact="", specification="s", status=ACCEPTED))
        assert "1 new in the repository" in browser.part(poll).words
        dag.append_event("new", "review", actor="Ann")
        told = browser.part(poll)
        assert "2 new in the repository" in told.words
        (again,) = re.findall(r'hx-get="(/newer[^"]*)"', told.text)
        assert browser.part(html.unescape(again)).status == 204
        assert listed(browser.get(second).text) == before
        assert listed(browser.get("/items").text)[0] == "new"
        assert browser.get("/overview/status").words != "" and "accepted 52" in browser.get("/overview/status").words


def test_many_requests_at_once_are_answered(browser: Browser) -> None:
    """More than ℛ has connections for: they wait for their turn."""
    answers: list[int] = []

    def look(number: int) -> None:
        paths = ["/", "/items?where=refinement()", "/overview/figures", "/listing/drops?where=excluded()"]
        answers.append(browser.another().get(paths[number % len(paths)]).status)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 40


def test_a_damaged_repository_is_one_line(sqlite_files: Files) -> None:
    with sqlite_files.installed() as place, serving(place.target) as browser:
        with ArtifactDAG.load(place.target) as dag:
            fill(dag, 2)
        with place.behind() as connection:
            connection.exec_driver_sql("DROP TRIGGER head_refuse_delete")
            connection.exec_driver_sql("DELETE FROM head WHERE name = 'log'")
        answer = browser.get("/")
        assert answer.status == 503 and "is damaged" in answer.words and "run verify" in answer.words
        assert "Traceback" not in answer.text
        assert browser.get("/static/ui.css").status == 200


@pytest.mark.parametrize(
    "item_id", ["a", "a/b", ".", "..", "...", "=", "=..", "a b+c%2F?#&", "Ψ\n\t\0\ud800", "rows", "a/rows"]
)
def test_any_id_has_an_address(item_id: str) -> None:
    path = item_path(item_id, "rows")
    assert path.isascii() and path.count("/") == 3
    assert all(segment.replace("%2e", ".") not in (".", "..") for segment in path.lower().split("/"))
    scope = {"raw_path": path.encode(), "path": "/made/up"}
    assert segments_after(scope, "/items/") == [item_id, "rows"]
    assert unquoted(quoted(item_id)) == item_id


def test_what_is_counted_is_kept_until_there_is_more() -> None:
    kept, made = Kept(most=2), []

    def count() -> int:
        made.append(len(made))
        return made[-1]

    def slow() -> int:
        time.sleep(0.2)
        return count()

    assert kept.get("a", 1, count) == (0, 1) == kept.get("a", 1, count)
    assert kept.get("a", 2, count).value == 1  # type: ignore[union-attr]
    first = kept.get("b", 1, slow)
    assert kept.get("b", 2, slow) == first  # it costs more than the moment since
    kept.get("c", 1, count)
    kept.get("a", 2, count)  # forgotten meanwhile: only two are kept
    assert made == [0, 1, 2, 3, 4]


def test_what_somebody_else_counts_is_not_counted_twice() -> None:
    kept, begun, goes_on = Kept(), threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert goes_on.wait(30)
        return "done"

    thread = threading.Thread(target=kept.get, args=("a", 1, slow))
    thread.start()
    assert begun.wait(30)
    assert kept.get("a", 1, lambda: "again", wait=False) is None
    goes_on.set()
    assert kept.get("a", 1, lambda: "again").value == "done"  # type: ignore[union-attr]
    thread.join(30)


def test_times_are_utc_to_the_second(browser: Browser) -> None:
    item = browser.opened.dag.get_item("second-69")
    assert item.created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") in browser.get("/").words
    assert item.created_at <= datetime.now(UTC)
