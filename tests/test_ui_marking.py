"""Marks in the trace browser: who, why, and what two people do at once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from browsing import Answer, Browser, serving
from databases import Files, Server
from guardlearn import ArtifactDAG, RepositoryItem, parse
from guardlearn.types import ArtifactStatus
from guardlearn.ui.addresses import item_path, quoted, unquoted

REJECTED, ACCEPTED = ArtifactStatus.REJECTED, ArtifactStatus.ACCEPTED
ODD = "a/..\r\nb \"'<i>\u202e%2F"


def fill(dag: ArtifactDAG, prefix: str = "a") -> None:
    for number in range(3):
        dag.append(
            RepositoryItem(
                id=f"{prefix}{number}",
                artifact="x",
                specification="s",
                status=ACCEPTED if number == 2 else REJECTED,
                parent_id=f"{prefix}{number - 1}" if number else None,
            )
        )


@pytest.fixture
def browser(databases: Files | Server) -> Iterator[Browser]:
    with databases.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            fill(dag)
        with serving(place.target) as served:
            yield served


def selected(browser: Browser, text: str) -> list[str]:
    return list(browser.opened.dag.ids(parse(text), order_by="seq"))


def mark(browser: Browser, **given: str) -> Answer:
    """Send the form of a page that shows all events there were."""
    item_id = given.pop("id", "a2")
    events = browser.opened.dag.events(item_id)
    form = {"form_token": browser.opened.form_token, "item": quoted(item_id), "kind": "exclude", "scope": "chain"}
    form |= {"seen": str(events[-1].seq if events else 0), "actor": "Ann", "reason": "the guard was wrong"}
    return browser.post("/mark", form | given)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "word"), [("exclude", "excluded()"), ("review", "reviewed()")])
def test_a_marked_chain_is_seen_by_predicates(browser: Browser, kind: str, word: str) -> None:
    answer = mark(browser, kind=kind)
    assert answer.path == item_path("a2") and answer.status == 200
    assert selected(browser, word) == ["a0", "a1", "a2"]
    assert {(event.actor, event.reason) for event in browser.opened.dag.events("a0")} == {
        ("Ann", "the guard was wrong")
    }
    assert browser.part(f"/listing/count?where={word}").words == "3 items"
    assert word[:-2] in browser.get("/items").words


def test_one_attempt_alone_and_back_again(browser: Browser) -> None:
    mark(browser, id="a1", scope="item")
    assert selected(browser, "excluded()") == ["a1"]
    mark(browser, kind="include", reason="a slip")
    assert selected(browser, "excluded()") == []
    assert [event.kind for event in browser.opened.dag.events("a1")] == ["exclude"] + ["include"] * 3


def test_a_review_may_have_no_reason(browser: Browser) -> None:
    assert mark(browser, kind="review", scope="item", reason=" ").status == 200
    assert selected(browser, "reviewed()") == ["a2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reason": "  "}, "a mark says why"),
        ({"kind": "include", "reason": ""}, "a mark says why"),
        ({"actor": " "}, "a mark says who"),
        ({"kind": "redact"}, "nothing is marked 'redact'"),
        ({"kind": "status"}, "exclude, include, review"),
        ({"scope": "everything"}, "scope='everything'"),
        ({"actor": "x" * 201}, "at most 200"),
        ({"reason": "x" * 2_001}, "at most 2000"),
        ({"actor": "a\0b"}, "NUL"),
    ],
)
def test_what_is_missing_is_asked_for_and_nothing_is_lost(browser: Browser, given: dict[str, str], words: str) -> None:
    before = browser.opened.dag.last_seq
    answer = mark(browser, **{"reason": "my <long> reason", "scope": "item"} | given)
    assert answer.status == 400 and words in answer.words and "Nothing was written" in answer.words
    assert browser.opened.dag.last_seq == before
    if "reason" not in given:
        assert answer.fields()["reason"] == "my <long> reason"
    if given.keys() <= {"reason"}:
        assert 'value="exclude" checked' in answer.text and 'value="item" checked' in answer.text
        again = browser.post("/mark", answer.fields() | {"kind": "exclude", "scope": "item", "reason": "now said"})
        assert again.status == 200 and selected(browser, "excluded()") == ["a2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "status"), [({"id": "a2", "item": "nobody"}, 404), ({"seen": "x"}, 400), ({"seen": ""}, 400)]
)
def test_forms_that_no_page_has_made(browser: Browser, given: dict[str, str], status: int) -> None:
    before = browser.opened.dag.last_seq
    assert mark(browser, **given).status == status
    assert browser.opened.dag.last_seq == before


def test_the_second_of_two_is_shown_what_the_first_did(browser: Browser) -> None:
    ann, ben = browser.another(), browser.another()
    seen = {"seen": "0"}
    assert mark(ann, **seen, kind="review", actor="Ann <b>", reason="all right").status == 200
    before = browser.opened.dag.last_seq
    answer = mark(ben, **seen, actor="Ben", reason="no & never")
    assert answer.status == 409 and browser.opened.dag.last_seq == before
    assert "Nothing was written" in answer.words and "Ann <b>" in answer.words and "all right" in answer.words
    assert answer.words.count("review a") == 3 and "<b>" not in answer.text
    again = answer.fields()
    assert (again["actor"], again["reason"], again["seen"]) == ("Ben", "no & never", str(before))
    assert ben.post("/mark", again | {"kind": "exclude", "scope": "chain"}).status == 200
    assert selected(browser, "excluded() & reviewed()") == ["a0", "a1", "a2"]


def test_marks_of_another_chain_are_no_hindrance(browser: Browser) -> None:
    fill(browser.opened.dag, "b")
    assert mark(browser, id="b0").status == 200
    assert mark(browser, id="a0", seen="0").status == 200
    assert len(selected(browser, "excluded()")) == 6


def test_of_many_at_once_one_is_first(browser: Browser) -> None:
    answers: list[int] = []

    def decide(number: int) -> None:
        answers.append(mark(browser.another(), seen="0", actor=f"person {number}").status)

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [200] + [409] * 5
    assert len(browser.opened.dag.events("a0")) == 3


def test_who_one_is_is_asked_once(browser: Browser) -> None:
    cookie = "guardlearn_actor"
    answer = mark(browser, kind="review", actor=' Ann; Ö="1" ')
    (kept,) = (each for each in answer.cookies if each.startswith(cookie))
    assert "HttpOnly" in kept and "samesite=strict" in kept.lower() and kept.isascii()
    assert unquoted(browser.cookies[cookie]) == 'Ann; Ö="1"'
    assert browser.opened.dag.events("a0")[0].actor == 'Ann; Ö="1"'
    assert browser.get(item_path("a0")).fields()["actor"] == 'Ann; Ö="1"'
    assert browser.another().get(item_path("a0")).fields()["actor"] == "the tester"
    asked = mark(browser, actor="", kind="review")
    assert asked.fields()["actor"] == ""  # what was typed stays, even where it was nothing


def test_odd_ids_can_be_marked(sqlite_files: Files) -> None:
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            dag.append(RepositoryItem(id=ODD, artifact="x", specification="s", status=ACCEPTED))
        with serving(place.target) as browser:
            refused = mark(browser, id=ODD, reason="")
            assert refused.status == 400 and unquoted(refused.fields()["item"]) == ODD
            answer = browser.post("/mark", refused.fields() | {"kind": "review", "scope": "chain"})
            assert answer.path == item_path(ODD) and answer.status == 200
            assert selected(browser, "reviewed()") == [ODD]


def test_a_repository_for_reading_refuses(sqlite_files: Files) -> None:
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            fill(dag)
        with serving(place.target, read_only=True) as browser:
            answer = mark(browser)
            assert answer.status == 403 and "for reading only" in answer.words
            assert browser.opened.dag.count(parse("excluded()")) == 0
            assert "for reading only" in browser.get("/").words


def test_what_another_process_locks_is_one_line(sqlite_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARDLEARN_BUSY_SECONDS", "0.2")
    with sqlite_files.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            fill(dag)
        with serving(place.target) as browser:
            other = sqlite3.connect(Path(place.target), isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            answer = mark(browser)
            assert answer.status == 503 and "another process is writing" in answer.words
            assert browser.get("/items").status == 200  # reading goes on
            other.execute("ROLLBACK")
            other.close()
            assert mark(browser).status == 200
