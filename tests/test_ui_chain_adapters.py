"""Adapters, rounds and evidence in the browser: what commands tell, and report pages under a policy of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from browsing import Browser, serving
from databases import Files, Server
from evidences import evidence_of
from guardlearn import lineage, report
from guardlearn.adapters import adapter_digest
from guardlearn.dag import ArtifactDAG, checkpoints
from guardlearn.report.why import why_lines
from guardlearn.ui.addresses import named_path
from registered import adapter, evidence, fill, round_of, train_side

HOSTILE = "<script>window.hit=1</script>\x1b[31m"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, databases: Files | Server) -> Path:
    return tmp_path_factory.mktemp("browsed")


@pytest.fixture(scope="module")
def path(databases: Files | Server, folder: Path) -> Iterator[str]:
    with databases.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            train_side(dag)
            ids = fill(dag, range(30))
            measured = {"evidence": evidence(folder / "measured")}
            round_of(dag, folder, 1, ids[:10], measured=measured)
            round_of(dag, folder, 2, ids, "refused", measured=measured)
            round_of(dag, folder, 3, ids, "trained")
            round_of(dag, folder, 1, ids[:3], "planned", learner="..")
            round_of(dag, folder, 1, ids[:3], learner=HOSTILE, measured={"evidence": None})
            dag.append_event("a1", "exclude", actor="ann", reason="copied")
        yield place.target


@pytest.fixture(scope="module")
def files(folder: Path) -> Path:
    here = folder / "evaluations"
    base = {f"g{group}.{n}": [["fail", "pass"]] for group in range(6) for n in range(2)}
    report.write(here / "good", evidence_of(base, {name: [["pass"]] for name in base}))
    report.write(here / "deep" / "er" / HOSTILE.replace("/", "_"), evidence_of(base, model=HOSTILE))
    (here / "broken").mkdir()
    (here / "broken" / "evidence.json").write_text('{"model": "m"}')
    (here / "other.json").write_text("{}")
    return here


@pytest.fixture(scope="module")
def browser(path: str, files: Path) -> Iterator[Browser]:
    with serving(path, evidence=(files,)) as opened:
        yield opened


@pytest.mark.slow
def test_adapters_are_listed_with_what_is_live(browser: Browser) -> None:
    found = browser.get("/adapters")
    words = found.words
    assert "Live for me: me/1 by the gate" in words
    assert words.index("me/3 trained") < words.index("me/2 refused") < words.index("me/1 live promoted")
    assert named_path("/adapters", "me/2") in found.links()
    assert "<script>" not in found.text.replace("<script src", "")


def test_an_adapter_is_told_as_why_tells_it(browser: Browser, path: str) -> None:
    with ArtifactDAG.load(path, read_only=True) as dag:
        records = lineage.records(dag)
        for record in records:
            found = browser.get(named_path("/adapters", record.name))
            assert found.status == 200
            for label, text in why_lines(lineage.explain(dag, record)):
                for part in (label, text):
                    # what cannot be seen is marked by the style sheet
                    assert " ".join(part.replace("\x1b", " ").split()) in found.words.replace("\x1b", " ")
    assert "excluded: 1 item" in browser.get(named_path("/adapters", "me/2")).words
    assert "/items/a9" in browser.get(named_path("/adapters", "me/1")).links()


def test_no_name_in_an_address_reaches_the_file_system(browser: Browser, folder: Path) -> None:
    place = folder / "me" / "001" / "adapter"
    assert (place / "adapter_config.json").is_file()
    for name in (str(place), f"{place}/", "promoted", "../../etc/passwd", "3", "me/9", "\0"):
        assert browser.get(named_path("/adapters", name)).status == 404
    for name in (str(folder / "evaluations" / "good" / "evidence.json"), "nothing", "..%2f"):
        assert browser.get(named_path("/evidence", name)).status == 404
        assert browser.get(named_path("/rounds", name)).status == 404


def test_rounds_are_listed_by_learner(browser: Browser) -> None:
    found = browser.get("/rounds")
    words = found.words
    assert words.index("3 under way (trained)") < words.index("2 refused") < words.rindex("1 promoted")
    for learner in ("me", "..", HOSTILE):
        address = named_path("/rounds", learner)
        assert address in found.links()
        page = browser.get(address)
        assert page.status == 200 and "rounds" in page.words
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
        assert "<script" not in page.text


def test_evidence_of_rounds_and_files_leads_to_report_pages(browser: Browser, path: str, files: Path) -> None:
    found = browser.get("/evidence")
    words = found.words
    assert words.index("Measured by rounds") < words.index("me/1") < words.index("me/2") < words.index("Files")
    assert f"{files}/broken/evidence.json is no evidence of guardlearn" in words
    assert "other.json" not in words
    addresses = found.links("/evidence/")
    assert len(addresses) == len(set(addresses)) == 4
    for address in addresses:
        page = browser.get(address)
        assert page.status == 200
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
        assert "<script" not in page.text and "\x1b" not in page.text
    good = report.load(files / "good" / "evidence.json")
    assert report.headline(good) in words
    assert any(browser.get(address).text == report.html(good) for address in addresses)
    assert named_path("/evidence", addresses[0].rpartition("/")[2]) in browser.get("/adapters/me%2F1").links()


def test_a_rounds_report_has_its_pairs_while_its_file_says_the_same(databases: Files | Server, tmp_path: Path) -> None:
    """The pairs stay in a file of the round's folder; another file in its place is not taken for it."""
    with databases.installed() as place:
        said = evidence(tmp_path / "measured")
        base = {f"h{n // 2}.{n}": [["fail", "pass"]] for n in range(8)}
        whole = evidence_of(base, {name: [["pass"]] for name in base})
        report.write(tmp_path / "round", whole)
        stored = json.loads(report.to_json(whole)) | {"per_spec": None}
        del stored["per_spec"]
        file = str(tmp_path / "round" / "evidence.json")
        with ArtifactDAG.load(place.target) as dag:
            train_side(dag)
            ids = fill(dag, range(4))
            round_of(dag, tmp_path, 1, ids, measured={"evidence": stored, "evidence_file": file})
            round_of(dag, tmp_path, 2, ids, measured={"evidence": said, "evidence_file": file})
        with serving(place.target) as browser:
            one, two = browser.get("/evidence").links("/evidence/")
            assert "h3.7" in browser.get(one).words
            assert "h3.7" not in browser.get(two).words


def test_where_nothing_is_the_pages_say_what_makes_it(databases: Files | Server) -> None:
    with databases.installed() as place, serving(place.target) as browser:
        assert "No round yet: guardlearn loop runs one." in browser.get("/adapters").words
        assert "No round yet: guardlearn loop runs one." in browser.get("/rounds").words
        words = browser.get("/evidence").words
        assert "No evaluation measured by a round of this repository." in words
        assert "--evidence FOLDER" in words


def test_an_increment_is_an_adapter_too(databases: Files | Server, tmp_path: Path) -> None:
    """What the guide's incremental loop made is known by its training checkpoint alone."""
    made = adapter(tmp_path / "increment")
    about = {"adapter": str(made), "adapter_digest": adapter_digest(made), "parent_adapter": ""}
    with databases.installed() as place:
        with ArtifactDAG.load(place.target) as dag:
            train_side(dag)
            contents = {name: name.encode() for name in fill(dag, range(3))}
            with dag.writing() as connection:
                checkpoints.append(connection, "me", contents, about | {"seq": 3, "traces_processed": 3})
        with serving(place.target) as browser:
            found = browser.get("/adapters")
            (address,) = found.links("/adapters/")
            assert "increment" in found.words
            page = browser.get(address)
            assert page.status == 200
            assert "learned from 3 items" in page.words
