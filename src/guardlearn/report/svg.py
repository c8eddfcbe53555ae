"""What matplotlib draws, as a part of the page: inline SVG in the page's own colours and font, equal for equal inputs.

A figure is drawn in marker colours, which become the page's CSS variables, so that light and dark are the page's
business. Texts stand in it as placeholders until the end: matplotlib never sees a name that it would take for
mathematics or has no glyph for. Nothing in it has an id, so several figures share a page. matplotlib is imported when
one is drawn.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guardlearn.errors import missing_library

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "Word", "inline"]

COLOURS = {
    "paper": "#0a0b01",
    "ink": "#0a0b02",
    "soft": "#0a0b03",
    "line": "#0a0b04",
    "base": "#0a0b05",
    "candidate": "#0a0b06",
}
"""CSS variables of the page, and the marker colour to draw each of them in."""

Word = Callable[[str], str]
"""Takes a text that is to stand in the figure and returns what to give to matplotlib in its place."""

_FONT_SIZE = 12.0  # in units of the viewBox, which a wide page shows about one to one
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "guardlearn",
    "path.simplify": False,
    "font.size": _FONT_SIZE,
    "text.color": COLOURS["soft"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.edgecolor": COLOURS["line"],
    "grid.color": COLOURS["line"],
    "grid.linewidth": 1.0,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
}
_PLACEHOLDER = re.compile(r"@(\d+)@")
_NUMBER = re.compile(r"-?\d+\.\d+")
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_DROPPED = frozenset({"id", "clip-path", "version"})


def inline(
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
    paint: Callable[[Axes, Word], None],
    spoken: str,
) -> str:
    """Return one figure as an `<svg>` element for an HTML page.

    Args:
        size: width and height, in units of the viewBox.
        margins: left, top, right and bottom of the axes, in the same units.
        paint: draws on the axes; every text goes through the `Word` it is given.
        spoken: the figure's numbers in words, for who cannot see it.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_library("matplotlib", "report", "drawing the report's figures") from None
    texts: list[str] = []

    def word(text: str) -> str:
        texts.append(text)
        return f"@{len(texts) - 1}@"

    (width, height), (left, top, right, bottom) = size, margins
    drawn = io.StringIO()
    # a user's own settings would change the page; these last for the drawing only
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width / 72, height / 72))
        figure.patch.set_visible(False)
        inner = ((width - left - right) / width, (height - top - bottom) / height)
        axes = figure.add_axes((left / width, bottom / height, *inner))
        axes.patch.set_visible(False)
        paint(axes, word)
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return _page_part(drawn.getvalue(), texts, spoken)


def _page_part(drawn: str, texts: list[str], spoken: str) -> str:
    root = ElementTree.fromstring(drawn)
    shapes = {shape.attrib["id"]: shape for shape in root.iter() if "id" in shape.attrib}
    tidy = ElementTree.Element("svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": spoken})
    for child in root:
        _copy(child, tidy, shapes, texts)
    return ElementTree.tostring(tidy, encoding="unicode")


def _copy(
    element: ElementTree.Element,
    into: ElementTree.Element,
    shapes: dict[str, ElementTree.Element],
    texts: list[str],
) -> None:
    """Copy what is seen: groups dissolve, a reused shape is put where it is used."""
    kind = element.tag.removeprefix(_SVG)
    if kind == "g":
        for child in element:
            _copy(child, into, shapes, texts)
    elif kind == "use":
        shape, at = shapes[element.attrib[_LINK].removeprefix("#")], element.attrib
        style = f"{at.get('style', '')}; {shape.attrib.get('style', '')}"
        place = _rounded(f"translate({float(at.get('x', 0)):.2f} {float(at.get('y', 0)):.2f})")
        ElementTree.SubElement(
            into, "path", {"d": _rounded(shape.attrib["d"]), "style": _style(style), "transform": place}
        )
    elif kind in ("path", "text"):
        kept = {name: _rounded(value) for name, value in element.attrib.items() if name not in _DROPPED}
        if "rotate(-0" in kept.get("transform", ""):
            del kept["transform"]
        if "style" in kept:
            kept["style"] = _style(element.attrib["style"])
        copy = ElementTree.SubElement(into, kind, kept)
        if element.text and kind == "text":
            copy.text = _PLACEHOLDER.sub(lambda match: texts[int(match[1])], element.text)


def _style(style: str) -> str:
    """Return the declarations without a font family, in the page's colours."""
    declared = [part.strip() for part in style.split(";")]
    kept = "; ".join(part for part in declared if part and not part.startswith("font-family"))
    for name, colour in COLOURS.items():
        kept = kept.replace(colour, f"var(--{name})")
    return kept


def _rounded(value: str) -> str:
    return _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), " ".join(value.split()))
