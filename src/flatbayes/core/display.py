"""Display of results: aligned text for terminals, and HTML tables for notebooks."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import pandas as pd  # an optional package

MAX_ENTRIES = 6
"""Largest number of entries of a collection that a repr lists; of a larger one it gives the number."""
MAX_VALUE_CHARACTERS = 90
"""Largest length of the repr of a field; a longer one is cut."""


def format_fields(instance: Any) -> str:
    """The repr of a dataclass with large contents: arrays as their shape, networks as their class, collections cut.

    Small fields are as in the repr that `dataclass` makes. Use it as `__repr__` of a class. Instances of
    classes that are no dataclasses have the repr of `object`.
    """
    if not is_dataclass(instance):
        return object.__repr__(instance)
    shown = [field.name for field in fields(instance) if field.repr]
    values = [f"{name}={_format_field(getattr(instance, name))}" for name in shown]
    return f"{type(instance).__qualname__}({', '.join(values)})"


def _format_field(value: Any) -> str:
    """A value in a few characters, on one line."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and len(value.shape):
        return f"<{type(value).__name__} of shape {tuple(value.shape)}>"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    if isinstance(value, (Mapping, list, tuple, Set)) and len(value) > MAX_ENTRIES:
        return f"<{type(value).__name__} of {len(value)} entries>"
    if type(value) in (list, tuple):
        inside = ", ".join(map(_format_field, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {_format_field(entry)}" for key, entry in value.items()) + "}"
    text = " ".join(repr(value).split("\n"))
    if vars(type(value)).get("__repr__") is format_fields:
        return text
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 1]}…"


def format_entries(title: str, entries: Mapping[str, str]) -> str:
    """A title, and below it one line for each entry, names and values aligned.

    >>> print(format_entries("Fit", {"epochs": "3", "loss": "0.1"}))
    Fit
      epochs  3
      loss    0.1
    """
    width = max(map(len, entries), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in entries.items())])


def format_number(value: float | None) -> str:
    """A number with four significant digits; a dash if there is none."""
    return "–" if value is None else f"{value:.4g}"


def format_html_table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    *,
    num_label_columns: int = 1,
) -> str:
    """A table whose first columns are labels, and whose other columns are right-aligned.

    A cell that begins and ends with `**` is bold; notes are lines below the table.
    """
    head = "".join(f"<th{_align(index < num_label_columns)}>{escape(name)}</th>" for index, name in enumerate(header))
    cells = (
        "".join(f"<td{_align(index < num_label_columns)}>{_format_cell(cell)}</td>" for index, cell in enumerate(row))
        for row in rows
    )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    foot = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return (
        f'<div><table><caption style="text-align: left; white-space: nowrap">{escape(caption)}</caption>'
        f"{f'<thead><tr>{head}</tr></thead>' if header else ''}<tbody>{body}</tbody></table>{foot}</div>"
    )


def make_data_frame(columns: object) -> "pd.DataFrame":
    """A data frame from columns by name, or from rows.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("A data frame needs pandas: pip install 'flatbayes[pandas]'.") from error
    return pd.DataFrame(columns)


def _align(is_label: bool) -> str:
    return f' style="text-align: {"left" if is_label else "right"}"'


def _format_cell(cell: str) -> str:
    text = escape(cell)
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        return f"<b>{text[2:-2]}</b>"
    return text
