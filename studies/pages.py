"""What the pages of several studies share: text between marks, and numbers in cells."""

import re
from collections.abc import Mapping
from pathlib import Path

from flatbayes.core.files import write_text


def replace_between(page: Path, start: str, end: str, content: str) -> None:
    """Replace what is between two marks of a page.

    Raises:
        ValueError: The page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise ValueError(f"{page} has no marks for the tables: {start} and {end}.")
    before, after = text.split(start)[0], text.split(end)[1]
    write_text(page, f"{before}{start}\n\n{content}\n\n{end}{after}")


def fill_marks(page: Path, contents: Mapping[str, str]) -> None:
    """Replace what is between the comments `begin <name>` and `end <name>` of a page by the content of this name."""
    text = page.read_text(encoding="utf-8")
    for name, content in contents.items():
        marks = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        text = re.sub(
            marks, lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text, flags=re.DOTALL
        )  # type: ignore[misc]
    write_text(page, text)


def format_metric(value: Mapping[str, float | None] | None, form: str = "{:.3f}") -> str:
    """Mean and standard deviation, without the latter for one seed; nothing where the metric is missing."""
    if value is None:
        return ""
    return " ± ".join(form.format(number) for number in (value["mean"], value["sd"]) if number is not None)
