"""Features of training data in a table: an indicator of each category of words, and of missing numbers."""

import warnings
from collections.abc import Sequence

import numpy as np

from flatbayes.core.arrays import MISSING_WORDS
from flatbayes.data.checks import DataWarning
from flatbayes.data.columns import is_text_type, require_numeric_type, to_numbers, to_words
from flatbayes.data.csv_format import explain_word
from flatbayes.data.csv_text import is_number
from flatbayes.data.parquet import ArrowColumn, ArrowTable
from flatbayes.data.table_file import TableFile, require_unique_columns

MAX_CATEGORIES = 256
"""Most categories of a column; each is a feature."""
MAX_CATEGORY_CHARACTERS = 200
"""Longest word that is a category."""


def list_features(table: ArrowTable, names: Sequence[str], file: TableFile) -> tuple[str, ...]:
    """Names of the features of training data; says which columns are encoded.

    Raises:
        ValueError: A column has no values, or one of words holds numbers that cannot be read, or too many different
            words.
    """
    features, words, numbers = list[str](), list[str](), list[str]()
    for name in names:
        column = table.column(name)
        if is_text_type(column.type):
            categories = list_categories(column, name, file)
            features += [f"{name}={category}" for category in categories]
            words.append(f"{name} ({len(categories)})")
            continue
        features.append(name)
        num_missing = int(np.isnan(to_numbers(column, name, file)).sum())
        if num_missing == len(column):
            raise ValueError(
                f"Column {name!r} of {file.path} has no values. Fill them in, or leave it out: ignore=({name!r},) "
                f"(on the command line, --data.ignore [{name}])."
            )
        if num_missing:
            features.append(f"{name}=")
            numbers.append(f"{name} ({num_missing})")
    require_unique_columns(file.path, features)
    notes = []
    if words:
        notes.append(f"Words of {file.path} become a feature of 0 and 1 for each category: {', '.join(words)}.")
    if numbers:
        notes.append(
            f"Missing numbers of {file.path} become the mean of the training rows, and a feature says where they "
            f"were: {', '.join(numbers)}."
        )
    if notes:
        warnings.warn(" ".join(notes), category=DataWarning, stacklevel=4)
    return tuple(features)


def list_categories(column: ArrowColumn, name: str, file: TableFile) -> list[str]:
    """The different words of a column in alphabetic order; a missing value is the empty word.

    Raises:
        ValueError: Half of the values are numbers, a word is very long, or there are too many different words.
    """
    decimal = file.layout.decimal if file.layout is not None else "."
    counts = {entry["values"]: entry["counts"] for entry in to_words(column).value_counts().to_pylist()}
    num_numbers = sum(count for word, count in counts.items() if is_meant_as_number(word, decimal))
    is_prose = max(map(len, counts)) > MAX_CATEGORY_CHARACTERS
    if is_prose or 2 * num_numbers >= len(column) - counts.get("", 0):
        require_numeric_type(column, name, file)
    if len(counts) > min(MAX_CATEGORIES, max(2, len(column) // 2)):
        raise ValueError(
            f"Column {name!r} of {file.path} has {len(counts)} different words in {len(column)} rows, such as "
            f"{str(column[0].as_py())[:40]!r}. Categories may be {MAX_CATEGORIES}, and half as many as rows, at "
            f"most. Encode it as numbers, or leave it out: ignore=({name!r},) (on the command line, --data.ignore "
            f"[{name}])."
        )
    return sorted(counts)


def is_meant_as_number(word: str, decimal: str) -> bool:
    """Whether a word is a number, or one with a unit or another decimal mark."""
    if word.strip().lower() in MISSING_WORDS:
        return False
    return is_number(word, decimal) or bool(explain_word(word, decimal))
