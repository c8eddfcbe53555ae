"""docs/ as a site: one order of pages, links that hold on a code host too, a reference that leaves nothing out.

This looks at pages and at what the site adds to them; test_site_build.py builds it.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import typer.main
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import guardlearn
from guardlearn import settings
from guardlearn.cli import app
from shown import blocks
from test_architecture import LAYERS, PACKAGE

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

guardlearn_site = importlib.import_module("guardlearn_site")
api, commands, docstrings, evidence, links, navigation, tables = (
    importlib.import_module(f"guardlearn_site.{name}")
    for name in ("api", "commands", "docstrings", "evidence", "links", "navigation", "tables")
)

PAGES = sorted(path for path in DOCS.rglob("*.md") if path.name != "index.md")
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# -- pages and links


def test_every_page_has_one_place_in_one_order():
    placed = [page for pages in navigation.sections(INDEX).values() for _, page in pages]
    assert sorted(placed) == sorted(page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES)
    assert next(iter(navigation.sections(INDEX))) == "Begin"
    made = navigation.toctrees(INDEX)
    assert made.count("```{toctree}") == len(navigation.sections(INDEX)) and "Tutorial <tutorial>\n" in made


def slugs(page: Path) -> set[str]:
    """The anchors that a code host makes of a page's headings, and those that stand in it."""
    text = "".join(part for words, part in links.prose(page.read_text(encoding="utf-8")) if words or "`" in part)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [
        re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings
    ]
    return {*plain, *re.findall(r'id="([^"]+)"', text)}


EVIDENCE = {f"#{path.stem}" for path in (DOCS / "evidence").glob("*.json")}
"""Sections of real.md that the site makes."""


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md", *PAGES], ids=relative)
def test_every_link_leads_somewhere_on_a_code_host(page):
    text = "".join(part for words, part in links.prose(page.read_text(encoding="utf-8")) if words)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor and f"#{anchor}" not in EVIDENCE:
            assert anchor in slugs(found), f"{target}: no such heading"


@pytest.mark.parametrize("page", [DOCS / "index.md", *PAGES], ids=relative)
def test_every_link_of_the_site_stays_inside_or_is_a_file_that_comes_along(page):
    whole = re.search(r"^<!-- site: whole (\S+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    source = (page.parent / whole[1]).resolve() if whole else page
    made = links.rebased(source.read_text(encoding="utf-8"), source, page)
    for words, part in links.prose(made):
        for target in re.findall(r"\]\(([^()\s]+)\)", part) if words else []:
            path = target.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path):
                found = (page.parent / path).resolve()
                assert found.is_file(), target
                assert found.suffix != ".md" or found.is_relative_to(DOCS), f"{target} leaves the site"


def test_links_out_of_docs_lead_to_the_page_that_shows_the_file():
    page = DOCS / "texts" / "readme.md"
    text = "[a](docs/gpu.md#run) ![b](docs/report.png) [c](CONTRIBUTING.md) [d](docs/evidence) [e](examples/log.jsonl)"
    assert links.rebased(text, ROOT / "README.md", page) == (
        "[a](../gpu.md#run) ![b](../report.png) [c](contributing.md) [d](../real.md) [e](../../examples/log.jsonl)"
    )
    assert links.rebased("[own](#here) [x](https://a.b/c.md)", page, page) == "[own](#here) [x](https://a.b/c.md)"
    assert links.rebased("[gone](nowhere.md)", page, page) == "[gone](nowhere.md)"  # Sphinx will say so
    assert links.rebased("[theirs](04_learning_loop.md)", ROOT / "tests" / "data" / "x.md", page) == "theirs"
    for fence, inner in (("~~~", "```"), ("````", "```"), ("```", "~~~")):
        code = f"{fence}sh\n{inner}\n[a](b.md)\n{fence}\n"
        assert links.rebased(code + "[a](gone.md)", ROOT / "README.md", page) == code + "a"
    assert links.rebased("`[a](b.md)`\n```\n[a](b.md)\n```\n", ROOT / "README.md", page).count("[a](b.md)") == 2


MARKDOWN = st.lists(
    st.sampled_from(
        ["word ", "`code` ", "``a ` b`` ", "\n", "```\n", "````sh\n", "~~~\n", "[a](gone.md) ", "    x\n", "*"]
    )
).map("".join)


@hypothesis_settings(deadline=None)
@given(MARKDOWN)
def test_parts_of_a_text_are_the_text_and_links_in_code_are_no_links(text):
    parts = list(links.prose(text))
    assert "".join(part for _, part in parts) == text
    page = DOCS / "index.md"
    made = links.rebased(text, ROOT / "elsewhere.md", page)
    code = "".join(part for words, part in parts if not words)
    words = "".join(part for words, part in parts if words)
    assert made.count("[a](gone.md)") == code.count("[a](gone.md)")
    assert len(made) == len(text) - (len("[a](gone.md)") - 1) * words.count("[a](gone.md)")


def test_an_unknown_block_is_named(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(ValueError, match=r"no block 'proof'; there are exports, .*, whole"):
        guardlearn_site.filled("<!-- site: proof -->\nhere\n<!-- site: end -->\n", page)
    assert guardlearn_site.filled("<!-- figures: begin -->\n1\n<!-- figures: end -->\n", page).count("1") == 1


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_nothing_that_a_page_asks_for_is_left(page):
    asked = re.findall(r"^<!-- site: (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(asked) <= {*guardlearn_site.BLOCKS, "whole", "end"}
    if "whole" not in asked:
        assert asked.count("end") == len(asked) / 2


# -- the reference


def test_every_stage_is_on_one_page_of_the_reference():
    shown = Counter(module.split(".")[1] for module in api.listed() if module.count(".") == 1)
    there = {name for name in LAYERS if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}
    assert set(shown) == there - {"cli", "__main__"} and max(shown.values()) == 1


@pytest.mark.slow
def test_every_public_name_is_documented_once():
    named = Counter(f"{module}.{name}" for module in api.listed() for name in api.names_of(module))
    assert max(named.values()) == 1
    for module in api.listed():
        for name in getattr(importlib.import_module(module), "__all__", []):
            home = api.home(module, name)
            if home.split(".")[1] == module.split(".")[1]:
                assert (home, name) in api.documented(), f"{module}.{name}"
    assert "guardlearn.guards.Limits" in named and "guardlearn.guards.process.Limits" not in named
    assert "guardlearn.dag.ArtifactDAG" in named and "guardlearn.dag.store.ArtifactDAG" not in named


def test_what_guardlearn_exports_is_a_table_with_a_row_for_each():
    rows = re.findall(r"^\| \{py:obj\}`(\S+) <([\w.]+)>` \| (.*) \|$", api.exports(), re.MULTILINE)
    assert [name for name, _, _ in rows] == [name for name in guardlearn.__all__ if name != "__version__"]
    for name, path, said in rows:
        module, _, same = path.rpartition(".")
        assert getattr(importlib.import_module(module), same) is getattr(guardlearn, name)
        assert said, f"{name} has no docstring"


def test_every_command_and_option_is_shown_with_its_own_help():
    made = commands.commands()
    group = typer.main.get_command(app)
    sections = re.split(r"^##+ ", made, flags=re.MULTILINE)[1:]
    assert [each.splitlines()[0] for each in sections if each.splitlines()[0].count(" ") == 1] == [
        f"guardlearn {name}" for name in group.commands
    ]
    for name, command in group.commands.items():
        for inner, each in {"": command, **getattr(command, "commands", {})}.items():
            title = rf"guardlearn {name} [A-Z]+ {inner}" if inner else f"guardlearn {name}"
            (section,) = (text for text in sections if re.fullmatch(title, text.splitlines()[0]))
            said = section.replace("\\", "")
            for parameter in each.params:
                argument = not parameter.opts[0].startswith("-")
                assert (parameter.metavar or parameter.name.upper() if argument else parameter.opts[0]) in said
                help_ = (parameter.help or "").replace("\\", "")
                assert " ".join(help_.split()) in " ".join(said.split()), (title, parameter.name)


@pytest.mark.slow
def test_every_table_of_the_settings_file_is_shown_as_it_is_read():
    assert set(tables.READERS) == set(settings.TABLES) - {"guards"}
    asked = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "table":
                match node.args:
                    case [ast.Constant(value=str(name)), ast.Name(id=reader)]:
                        asked.add((name, reader))
    assert {(name, reader.rpartition(".")[2]) for name, reader in tables.READERS.items()} == asked
    for reader in tables.READERS.values():
        module, _, name = reader.rpartition(".")
        known = getattr(importlib.import_module(module), name)
        names = getattr(known, "__struct_fields__", None) or tuple(known.__dataclass_fields__)
        shown = tables.fields(reader)
        assert tuple(shown) == tuple(names)
        assert all(default for default, _ in shown.values())


# -- concepts, evidence


def test_concepts_name_every_definition_that_the_source_does_and_where():
    text = (DOCS / "concepts.md").read_text(encoding="utf-8")
    named: dict[str, dict[int, str]] = {"Definition": {}, "Theorem": {}}
    for kind, table in zip(named, re.findall(r"^\| (?:definition|theorem) \|.*?\n\n", text, re.M | re.S), strict=True):
        for numbers, row in re.findall(r"^\| ([\d-]+) \|(.*)$", table, re.MULTILINE):
            first, _, last = numbers.partition("-")
            named[kind] |= dict.fromkeys(range(int(first), int(last or first) + 1), row)
    sources = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    for kind, rows in named.items():
        assert set(rows) == set.union(*(said(source, kind) for source in sources.values()))
        for number, row in rows.items():
            modules = re.findall(r"`(guardlearn\.[\w.]+)`", row)
            assert modules
            for module in modules:
                below = PACKAGE.joinpath(*module.split(".")[1:])
                texts = [source for path, source in sources.items() if path.is_relative_to(below)]
                texts += [sources[below.with_suffix(".py")]] if below.with_suffix(".py") in sources else []
                assert any(number in said(source, kind) for source in texts), f"{module} does not name {kind} {number}"


def said(source: str, kind: str) -> set[int]:
    """The numbers of definitions (or theorems) that a text names: `Definitions 2, 10, 14 and 17`, `38-43`."""
    found = set()
    for listed in re.findall(rf"{kind}s? (\d+(?:(?:, | and |-)\d+)*)", source):
        for part in re.split(r", | and ", listed):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def test_the_table_of_proofs_is_what_the_files_say(monkeypatch, tmp_path):
    rows = dict(re.findall(r"^\| \[(\w+)\]\(#\1\) \| (.*)$", evidence.proofs(), re.MULTILINE))
    assert set(rows) == {path.stem for path in (DOCS / "evidence").glob("*.json")}
    for name, proof in evidence.files().items():
        assert rows[name].startswith(f"yes | {proof['date']} |") and proof["commit"][:10] in rows[name]
    details = evidence.details()
    assert all(f"### {name}\n" in details for name in rows) and details.count("It holds.") == len(rows)
    failed = json.loads((DOCS / "evidence" / "pairs.json").read_text()) | {"holds": False, "claim": "a | b <c> *d*"}
    (tmp_path / "pairs.json").write_text(json.dumps(failed))
    monkeypatch.setattr(evidence, "EVIDENCE", tmp_path)
    assert "| [pairs](#pairs) | **no** |" in evidence.proofs() and "| demo | not run yet |" in evidence.proofs()
    assert "a \\| b &lt;c> \\*d\\* **It does not hold.**" in evidence.details()


def test_the_noise_is_that_of_the_demos():
    for name in ("demo", "demo_swapped"):
        found = evidence.files()[name]["result"]["evidence"]["difference"]
        assert (
            f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f} | {100 * found['minimum_detectable']:.1f} points"
            in (evidence.noise())
        )


def test_pages_with_figures_of_their_own_type_none_in_real():
    text = re.sub(r"<!-- site.*?site: end -->", "", (DOCS / "real.md").read_text(encoding="utf-8"), flags=re.S)
    assert not re.findall(r"\d+(?:\.\d+)? (?:%|points|seconds|minutes)", text.replace("at 95 %", ""))
    assert len(blocks(DOCS / "real.md")) == 1


# -- docstrings


WORDS = st.text(alphabet="ab *|_\\<>:.-`'\"()[]φ", min_size=1, max_size=30).filter(lambda text: text.count("`") == 0)


@hypothesis_settings(deadline=None)  # the first parse imports
@given(WORDS)
def test_words_of_a_docstring_come_out_as_they_were(text):
    import docutils.core

    asked = f"Word {text} end."
    tree = docutils.core.publish_doctree(
        docstrings.marked_up(asked), settings_overrides={"report_level": 5, "halt_level": 5}
    )
    assert [node.tagname for node in tree.children] == ["paragraph"]
    assert " ".join(tree.astext().split()) == " ".join(asked.split())


@hypothesis_settings(deadline=None)
@given(st.lists(st.sampled_from(["`a`", "``b*``", "x", "s ", ". ", "(", ") ", "-", "_ ", "*", ": "])).map("".join))
def test_code_is_code_whatever_stands_beside_it(text):
    import docutils.core

    spans = len(re.findall(r"(`+)[^`]+\1", text))
    tree = docutils.core.publish_doctree(
        docstrings.marked_up(f"Word {text} end."), settings_overrides={"report_level": 5}
    )
    assert [node.tagname for node in tree.children] == ["paragraph"]
    assert sum(node.tagname == "literal" for node in tree.findall()) == spans
    assert " ".join(tree.astext().split()) == " ".join(f"Word {text} end.".replace("`", "").split())


def test_code_programs_and_sections_of_a_docstring():
    text = "Say `a_`s and x_, *y*.\n\n    program | of `mine`\n\nArgs:\n    x_: The `b`.\n\n        More *words*.\n"
    assert list(docstrings.lines_marked_up(text.splitlines())) == [
        "Say ``a_``\\ s and x\\_, \\*y\\*.", "", "::", "", "    program | of `mine`", "", "Args:",
        "    x_: The ``b``.", "", "        More \\*words\\*.",
    ]  # fmt: skip
