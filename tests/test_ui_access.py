"""Who may ask the trace browser, and what its answers say to browsers."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from browsing import Answer, Browser, serving
from databases import Files
from guardlearn import RepositoryItem
from guardlearn.errors import UsageError
from guardlearn.types import ArtifactStatus
from guardlearn.ui.access import served_names
from guardlearn.ui.serving import bind


@pytest.fixture
def browser(sqlite_files: Files) -> Iterator[Browser]:
    """A browser at this machine's own door."""
    with sqlite_files.installed() as place, serving(place.target) as served:
        yield served


@pytest.fixture
def stranger(sqlite_files: Files) -> Iterator[Browser]:
    """A browser at a door that others can come to; it knows no token."""
    with sqlite_files.installed() as place, serving(place.target, host="0.0.0.0") as served:
        served.host = f"127.0.0.1:{served.bound.socket.getsockname()[1]}"
        yield served


def hosted(browser: Browser, host: str) -> Answer:
    other = browser.another()
    other.host = host
    return other.get("/items")


@pytest.mark.slow
@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "127.0.0.1:80", "[::1]:8765", "localhost.", "localhost:9000"]
)
def test_own_names_are_served_whatever_the_port(browser: Browser, host: str) -> None:
    assert hosted(browser, host).status == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example:8765", "localhost.evil.example", "192.168.1.7", "", "[::1", "a@127.0.0.2",
     "evil.example:127.0.0.1", "127.0.0.1:x@evil.example"],
)  # fmt: skip
def test_other_names_are_not(browser: Browser, host: str) -> None:
    """A name that its owner lets resolve to 127.0.0.1 must get nothing (DNS rebinding)."""
    answer = hosted(browser, host)
    assert answer.status == 421 and "guardlearn ui" in answer.text and "<" not in answer.text


def test_every_answer_has_its_headers(browser: Browser) -> None:
    answers = [browser.get(path) for path in ("/", "/items?where=x", "/nope", "/static/htmx.min.js")]
    answers += [hosted(browser, "evil.example"), browser.post("/mark", {})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "server" not in answer.headers and "access-control-allow-origin" not in answer.headers
    assert answers[0].headers["cache-control"] == "no-store"
    assert answers[3].headers["content-type"].startswith("text/javascript") and "htmx" in answers[3].text


def test_the_one_script_is_as_it_was_published(browser: Browser) -> None:
    """htmx.org 2.0.11 from npm, dist/htmx.min.js; nothing else runs in a page."""
    text = browser.get("/static/htmx.min.js").text
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
    )
    for path in ("/", "/items"):
        assert re.findall(r"<script[^>]*>", browser.get(path).text) == ['<script src="/static/htmx.min.js" defer>']
    assert "Zero-Clause BSD" in browser.get("/static/htmx.LICENSE.txt").text


def test_a_fault_of_ours_is_a_page_without_its_traceback(browser: Browser) -> None:
    kept = browser.opened.kept
    object.__setattr__(browser.opened, "kept", "what no code of ours expects")
    try:
        answer = browser.get("/overview/status")
    finally:
        object.__setattr__(browser.opened, "kept", kept)
    assert answer.status == 500 and "AttributeError" in answer.text and "Traceback" not in answer.text
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert browser.get("/overview/status").status == 200


FORM = {"kind": "review", "scope": "item", "actor": "Ann", "reason": "r", "seen": "0", "item": "a"}


@pytest.fixture
def filled(browser: Browser) -> Browser:
    browser.opened.dag.append(RepositoryItem(id="a", artifact="", specification="s", status=ArtifactStatus.ACCEPTED))
    return browser


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_forms_of_other_sites_write_nothing(filled: Browser, headers: dict[str, str]) -> None:
    before = filled.opened.dag.last_seq
    answer = filled.post("/mark", FORM | {"form_token": filled.opened.form_token}, **headers)
    assert answer.status == 403 and filled.opened.dag.last_seq == before


@pytest.mark.parametrize("token", [None, "", "guess", "é" * 43])
def test_a_form_needs_the_token_of_the_page(filled: Browser, token: str | None) -> None:
    before = filled.opened.dag.last_seq
    given = {} if token is None else {"form_token": token}
    for headers in ({}, {"Origin": None, "Sec-Fetch-Site": None}):
        kept = {name: value for name, value in headers.items() if value}
        answer = filled.post("/mark", FORM | given, **kept)
        assert answer.status == 403 and "load the page again" in answer.words
    assert filled.opened.dag.last_seq == before


def test_reading_writes_nothing_and_marking_is_no_get(filled: Browser) -> None:
    before = filled.opened.dag.last_seq
    assert filled.get("/mark?" + "&".join(f"{name}={value}" for name, value in FORM.items())).status == 405
    for path in ("/", "/items", "/overview/figures"):
        filled.get(path)
    assert filled.opened.dag.last_seq == before
    assert filled.post("/mark", FORM | {"form_token": filled.opened.form_token}).status in (200, 404)
    assert filled.opened.dag.last_seq == before + 1


def test_without_the_token_nobody_enters(stranger: Browser) -> None:
    for path in ("/", "/items", "/static/ui.css", "/?token=", "/?token=guess", f"/?token={'x' * 43}"):
        answer = stranger.get(path)
        assert answer.status == 403 and "guardlearn" not in answer.headers.get("set-cookie", "")
        assert "<" not in answer.text
    stranger.cookies = {f"guardlearn_token_{stranger.bound.socket.getsockname()[1]}": "guess"}
    assert stranger.get("/").status == 403


def test_the_token_is_asked_for_once(stranger: Browser) -> None:
    token = stranger.bound.access.token
    assert len(token) >= 43 and token in stranger.bound.url
    answer = stranger.get(f"/items?where={quote('refinement()')}&token={token}&order=oldest")
    assert answer.status == 200 and answer.path == "/items?where=refinement%28%29&order=oldest"
    (cookie,) = answer.cookies
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and token not in answer.text
    assert stranger.get("/").status == 200
    assert stranger.another().get("/").status == 403


def test_a_token_leads_to_no_other_server(stranger: Browser) -> None:
    stranger_answer = stranger.ask("GET", f"//evil.example/?token={stranger.bound.access.token}", None, {}, hops=0)
    assert stranger_answer.status == 303
    assert not stranger_answer.headers["location"].startswith("//")


def test_others_may_use_any_address_but_no_made_up_name(stranger: Browser) -> None:
    assert hosted(stranger, "10.1.2.3:8765").status == 403  # served, but without the token
    assert hosted(stranger, socket.gethostname()).status == 403
    assert hosted(stranger, "evil.example").status == 421


def test_another_server_has_another_token(sqlite_files: Files) -> None:
    tokens = set()
    for _ in range(3):
        bound = bind("0.0.0.0", 0)
        bound.socket.close()
        tokens.add(bound.access.token)
    assert len(tokens) == 3
    bound = bind("127.0.0.1", 0)
    bound.socket.close()
    assert bound.access.token == "" and bound.url == bound.address


@pytest.mark.parametrize(
    ("host", "address", "others"),
    [("127.0.0.1", "127.0.0.1", False), ("::1", "::1", False), ("localhost", "127.0.0.1", False),
     ("0.0.0.0", "0.0.0.0", True), ("::", "::", True), ("box", "192.168.0.2", True), ("box", "127.0.1.1", False)],
)  # fmt: skip
def test_who_is_beyond_this_machine(host: str, address: str, others: bool) -> None:
    access = served_names(host, address)
    assert access.addresses == others and access.serves(f"[{host}]:1" if ":" in host else host)


@pytest.mark.parametrize(("host", "words"), [("", "names no address"), ("no.such.host.invalid", "names no address"),
                                             ("203.0.113.7", "cannot listen")])  # fmt: skip
def test_a_host_that_is_not_ours_is_one_line(host: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        bind(host, 0)
    assert "\n" not in str(caught.value)


def test_a_port_that_is_taken_is_one_line(browser: Browser) -> None:
    port = browser.bound.socket.getsockname()[1]
    with pytest.raises(UsageError, match=f"port {port}: Address already in use; give another --port"):
        bind("127.0.0.1", port)


def test_an_odd_cookie_is_no_fault(browser: Browser, stranger: Browser) -> None:
    for cookie in ("a=b; =; ;;", "\x80=1", 'x="unclosed', "guardlearn_actor=%ff%00"):
        assert browser.get("/items", Cookie=cookie).status == 200
        assert stranger.get("/items", Cookie=cookie).status == 403


def test_a_large_form_is_not_read(filled: Browser) -> None:
    big: dict[str, Any] = FORM | {"form_token": filled.opened.form_token, "reason": "x" * 70_000}
    assert filled.post("/mark", big).status == 413
    assert filled.post("/mark", {f"f{number}": "" for number in range(99)}).status == 400
