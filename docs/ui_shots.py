"""The pictures of docs/browser.md, taken in Chromium: python docs/ui_shots.py RUNS.DB [MODEL].

RUNS.DB is a repository with refined chains, as `guardlearn demo` leaves it; MODEL is the one whose tokenizer
shows tokens (default: demo).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, sync_playwright

from guardlearn.dag import ArtifactDAG
from guardlearn.models import resolve_model
from guardlearn.predicates import parse
from guardlearn.ui.addresses import item_path, with_query
from guardlearn.ui.app import application
from guardlearn.ui.serving import bind, open_for_pages

HERE = Path(__file__).absolute().parent
MOST_BYTES = 300_000
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    """Take both pictures."""
    place, model = Path(sys.argv[1]).absolute(), resolve_model(sys.argv[2] if len(sys.argv) > 2 else "demo")
    target = place.name
    os.chdir(place.parent)  # the page shows the path as it was given
    with ArtifactDAG.load(target, read_only=True) as dag:
        wanted = parse("refinement() & retries(at_least=2, at_most=2) & source('generator')")
        chosen = min(dag.extract(wanted, limit=200), key=lambda item: len(item.specification + item.artifact))
    with _serving(target, str(model)) as home, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1100, "height": 1300}, color_scheme="light")
        page.goto(home + item_path(chosen.id), wait_until="networkidle")
        _shoot(page, "ui-chain.png")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 1100, "height": 900})
        page.goto(home + with_query(item_path(chosen.id, "rows"), view="repair"), wait_until="networkidle")
        _shoot(page, "ui-rows.png")
        browser.close()


def _shoot(page: Page, name: str) -> None:
    page.screenshot(path=HERE / name)
    size = (HERE / name).stat().st_size
    print(f"{HERE / name}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{name} has {size:,} bytes; at most {MOST_BYTES:,} may stand in docs: choose a shorter chain")


@contextlib.contextmanager
def _serving(target: str, model: str) -> Iterator[str]:
    opened = open_for_pages(target, actor="you", read_only=True, model=model)
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application(opened, bound.access), log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound.socket]}, daemon=True)
    thread.start()
    try:
        yield bound.address.rstrip("/")
    finally:
        server.should_exit = True
        thread.join(10)
        opened.dag.close()


if __name__ == "__main__":
    main()
