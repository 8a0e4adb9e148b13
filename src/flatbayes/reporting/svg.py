"""Reproducible SVG figures with matplotlib.

The placeholder colours of `flatbayes.plotting.theme` become `currentColor` and CSS variables in a page, so that a
figure follows the light or dark theme of the reader; in a file of its own they become fixed colours, and a style
sheet in the file replaces them where the reader prefers dark pages. Programs that ignore it show the light figure.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from flatbayes.plotting.theme import FLAT, INK, PAGE, PLAIN, RC_PARAMS, TIE, UNITS_PER_INCH

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure


PAGE_COLOURS = {
    INK: "currentColor",
    PLAIN: "var(--plain)",
    FLAT: "var(--flat)",
    TIE: "var(--tie)",
    PAGE: "var(--page)",
}
FILE_COLOURS = {INK: "#1d2430", PLAIN: "#d55e00", FLAT: "#0072b2", TIE: "#6b7280", PAGE: "#ffffff"}
DARK_FILE_COLOURS = {INK: "#e4e8ee", PLAIN: "#f0883e", FLAT: "#56b4e9", TIE: "#8a94a3", PAGE: "#12161c"}
BORDER_COLOUR, DARK_BORDER_COLOUR = "#d5dae1", "#2c343f"
"""Hairline around the background of a file."""

FONT_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
ROOT_STYLE = {"style": "stroke-linejoin: round; stroke-linecap: butt"}
PANEL_WIDTH_PX = 340.0
"""Width of a panel in CSS pixels: three panels beside each other on a desktop, one on a phone."""


@dataclass(frozen=True)
class Panel:
    """One small figure of a page."""

    title: str
    note: str
    svg: str


@contextmanager
def new_figure(width: float, height: float) -> Iterator["Figure"]:
    """A figure in the style of this package, outside the global state of pyplot.

    Sizes are in CSS pixels.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib  # here, since it is slow to import
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC_PARAMS)  # type: ignore[arg-type]
        yield Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH))


def to_inline_svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an `<svg>` element for a page.

    The figure is one of `new_figure`, inside its context. `name` is the prefix of every id, unique in the page, and
    `label` the description for screen readers.
    """
    root = clean_svg(figure, name, PAGE_COLOURS)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label, **ROOT_STYLE}
    return ElementTree.tostring(root, encoding="unicode")


def to_svg_file(figure: "Figure", name: str, label: str, *, card: bool = False) -> str:
    """The figure as an SVG file on a background of its own: white, or dark where the reader prefers dark pages.

    The arguments are those of `to_inline_svg`; the background of a `card` has round corners and a hairline around it.
    """
    root = clean_svg(figure, name, FILE_COLOURS)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "width": width,
        "height": height,
        "role": "img",
        "aria-label": label,
        **ROOT_STYLE,
    }
    inset = 0.5 if card else 0.0
    background = {"x": inset, "y": inset, "width": float(width) - 2 * inset, "height": float(height) - 2 * inset}
    attributes = {key: f"{value:g}" for key, value in background.items()} | {"rx": "10" if card else "0"}
    stroke = f"; stroke: {BORDER_COLOUR}" if card else ""
    root.insert(0, ElementTree.Element("rect", attributes | {"style": f"fill: {FILE_COLOURS[PAGE]}{stroke}"}))
    style = ElementTree.Element("style")
    style.text = make_dark_style()
    root.insert(0, style)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def make_dark_style() -> str:
    """Style sheet that replaces the fixed colours of a file where the reader prefers dark pages."""
    colours = {FILE_COLOURS[name]: dark for name, dark in DARK_FILE_COLOURS.items()}
    rules = [
        f'[style*="{key}: {light}"] {{ {key}: {dark} !important }}'
        for light, dark in (colours | {BORDER_COLOUR: DARK_BORDER_COLOUR}).items()
        for key in ("fill", "stroke")
    ]
    return "@media (prefers-color-scheme: dark) {\n" + "\n".join(rules) + "\n}"


def clean_svg(figure: "Figure", name: str, colours: Mapping[str, str]) -> ElementTree.Element:
    """The SVG of matplotlib without metadata, namespaces and unused ids, with rounded numbers and these colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in [c for c in parent if strip_namespace(c.tag) in ("metadata", "style")]:
            parent.remove(child)
    rename = {old: f"{name}-{index}" for index, old in enumerate(list_referenced_ids(root))}
    for element in root.iter():
        element.tag = strip_namespace(element.tag)
        element.attrib = {
            strip_namespace(key): rewrite_attribute(strip_namespace(key), value, rename, colours)
            for key, value in element.attrib.items()
            if key != "id" or value in rename
        }
        if element.text is not None and not element.text.strip():
            element.text = None
        element.tail = "\n" if strip_namespace(element.tag) == "g" else None
    return root


def strip_namespace(key: str) -> str:
    """A tag or attribute without its namespace."""
    return key.rpartition("}")[2]


def list_referenced_ids(root: ElementTree.Element) -> list[str]:
    """The ids that are referenced, in order of appearance."""
    ids: dict[str, None] = {}
    for element in root.iter():
        for value in element.attrib.values():
            ids.update(dict.fromkeys(re.findall(r"(?:url\(|^)#([\w-]+)", value)))
    return list(ids)


def rewrite_attribute(key: str, value: str, rename: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """An attribute with new ids, colours and fonts, and rounded coordinates."""
    if key == "id":
        return rename[value]
    if key == "href" or "url(#" in value:
        value = re.sub(r"#([\w-]+)", lambda match: "#" + rename.get(match[1], match[1]), value)
    if key == "style":
        value = re.sub(r"#[0-9a-f]{6}", lambda match: colours.get(match[0], match[0]), value)
        return value.replace("'DejaVu Sans', sans-serif", FONT_FAMILY).replace("'DejaVu Sans'", FONT_FAMILY)
    if key in ("d", "x", "y", "transform", "width", "height"):
        return " ".join(re.sub(r"-?\d+\.\d+(?:e-?\d+)?", round_coordinate, value).split())
    return value


def round_coordinate(match: re.Match[str]) -> str:
    """A coordinate rounded to a hundredth of a pixel, without trailing zeros."""
    return f"{round(float(match[0]), 2) + 0.0:.2f}".rstrip("0").rstrip(".")
