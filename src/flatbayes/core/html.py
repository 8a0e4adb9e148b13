"""Small HTML tables, which notebooks show in place of the text of an object."""

from collections.abc import Sequence
from html import escape


def format_html_table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    *,
    num_label_columns: int = 1,
) -> str:
    """A table whose first columns are labels, and whose other columns are right-aligned.

    Args:
        caption: Text above the table.
        header: Names of the columns.
        rows: Cells as text; one that begins and ends with `**` is bold.
        notes: Lines below the table.
        num_label_columns: Number of columns that are left-aligned.
    """
    aligned = [f' style="text-align: {"left" if i < num_label_columns else "right"}"' for i in range(len(header))]
    head = "".join(f"<th{align}>{escape(name)}</th>" for align, name in zip(aligned, header, strict=True))
    cells = (
        "".join(f"<td{align}>{_format_cell(cell)}</td>" for align, cell in zip(aligned, row, strict=True))
        for row in rows
    )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    foot = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return (
        f'<div><table><caption style="text-align: left">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{foot}</div>"
    )


def _format_cell(cell: str) -> str:
    text = escape(cell)
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        return f"<b>{text[2:-2]}</b>"
    return text
