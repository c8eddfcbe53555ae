"""What the site holds beyond the pages as they stand: links that leave docs/, and blocks made from code and evidence.

A page is plain Markdown that reads well on a code host. Where the site has more to show, the page has

    <!-- site: NAME ARGUMENTS -->
    What a code host shows instead.
    <!-- site: end -->

and when the site is built, this becomes what `BLOCKS[NAME]` returns: Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardlearn_site import api, commands, docstrings, evidence, links, navigation, tables

if TYPE_CHECKING:
    from sphinx.application import Sphinx

BLOCKS: dict[str, Callable[..., str]] = {
    "exports": api.exports,
    "modules": api.modules,
    "commands": commands.commands,
    "settings": tables.settings,
    "proofs": evidence.proofs,
    "details": evidence.details,
    "noise": evidence.noise,
}
"""What a line asks for → the function that writes it, given the line's words."""

_MARK = re.compile(
    r"^<!-- site: (?P<name>\w+)(?P<words>(?: \S+)*) -->\n.*?^<!-- site: end -->$", re.MULTILINE | re.DOTALL
)
_WHOLE = re.compile(r"^<!-- site: whole (\S+) -->$", re.MULTILINE)


def filled(text: str, page: Path) -> str:
    """Return a page's text as the site reads it.

    Args:
        text: The page as it stands.
        page: Its file; relative links start there.

    Raises:
        ValueError: A line asks for a block that is not there.
    """
    whole = _WHOLE.search(text)
    source = (page.parent / whole[1]).resolve() if whole else page
    shown = source.read_text(encoding="utf-8") if whole else text
    return _MARK.sub(_block, api.linked(links.rebased(shown, source, page)))


def _block(match: re.Match[str]) -> str:
    if match["name"] not in BLOCKS:
        raise ValueError(f"no block {match['name']!r}; there are {', '.join([*BLOCKS, 'whole'])}")
    return BLOCKS[match["name"]](*match["words"].split())


def _read(app: Sphinx, name: str, content: list[str]) -> None:
    content[0] = filled(content[0], Path(app.env.doc2path(name)))
    if name == app.config.root_doc:
        content[0] += navigation.toctrees(content[0])


def _made(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Name the pages to read again although they are as they were: what they show is made from code and evidence."""
    found = (Path(env.doc2path(name)) for name in env.found_docs)
    return [env.path2doc(str(page)) for page in found if "<!-- site: " in page.read_text(encoding="utf-8")]


def _internal(app: Sphinx, env: Any, node: Any, shown: Any) -> Any:
    """Show a name of a module that the reference leaves out as it is: signatures name them, nobody needs them."""
    module = str(node.get("reftarget", "")).rpartition(".")[0]
    ours = node.get("refdomain") == "py" and module.startswith("guardlearn.")
    return shown if ours and module not in api.listed() else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Let Sphinx read pages through `filled` and docstrings through `docstrings.marked_up`."""
    app.connect("source-read", _read)
    app.connect("env-get-outdated", _made)
    app.connect("missing-reference", _internal)
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)  # napoleon comes at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
