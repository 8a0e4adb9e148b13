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
WIDTH, ROW_HEIGHT, GAP, MARGIN = 1180, 104, 10, 16
STYLE = """
text { font-family: system-ui, sans-serif; fill: #1b2a2f }
.name { font-weight: 600; font-size: 15px } .about { font-size: 11.5px } .layer { font-size: 12px; fill: #5b6b70 }
rect { fill: #e6f2f1; stroke: #2a8a83; stroke-width: 1 }
.background { fill: #ffffff; stroke: none }
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
    layers = read_layers()
    height = 2 * MARGIN + len(layers) * (ROW_HEIGHT + GAP) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Packages of flatbayes by import layer</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="background" width="{WIDTH}" height="{height}"/>',
    ]
    for row, packages in enumerate(layers):
        top = MARGIN + row * (ROW_HEIGHT + GAP)
        box_width = (WIDTH - 2 * MARGIN - GAP * (len(packages) - 1)) / len(packages)
        for column, package in enumerate(packages):
            left = MARGIN + column * (box_width + GAP)
            lines.append(
                f'<rect x="{left:.1f}" y="{top}" width="{box_width:.1f}" height="{ROW_HEIGHT}" rx="6"/>'
                f'<text class="name" x="{left + 9:.1f}" y="{top + 21}">{escape(package)}</text>'
            )
            wrapped = textwrap.wrap(read_summary(package), max(12, int((box_width - 16) / 6.1)))[:5]
            lines += [
                f'<text class="about" x="{left + 9:.1f}" y="{top + 39 + 14 * k}">{escape(line)}</text>'
                for k, line in enumerate(wrapped)
            ]
    lines.append(
        f'<text class="layer" x="{MARGIN}" y="{height - MARGIN}">A package may import packages of the rows below it, '
        "never of the same row or above.</text></svg>"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(render_map(), encoding="utf-8")
