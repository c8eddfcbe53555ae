"""A real server of `guardlearn ui` in a thread, and a small browser: cookies, redirects, no script."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import http.client
import os
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

import uvicorn

from guardlearn.ui.app import application
from guardlearn.ui.opened import Opened
from guardlearn.ui.serving import Bound, bind, open_for_pages


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    text: str
    path: str
    """Of the page that was shown in the end."""
    cookies: tuple[str, ...] = ()
    """Set-Cookie headers, whole."""

    @property
    def words(self) -> str:
        """What a person reads: without tags, entities resolved, runs of white space as one blank."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.text)).split())

    def links(self, begins: str = "/") -> list[str]:
        return [html.unescape(found) for found in re.findall(r'href="([^"]*)"', self.text) if found.startswith(begins)]

    def fields(self) -> dict[str, str]:
        """The hidden fields and texts of the page's form that writes."""
        found = re.findall(r'<input[^>]*?name="(\w+)" value="([^"]*)"', self.text)
        return {name: html.unescape(value) for name, value in found if name not in ("kind", "scope", "where")}


class Browser:
    """Asks one server; several browsers are several people."""

    def __init__(self, bound: Bound, opened: Opened) -> None:
        self.bound, self.opened = bound, opened
        self.url = bound.address.rstrip("/")
        """Without a slash at the end."""
        self.cookies: dict[str, str] = {}
        self.host = urlsplit(bound.address).netloc

    def another(self) -> Browser:
        """Return the browser of somebody else."""
        return Browser(self.bound, self.opened)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def part(self, path: str) -> Answer:
        """Ask as htmx does."""
        return self.ask("GET", path, None, {"HX-Request": "true"})

    def post(self, path: str, form: Mapping[str, Any], **headers: str) -> Answer:
        given = {"Origin": self.url, "Sec-Fetch-Site": "same-origin"} | headers
        body = urlencode(form, errors="surrogatepass").encode()
        return self.ask("POST", path, body, {"Content-Type": "application/x-www-form-urlencoded"} | given)

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], hops: int = 3) -> Answer:
        """Send one request; follow what it leads to."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        address, port, *_ = self.bound.socket.getsockname()
        with contextlib.closing(http.client.HTTPConnection(address, port, timeout=60)) as connection:
            connection.request(method, quote(path, safe="/?&=%+~:;,()!*'@$-._"), body, {"Host": self.host} | sent)
            came = connection.getresponse()
            text, named = came.read().decode("utf-8"), {name.lower(): value for name, value in came.getheaders()}
        set_cookies = tuple(value for name, value in came.getheaders() if name.lower() == "set-cookie")
        for cookie in set_cookies:
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        if came.status in (302, 303, 307) and hops:
            found = self.ask("GET", urljoin(path, named["location"]), None, {}, hops - 1)
            return dataclasses.replace(found, cookies=set_cookies + found.cookies)
        return Answer(came.status, named, text, path, set_cookies)


@contextlib.contextmanager
def serving(target: str | os.PathLike[str], *, host: str = "127.0.0.1", **settings: Any) -> Iterator[Browser]:
    """Serve ℛ until the end of the block; yields a browser at its door.

    Args:
        target: path or URL.
        host: where it listens.
        settings: of `open_for_pages`.
    """
    opened = open_for_pages(str(target), **{"actor": "the tester"} | settings)
    bound = bind(host, 0)
    config = uvicorn.Config(application(opened, bound.access), log_config=None, access_log=False, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound.socket]}, daemon=True)
    thread.start()
    try:
        yield Browser(bound, opened)
    finally:
        server.should_exit = True
        thread.join(20)
        bound.socket.close()
        opened.dag.close()
    assert not thread.is_alive()
