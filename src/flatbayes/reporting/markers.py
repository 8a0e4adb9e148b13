"""How plain and flat look, the same in every figure.

Plain is always the hollow square and the dashed line, flat the filled circle and the solid line, in two
colours of the Okabe-Ito palette: neither colour vision nor a colour printer is needed to tell them apart.
"""

from dataclasses import dataclass
from typing import Any

from flatbayes.reporting import svg

PANEL_WIDTH_PX = 340.0
"""Width of a panel in CSS pixels: three beside each other on a desk, one on a phone."""

MARKER_STYLES: dict[bool, dict[str, Any]] = {
    False: {
        "color": svg.PLAIN,
        "marker": "s",
        "markerfacecolor": svg.PAGE,
        "markeredgewidth": 1.8,
        "zorder": 4,
    },
    True: {"color": svg.FLAT, "marker": "o", "markeredgewidth": 1.8, "zorder": 5},
}
LINE_STYLES: dict[bool, dict[str, Any]] = {
    False: {"color": svg.PLAIN, "linestyle": (0, (4, 1.6)), "zorder": 4},
    True: {"color": svg.FLAT, "linestyle": "-", "zorder": 5},
}


@dataclass(frozen=True)
class Panel:
    """One small figure.

    Attributes:
        title: What it shows, as text for a caption.
        note: A second, quieter line of the caption.
        svg: An inline `<svg>` element.
    """

    title: str
    note: str
    svg: str
