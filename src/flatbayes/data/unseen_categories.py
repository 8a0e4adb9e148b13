"""Categories of new examples that the training data lack: what they are, and what may have been meant."""

import warnings
from collections.abc import Iterable, Sequence

from flatbayes.core.names import shorten
from flatbayes.data.checks import DataWarning
from flatbayes.data.csv_text import MISSING_NUMBERS

MAX_LISTED_CATEGORIES = 3
"""Largest number of unseen categories in a warning."""


def warn_of_unseen_categories(
    words: Iterable[str], column: str, categories: Sequence[str], place: str, stacklevel: int = 4
) -> bool:
    """Warn of words that are no category of the training data, and say whether there are some.

    A missing value is the empty word; `place` is what the column is of.
    """
    unseen = sorted(set(words) - set(categories))
    if unseen:
        warnings.warn(
            f"Column {column!r} of {place} has {format_categories(unseen)}, which the training data lack: the "
            f"features of its categories are all 0 there.{suggest_category(unseen, categories)}",
            category=DataWarning,
            stacklevel=stacklevel,
        )
    return bool(unseen)


def format_categories(words: Sequence[str]) -> str:
    """A few categories for a message, missing values first.

    >>> format_categories(["", "Bonn"]), format_categories(["a", "b", "c", "d"])
    ("missing values and the category 'Bonn'", "the categories 'a', 'b', 'c' and 1 more")

    The words are in alphabetic order; the empty one stands for missing values.
    """
    names = [word for word in words if word]
    listed = ", ".join(repr(shorten(name)) for name in names[:MAX_LISTED_CATEGORIES])
    more = f" and {len(names) - MAX_LISTED_CATEGORIES} more" if len(names) > MAX_LISTED_CATEGORIES else ""
    parts = ["missing values"] if "" in words else []
    parts += [f"the {'category' if len(names) == 1 else 'categories'} {listed}{more}"] if names else []
    return " and ".join(parts)


def suggest_category(unseen: Sequence[str], categories: Sequence[str]) -> str:
    """What may have been meant by an unseen category, as a further sentence; empty if nothing is likely."""
    by_spelling = {category.strip().casefold(): category for category in categories}
    for word in unseen:
        similar = by_spelling.get(word.strip().casefold())
        if word and similar is not None:
            return f" {shorten(word)!r} differs from the category {similar!r} only in spaces or case: write it alike."
    names = [category for category in categories if category and category in MISSING_NUMBERS]
    if "" in unseen and names:
        return (
            f" The training data have the category {names[0]!r}, which pandas.read_csv reads as missing: give it "
            "keep_default_na=False."
        )
    return ""
