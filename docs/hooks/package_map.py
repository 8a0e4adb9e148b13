"""Draws the package map: the import layers of pyproject.toml and the first line of every package's docstring.

Run `python docs/hooks/package_map.py` after a change of the layers; a test compares the picture with them.
"""

import ast
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "img" / "package-map.svg"
WIDTH, GAP, MARGIN, LINE_HEIGHT = 1180, 10, 16, 14
STYLE = """
text { font-family: system-ui, sans-serif; fill: #1b2a2f }
.name { font-weight: 600; font-size: 15px } .about { font-size: 11.5px } .layer { font-size: 12px; fill: #5b6b70 }
rect { fill: #e6f2f1; stroke: #2a8a83; stroke-width: 1 }
.background { fill: #ffffff; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e8ee } .layer { fill: #9aa5b4 }
  rect { fill: #12303a; stroke: #3fb0a8 }
  .background { fill: #12161c }
}
"""


def read_layers() -> list[list[str]]:
    """Packages of every layer, the top layer first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["name"] == "Package layers")
    return [[name.strip().removeprefix("flatbayes.") for name in layer.split("|")] for layer in layers]


def read_summary(package: str) -> str:
    """First line of the docstring of a package."""
    tree = ast.parse((ROOT / "src" / "flatbayes" / package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ").replace("`", "")


def render_map() -> str:
    """The picture as SVG: one row of boxes for each layer; a box may import the boxes below it."""
    boxes, top = list[str](), MARGIN
    for packages in read_layers():
        box_width = (WIDTH - 2 * MARGIN - GAP * (len(packages) - 1)) / len(packages)
        summaries = [textwrap.wrap(read_summary(package), int((box_width - 16) / 6.1)) for package in packages]
        row_height = 32 + LINE_HEIGHT * max(map(len, summaries))
        for column, (package, summary) in enumerate(zip(packages, summaries, strict=True)):
            left = MARGIN + column * (box_width + GAP)
            boxes.append(
                f'<rect x="{left:.1f}" y="{top}" width="{box_width:.1f}" height="{row_height}" rx="6"/>'
                f'<text class="name" x="{left + 9:.1f}" y="{top + 21}">{escape(package)}</text>'
            )
            boxes += [
                f'<text class="about" x="{left + 9:.1f}" y="{top + 39 + LINE_HEIGHT * k}">{escape(line)}</text>'
                for k, line in enumerate(summary)
            ]
        top += row_height + GAP
    height = top + MARGIN + 8
    header = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Packages of flatbayes by import layer</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="background" width="{WIDTH}" height="{height}"/>',
    ]
    footer = (
        f'<text class="layer" x="{MARGIN}" y="{height - 8}">A package may import packages of the rows below it, '
        "never of the same row or above.</text></svg>"
    )
    return "\n".join([*header, *boxes, footer]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(render_map(), encoding="utf-8")
