"""The site is built as CI builds it, every warning an error, and every link of what came out is followed."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from shown import ROOT

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Where a page leads, what it loads, and which places it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.leads: list[str] = []
        self.loads: list[str] = []
        self.places = {""}
        self.headings: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.leads.append(found["href"])
        elif tag == "link" and "stylesheet" in found.get("rel", ""):
            self.loads.append(found["href"])
        elif tag in ("img", "script", "iframe") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "h1":
            self.headings.append(tag)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", str(out / "read")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(out / "html")],
        cwd=out, env=os.environ | {"PYTHONWARNINGS": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return out / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def test_every_link_inside_leads_to_a_page_and_a_place_on_it(site, pages):
    broken, followed = [], 0
    for path, page in pages.items():
        for target in page.leads:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            followed += 1
            there = pages[found].places if found in pages else None
            if not found.is_file() or (there is not None and unquote(parts.fragment) not in there):
                broken.append((path.relative_to(site).as_posix(), target))
    assert broken == [] and followed > 5000


def test_nothing_is_loaded_from_elsewhere_and_every_file_is_there(pages):
    for path, page in pages.items():
        for target in page.loads:
            parts = urlsplit(target)
            assert not parts.scheme and not parts.netloc, target
            assert (path.parent / unquote(parts.path)).is_file(), target


def test_each_page_has_one_headline_and_no_mark_of_ours(pages):
    for path, page in pages.items():
        text = path.read_text(encoding="utf-8")
        assert "site: end" not in text and "{py:" not in text, path
        assert len(page.headings) == 1 or path.name in ("genindex.html", "py-modindex.html", "search.html"), path


def test_the_site_shows_what_was_made_for_it(site, pages):
    def text(name: str) -> str:
        return (site / f"{name}.html").read_text(encoding="utf-8")

    assert "guardlearn.dag.ArtifactDAG.extract" in text("reference/repository")
    assert 'id="guardlearn-collect"' in text("reference/commands")
    assert 'id="round-kills"' in text("real") and "Figures of round_kills" in text("real")
    assert "reference/repository.html#" in text("concepts")
    assert len(pages[site / "index.html"].leads) > 40
