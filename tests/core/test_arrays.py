"""Values that users give in arrays: missing ones, masked ones, objects, and other byte orders."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from flatbayes.core.arrays import (
    check_missing_labels,
    find_missing,
    find_missing_labels,
    holds_fractions,
    holds_numbers,
    to_floats,
    to_plain_array,
)

MISSING = [None, np.nan, pd.NA, pd.NaT, np.float32("nan"), Decimal("nan"), np.datetime64("NaT")]
WORDS = ["", " ", "NA", "nan", "N/A", "null", "<NA>"]


def make_objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_values_of_all_kinds_are_missing():
    assert find_missing(make_objects([*MISSING, "", "NA", 0, False, np.inf])).tolist() == [True] * 7 + [False] * 5
    assert find_missing(np.array([[1.0, np.nan]])).tolist() == [[False, True]]
    assert not find_missing(np.arange(3)).any()


@pytest.mark.parametrize("value", [*MISSING, *WORDS, b"NA"], ids=repr)
def test_missing_labels_are_located(value):
    labels = make_objects(["a", "b", value, "a"])
    assert find_missing_labels(labels).tolist() == [False, False, True, False]
    with pytest.raises(
        ValueError, match=r"^The labels: 1 of 4 labels is missing, the first \(.*\) in row 2 \(counted"
    ):
        check_missing_labels(labels, "The labels")
    check_missing_labels(labels, "The labels", ["a", "b", str(value)])
    check_missing_labels(labels[:2], "The labels")


def test_masked_values_are_missing():
    masked = np.ma.masked_array([[1, 2], [3, 4]], mask=[[False, True], [False, False]])
    assert np.array_equal(to_plain_array(masked), [[1, np.nan], [3, 4]], equal_nan=True)
    texts = to_plain_array(np.ma.masked_array(["a", "b"], mask=[True, False]))
    assert find_missing(texts).tolist() == [True, False]
    assert to_plain_array(np.ma.masked_array([1, 2])).dtype.kind == "i"


@pytest.mark.parametrize("dtype", [">f8", "<f8", ">i4", np.longdouble, np.float16])
def test_arrays_have_types_that_torch_reads(dtype):
    array = to_plain_array(np.arange(3).astype(dtype))
    assert array.tolist() == [0, 1, 2]
    assert array.dtype.isnative
    assert array.dtype != np.longdouble or np.longdouble is np.float64


def test_objects_that_are_numbers():
    whole, fractions = make_objects([1, None, True]), make_objects([1, 0.5, Decimal("2.5"), pd.NA])
    assert holds_numbers(whole)
    assert not holds_fractions(whole)
    assert holds_fractions(fractions)
    assert np.array_equal(to_floats(fractions), [1, 0.5, 2.5, np.nan], equal_nan=True)
    for values in (["1", 2], [1j, 2], [None], []):
        assert not holds_numbers(make_objects(values))
