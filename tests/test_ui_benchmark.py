"""The benchmark of the trace browser runs, both sides find the same, and it says what was missed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "browsing.py"
PAGES = ["first page", "filter: common", "filter: rare", "filter: without an index", "filter: nothing", "no filter"]
PAGES += ["filter: a later page", "chain"]


@pytest.fixture(scope="module")
def browsing() -> Any:
    sys.path.insert(0, str(PROGRAM.parent))  # it imports what stands beside it; tests have a `browsing` of their own
    try:
        spec = importlib.util.spec_from_file_location("browsing_benchmark", PROGRAM)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(PROGRAM.parent))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_it_measures_every_page_and_leaves_nothing(tmp_path: Path) -> None:
    records = tmp_path / "records.json"
    records.write_text('{"sizes": {"other": 1}}', encoding="utf-8")
    (tmp_path / "work").mkdir()
    arguments = ["--sizes", "700", "--rounds", "1", "--work", str(tmp_path / "work"), "--json", str(records)]
    done = bench(*arguments)
    assert done.returncode in (0, 1) and "round 1 of 1" in done.stderr, done.stderr  # it may miss, on a busy machine
    assert list((tmp_path / "work").iterdir()) == []
    found = json.loads(done.stdout)["700"]
    assert list(found["pages"]) == PAGES and found["peak_mib"] > 20
    for row in found["pages"].values():
        assert row["limit_ms"] == pytest.approx(3 * row["sql_ms"] + 50, abs=0.1)
        assert row["holds"] == (row["page_ms"] <= row["limit_ms"])
    kept = json.loads(records.read_text(encoding="utf-8"))
    assert kept["sizes"] == {"other": 1}
    entry = kept["browsing"]["700"]
    assert entry["size"] == 700 and entry["measured"]["rounds"] == 1
    assert all(len(sides["page"]) == len(sides["sql"]) == 1 for sides in entry["pages"].values())


def test_what_is_missed_is_said(browsing: Any) -> None:
    fast, slow = {"page": [0.051, 0.9, 0.05], "sql": [0.001] * 3}, {"page": [0.2], "sql": [0.049]}
    entry = {"pages": {"fast": fast, "slow": slow}, "parts": {}, "peak_mib": 199.9}
    said = browsing.summary(entry)
    assert said["pages"]["fast"]["holds"] and not said["pages"]["slow"]["holds"] and not said["holds"]
    on = {"date": "-", "rounds": 3, "cores": 2, "memory_gib": 1, "arch": "a", "python": "3", "sqlite": "3"}
    sizes = {"700": entry | {"measured": on | {"load_average": 1}, "parts": {"count": 0.5}}}
    page = importlib.import_module("figures_browsing").browsing({"browsing": sizes})
    assert "| slow | 200.0 | 49.00 | 197 **missed** |" in page and "1 of 2 pages; 200 MiB (700)." in page
    entry["pages"] = {"fast": fast}
    assert browsing.summary(entry)["holds"]
    assert not browsing.summary(entry | {"peak_mib": 200.0})["holds"]


def test_sides_that_disagree_are_refused(browsing: Any) -> None:
    text = '<td class="id"><a href="/items/a%2F1">a</a></td>'
    browsing._must_agree("no filter", "/items", ["a/1"], text)
    for ids in ([], ["a/1", "b"], ["b"]):
        with pytest.raises(browsing.Refused, match="does not show"):
            browsing._must_agree("no filter", "/items", ids, text)
    with pytest.raises(browsing.Refused):
        browsing._must_agree("chain", "/items/x", ["x", "z"], "only x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--sizes", "10"], "below 500 attempts"), (["--sizes", "999999999999"], "smaller --sizes")],
)
def test_bad_sizes_are_one_line(arguments: list[str], words: str) -> None:
    done = bench(*arguments)
    assert done.returncode in (1, 2) and words in done.stderr.splitlines()[-1]
