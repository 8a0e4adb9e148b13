"""HTML from Python values: what is not `Html` already is escaped, so nothing from a file can become a tag."""

import re
from html import escape
from typing import Any


class Html(str):
    """Text that is markup already."""


VOID = frozenset({"br", "meta", "wbr"})


def tag(name: str, /, *children: object, **attributes: Any) -> Html:
    """One element; a trailing underscore of an attribute is dropped and inner ones become hyphens (`class_`).

    Attributes that are None are left out, children that are None too.
    """
    marks = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{marks}>")
    return Html(f"<{name}{marks}>{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """The children one after another, plain text escaped."""
    return Html(
        "".join(
            child if isinstance(child, Html) else escape(str(child), quote=False)
            for child in children
            if child is not None
        )
    )


def breakable(label: str, after: str = "(,") -> Html:
    """A label that may be broken after any of these characters."""
    pieces = re.split(f"(?<=[{re.escape(after)}])", label)
    return join(*(part for piece in pieces[:-1] for part in (piece, tag("wbr"))), pieces[-1])


def row(head: object, /, *cells: object, numeric: bool = True, **attributes: Any) -> Html:
    """A table row that its first cell names; `Html` cells are taken as finished `<td>` elements."""
    kind = "num" if numeric else None
    body = [cell if isinstance(cell, Html) else tag("td", cell, class_=kind) for cell in cells]
    return tag("tr", tag("th", head, scope="row"), *body, **attributes)


def header(*names: object, numeric_from: int = 1) -> Html:
    """The head of a table, one column for each name; those from `numeric_from` on are right-aligned."""
    return tag(
        "thead",
        tag(
            "tr",
            *(
                tag("th", name, scope="col", class_="num" if place >= numeric_from else None)
                for place, name in enumerate(names)
            ),
        ),
    )


def table(caption: object, *parts: object, class_: str | None = None) -> Html:
    """A table with a caption, in a container that scrolls by itself on a narrow screen."""
    return tag(
        "div",
        tag("table", tag("caption", tag("span", caption, class_="pin")), *parts, class_=class_),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=str(caption),
    )


def details(summary: str, *children: object) -> Html:
    """A block that opens on demand."""
    return tag("details", tag("summary", summary), *children)
