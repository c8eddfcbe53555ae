"""Chromium, driven by Playwright, for tests that look at pages as people do; they skip with one line without it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()
READERS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
"""How a page is looked at."""
UNFOLD = "() => document.querySelectorAll('details').forEach(each => { each.open = true; })"


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """Start the browser until the end of the block."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install 'guardlearn[browser]'"
    )
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        engine = driver.chromium.launch(executable_path=found, args=ARGUMENTS)
        try:
            yield engine
        finally:
            engine.close()


class Visit:
    """A page in a window of its own, with what it asked for and what it said on the console."""

    def __init__(self, engine: Browser, **settings: Any) -> None:
        self.context = engine.new_context(**settings)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def findings(self) -> list[str]:
        """Return what axe-core finds serious or critical: rule, impact, how often, where first."""
        from axe_playwright_python.sync_playwright import Axe

        return [
            f"{each['id']} ({each['impact']}, {len(each['nodes'])}): {each['nodes'][0]['html'][:200]}"
            for each in Axe().run(self.page).response["violations"]
            if each["impact"] in ("serious", "critical")
        ]
