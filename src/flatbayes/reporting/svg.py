"""Matplotlib as a pen for SVG: reproducible byte for byte, and coloured by the page that holds it.

Figures are drawn in a few sentinel colours. In a page these become `currentColor` and CSS variables, so that
a figure follows the reader's light or dark theme; in a file of its own they become fixed colours.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
PLAIN = "#d55e01"
FLAT = "#0072b3"
TIE = "#808182"
PAGE = "#fefdfc"

PAGE_COLOURS = {
    INK: "currentColor",
    PLAIN: "var(--plain)",
    FLAT: "var(--flat)",
    TIE: "var(--tie)",
    PAGE: "var(--page)",
}
FILE_COLOURS = {INK: "#1d2430", PLAIN: "#d55e00", FLAT: "#0072b2", TIE: "#6b7280", PAGE: "#ffffff"}

FONT_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
UNITS_PER_INCH = 72.0
RC_PARAMS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flatbayes",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.0,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "axes.titlesize": 11.0,
    "axes.labelsize": 11.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "lines.linewidth": 1.8,
    "path.simplify": True,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator["Figure"]:
    """A figure of this size in CSS pixels, outside pyplot's global state, with this package's style."""
    import matplotlib  # here, since it is slow to import
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC_PARAMS)  # type: ignore[arg-type]
        yield Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH))


def to_inline_svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an `<svg>` element for a page.

    Args:
        figure: Made inside `drawing`, and still inside it.
        name: Unique in the page: starts every id.
        label: What a screen reader says.
    """
    root = clean_svg(figure, name, PAGE_COLOURS)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label, **ROOT_STYLE}
    return ElementTree.tostring(root, encoding="unicode")


def to_svg_file(figure: "Figure", name: str, label: str, decoration: str = "") -> str:
    """The figure as an SVG file with fixed colours, over a background given as SVG markup."""
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
    if decoration:
        root.insert(0, ElementTree.fromstring(decoration))
    return ElementTree.tostring(root, encoding="unicode") + "\n"


ROOT_STYLE = {"style": "stroke-linejoin: round; stroke-linecap: butt"}


def clean_svg(figure: "Figure", name: str, colours: Mapping[str, str]) -> ElementTree.Element:
    """Matplotlib's SVG without metadata, namespaces and unused ids, in these colours, coordinates rounded."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in [c for c in parent if strip_namespace(c.tag) in ("metadata", "style")]:
            parent.remove(child)
    rename = {old: f"{name}-{place}" for place, old in enumerate(list_referenced_ids(root))}
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
    """The ids that something points at, in order."""
    found: dict[str, None] = {}
    for element in root.iter():
        for value in element.attrib.values():
            found.update(dict.fromkeys(re.findall(r"(?:url\(|^)#([\w-]+)", value)))
    return list(found)


def rewrite_attribute(key: str, value: str, rename: Mapping[str, str], colours: Mapping[str, str]) -> str:
    """One attribute with the page's ids, colours and fonts, its coordinates rounded."""
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
    """A coordinate to a hundredth of a pixel, in as few characters as that takes."""
    return f"{round(float(match[0]), 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def style_axes(axes: "Axes", *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Grid behind, ticks without marks, no frame but a faint base line."""
    axes.grid(True, axis=grid)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_alpha(0.35)
