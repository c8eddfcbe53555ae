"""The page of a chain: every attempt, what it changed, what hangs beside it; texts are shown and never run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from browsing import Answer, Browser, serving
from databases import Files, Place, Server, law
from guardlearn import provenance
from guardlearn.dag import ArtifactDAG
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side
from guardlearn.ui.addresses import item_path
from guardlearn.ui.chains import ATTEMPTS_SHOWN, chain_of
from test_dag_law import events, items, repository

HOSTILE = (
    "<script>window.hit=1</script> \x1b[31mred\x1b[0m \x9b2J \u202egnp.exe \0 \ud800 &amp; '\"<img src=x onerror=hit()>"
)
WRITABLE = HOSTILE.replace("\0", "").replace("\ud800", "")
"""What training takes, too."""
REJECTED, ACCEPTED = ArtifactStatus.REJECTED, ArtifactStatus.ACCEPTED
IDS = (
    "a/b", "..", ".", "...", "=", "==x", "a/rows", "rows", "near", 'q"uo\'te', "<b>bold</b>", "ü %2F %", "?x=1#y",
    "a b", "\x1b[31m", "line\nend", "a/../b", "\u202egnp", "x" * 900,
)  # fmt: skip


def item(name: str, parent: str | None = None, **given: Any) -> RepositoryItem:
    fields = {
        "id": name,
        "parent_id": parent,
        "specification": "Write the function `def add(x: int, y: int) -> int:`.",
        "artifact": f"def add(x, y):\n    return {name!r}\n",
        "status": REJECTED,
        "group": "g",
    }
    return RepositoryItem(**fields | given)


def page(browser: Browser, name: str, *below: str, status: int = 200) -> Answer:
    found = browser.get(item_path(name, *below))
    assert found.status == status, found.words
    return found


@pytest.fixture(scope="module")
def browser(sqlite_files: Files) -> Iterator[Browser]:
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            dag.assign_side("g", Side.TRAIN)
            dag.append_many(
                [
                    item(
                        "one", feedback="add a docstring", cause="style", guard="strict", guard_version="abc", model="m"
                    ),
                    item("two", "one", feedback="still none", cause="style", model="m", sampling={"temperature": 0.7}),
                    item("beside", "one", fatal=True),
                    item("three", "two", status=ACCEPTED, model="m", sampling={"temperature": 0.7}),
                    item("after", "three", specification="Write it again.", status="pending"),
                    item(
                        "last",
                        "after",
                        specification="Write it again.",
                        artifact=HOSTILE,
                        feedback=HOSTILE,
                        cause="<b>",
                    ),
                    item("orphan", "never stored"),
                    item("told", seen_history=(FeedbackEntry(artifact="x", feedback="y"),)),
                    item("hostile", specification=HOSTILE, constraints=HOSTILE, artifact="a", action_pair_id="<i>"),
                    item("hostile 2", "hostile", artifact=HOSTILE, feedback=HOSTILE, metadata={"<u>": "\x1b[2J"}),
                    item("writable", specification=WRITABLE, artifact=WRITABLE, feedback=WRITABLE),
                    *(item(name, artifact=f"artifact {number}") for number, name in enumerate(IDS)),
                ]
            )
            dag.append_event("one", "review", actor="ann", reason="looks <b>right</b>")
            dag.append_event("two", "exclude", actor="\x1b[31mbob", reason="")
        with serving(place.target) as opened:
            yield opened


def test_every_attempt_is_told_with_what_it_changed(browser: Browser) -> None:
    found = page(browser, "three")
    words = found.words
    told = [
        "Attempt 3 accepted", "Item three", "Side train", "Attempts that hang together 6",
        "Attempt 1 rejected (style) reviewed", "judged by strict abc", "model m", "return 'one'",
        "Feedback add a docstring",
        "Attempt 2 rejected (style) excluded", "temperature 0.7", "- return 'one'", "+ return 'two'",
        "Feedback still none",
        "Beside it attempt 2: rejected beside",
        "Attempt 3 accepted", "- return 'two'", "+ return 'three'",
        "It went on attempt 4: pending after", "And then attempt 5: rejected last",
        "review ann looks <b>right</b> one", "exclude \\x1b[31mbob" if "\\x1b" in words else "exclude", "two",
    ]  # fmt: skip
    at = 0
    for each in told:
        at = words.index(each, at)
    assert words.count("temperature 0.7") == 1  # the third attempt's are those of the second
    assert item_path("two") in found.links() and item_path("after") in found.links()


def test_an_amended_specification_is_a_difference(browser: Browser) -> None:
    words = page(browser, "last").words
    assert "The specification was amended" in words
    assert "-Write the function `def add(x: int, y: int) -> int:`. +Write it again." in words


def test_what_others_wrote_is_text_and_nothing_else(browser: Browser) -> None:
    for name in ("last", "hostile", "hostile 2", "writable"):
        for below in ("", "/rows?view=verdict", "/near"):
            found = browser.get(item_path(name) + below)
            assert found.status == 200
            assert not set(re.findall(r"<(script|img|b|i|u)[ >][^>]*>", found.text)) - {"script"}
            assert re.findall(r"<script[^>]*>", found.text) == ['<script src="/static/htmx.min.js" defer>']
            marked = re.sub(r'<span class="ch" data-c="U.[0-9A-F]+">.?</span>', "", found.text, flags=re.DOTALL)
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", marked)
            assert "window.hit=1" in found.words or (below and name != "writable") or below == "/near"


@pytest.mark.parametrize("name", IDS, ids=ascii)
def test_an_item_of_any_id_has_its_page(browser: Browser, name: str) -> None:
    found = page(browser, name)
    assert f"artifact {IDS.index(name)}" in found.words
    for below in ("rows", "near"):
        assert item_path(name) in page(browser, name, below).links("/items/")


def test_what_is_not_there_is_one_line(browser: Browser) -> None:
    for name in ("nobody", "\0", "\ud800", "nobody/rows", "\udcff%"):
        assert "no item" in page(browser, name, status=404).words
    assert browser.get("/items/%ff%fe").status == 404
    assert "there are: rows, near" in page(browser, "one", "verses", status=404).words
    unknown = browser.get(item_path("one", "rows") + "?view=verse")
    assert unknown.status == 400
    assert "view 'verse' is unknown; allowed: first_attempt, repair, both, preference, verdict" in unknown.words


def test_a_broken_chain_says_what_is_missing(browser: Browser) -> None:
    assert "the attempt before 'orphan' is missing: 'never stored'" in page(browser, "orphan").words


def test_a_history_of_its_own_is_said(browser: Browser) -> None:
    assert "It was shown a history of its own, of 1 entries" in page(browser, "told").words


def test_parts_are_what_pages_hold(browser: Browser) -> None:
    for below in ("rows", "near"):
        whole, part = page(browser, "three", below), browser.part(item_path("three", below))
        assert part.status == 200 and "<html" not in part.text and "<h1" not in part.text
        announced = (
            '<p id="rows-said" hx-swap-oob="innerHTML">both: 2 rows</p>'  # to screen readers; the page has a heading
        )
        assert (announced in part.text) == (below == "rows")
        text = " ".join(re.sub("<[^>]*>", " ", part.text.replace(announced, "")).split())
        assert text in " ".join(re.sub("<[^>]*>", " ", whole.text).split())


def test_each_view_is_shown_as_messages_where_no_model_was_named(browser: Browser) -> None:
    words = browser.get(item_path("three", "rows") + "?view=repair").words
    assert "without tokens: start guardlearn ui with --model" in words
    assert "add a docstring" in words and "still none" in words
    preferred = browser.get(item_path("three", "rows") + "?view=preference").words
    assert preferred.count("Answer: chosen") == preferred.count("Answer: rejected (trained away from)") == 1
    assert "rejected attempt: excluded" in preferred  # of the second one


def test_tokens_are_coloured_by_the_loss_mask(sqlite_files: Files, tiny_model: Any) -> None:
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            dag.assign_side("g", Side.TRAIN)
            dag.append_many([item("one", feedback="no"), item("two", "one", status=ACCEPTED)])
        with serving(place.target, model=str(tiny_model)) as browser:
            found = browser.get(item_path("two", "rows") + "?view=first_attempt")
    (row,) = re.findall(r'<div class="code tokens">(.*?)</div>', found.text, re.DOTALL)
    coloured = "".join(re.findall(r"<mark[^>]*>(.*?)</mark>", row, re.DOTALL))
    plain = re.sub("<[^>]*>", "", row.partition("<mark")[0])
    assert re.sub("<[^>]*>", "", coloured) == "def add(x, y):\n    return &#x27;two&#x27;\n&lt;|im_end|&gt;"
    assert plain.startswith("&lt;|im_start|&gt;user\nWrite") and plain.endswith("&lt;|im_start|&gt;assistant\n")
    assert 'class="special end">&lt;|im_end|&gt;</mark>' in row


def test_a_model_without_a_tokenizer_is_one_line(installed: Place, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with ArtifactDAG.load(installed.target) as dag:
        dag.append(item("one", status=ACCEPTED))
    with serving(installed.target, model=str(tmp_path)) as browser:
        refused = browser.get(item_path("one", "rows"))
        assert refused.status == 503
        assert f"no usable tokenizer at {tmp_path}" in refused.words
        assert page(browser, "one").status == 200


def test_a_redacted_attempt_says_so(installed: Place) -> None:
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many([item("one", artifact="secret words", feedback="secret too"), item("two", "one")])
        dag.redact("one", "ann", "private")
    with serving(installed.target) as browser:
        found = page(browser, "two")
    assert "Its texts were redacted." in found.words and "redact ann private" in re.sub(r" +", " ", found.words)
    assert "secret" not in found.text
    assert "return 'two'" in found.words  # whole: there is nothing left to compare it with


def test_of_a_long_chain_the_middle_is_left_out(installed: Place) -> None:
    count = ATTEMPTS_SHOWN + 30
    names = [f"n{number}" for number in range(count)]
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many([item(name, names[at - 1] if at else None) for at, name in enumerate(names)])
        page_of = chain_of(dag, names[-1])
    assert [attempt.item.id for attempt in page_of.attempts] == [names[0], *names[-ATTEMPTS_SHOWN + 1 :]]
    assert page_of.left_out == names[1 : -ATTEMPTS_SHOWN + 1]
    assert page_of.attempts[1].changes is None  # what it changed is on another page
    with serving(installed.target) as browser:
        found = page(browser, names[-1])
        assert f"{len(page_of.left_out)} attempts between are left out" in found.words
        assert item_path(page_of.left_out[-1]) in found.links()


@pytest.mark.slow
def test_a_wide_tree_and_huge_texts_make_no_huge_page(installed: Place) -> None:
    with ArtifactDAG.load(installed.target) as dag:
        dag.append(item("root", artifact="a\n" * 400_000, feedback="<" * 300_000))
        dag.append_many([item(f"child {number}", "root", artifact="b\n" * 400_000) for number in range(3)])
        dag.append_many([item(f"leaf {number}", "child 0") for number in range(300)])
    with serving(installed.target) as browser:
        for name in ("root", "child 0", "leaf 7"):
            found = page(browser, name)
            assert len(found.text) < 400_000
        assert "288 more" in page(browser, "child 0").words


@pytest.mark.slow
@law(st.lists(items() | events, max_size=10), examples=15)
def test_every_item_has_the_page_of_its_path(databases: Files | Server, history: list[Any]) -> None:
    """Whatever was stored, in whatever order, the page tells the path that ℛ tells."""
    with repository(databases, history) as (dag, stored, _):
        for each in stored:
            told, chain = chain_of(dag, each.id), dag.provenance(each.id)
            assert [attempt.item for attempt in told.attempts] == chain
            assert (told.broken or None, told.members) == (provenance.broken(dag, chain), len(dag.tree(each.id)))
            assert {link.id for link in (*told.children, *told.later)} | {item.id for item in chain} <= {
                link.id for link in dag.tree(each.id)
            }
            for before, attempt in zip(chain, told.attempts[1:], strict=False):
                if before.facts.redacted or attempt.item.facts.redacted:
                    assert attempt.changes is None
                else:
                    assert (attempt.changes == []) == (before.artifact == attempt.item.artifact)


def test_a_mark_is_an_event_that_predicates_see(installed: Place) -> None:
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many([item("one"), item("two", "one", status=ACCEPTED)])
    with serving(installed.target) as browser:
        form = page(browser, "two").fields()
        marked = browser.post("/mark", form | {"kind": "exclude", "scope": "chain", "reason": "copied <b>"})
        assert (marked.status, marked.path) == (200, item_path("two"))
        assert marked.words.count("exclude the tester copied <b>") == 2
    with ArtifactDAG.load(installed.target, read_only=True) as dag:
        assert all(dag.get_item(name).facts.excluded for name in ("one", "two"))


def test_two_people_marking_one_chain_see_each_other(installed: Place) -> None:
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many([item("one"), item("two", "one", status=ACCEPTED)])
    with serving(installed.target) as ann:
        bob = ann.another()
        of_ann, of_bob = page(ann, "two").fields(), page(bob, "one").fields()
        first = {"kind": "exclude", "scope": "item", "reason": "wrong", "actor": "ann"}
        assert ann.post("/mark", of_ann | first).status == 200
        second = {"kind": "review", "scope": "chain", "reason": "", "actor": "bob"}
        refused = bob.post("/mark", of_bob | second)
        assert refused.status == 409
        assert "ann" in refused.words and "wrong" in refused.words
        with ArtifactDAG.load(installed.target, read_only=True) as dag:
            assert [event.actor for event in dag.events("one")] == ["ann"]
        assert bob.post("/mark", refused.fields() | second).status == 200
        with ArtifactDAG.load(installed.target, read_only=True) as dag:
            assert [event.actor for event in dag.events("one")] == ["ann", "bob", "bob"]
