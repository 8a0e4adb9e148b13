"""Features from data frames: as those from a file of the same rows."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import csv as arrow_csv
from scipy import sparse

from flatbayes.data import DataWarning, read_inputs
from flatbayes.data.csv_text import BOOLEANS, MISSING_NUMBERS, parse_number
from flatbayes.data.frame_features import convert_inputs, frame_to_array, list_other_columns
from flatbayes.data.unseen_categories import format_categories

NAMES = ("age", "age=", "city=NA", "city=Oslo", "city=Rome", "flag")
FRAME = pd.DataFrame({"flag": [True, False, True], "city": ["Oslo", "Rome", "NA"], "age": [7.5, np.nan, 9.0]})


class ColumnFrame:
    """A data frame as in polars: names of columns as a list, columns by name, no index."""

    def __init__(self, columns):
        self.data = columns

    @property
    def columns(self):
        return list(self.data)

    @property
    def dtypes(self):
        return [object() for _ in self.data]

    def __getitem__(self, key):
        if isinstance(key, list):
            return ColumnFrame({name: self.data[name] for name in key})
        return pd.Series(self.data[key]).array

    def __array__(self, dtype=None, copy=None):
        return self.to_numpy()

    def to_numpy(self):
        return np.stack([np.asarray(values) for values in self.data.values()], 1)


def read_file(folder, frame, names=NAMES):
    frame.to_csv(folder / "new.csv", index=False)
    return torch.cat([inputs for _, inputs in read_inputs(folder / "new.csv", (len(names),), names)]).numpy()


def test_words_that_are_numbers_are_those_of_pyarrow():
    options = arrow_csv.ConvertOptions()
    assert set(options.null_values) == MISSING_NUMBERS
    assert {*options.true_values, *options.false_values} - {"0", "1"} == set(BOOLEANS)
    assert all(parse_number(word) == 1 for word in options.true_values)
    assert all(parse_number(word) == 0 for word in options.false_values)
    assert parse_number("1_000") is parse_number("1,5") is parse_number("1.5", ",") is None


@pytest.mark.parametrize("text", ["NA", "", "nan", "null", "#N/A", "N/A", " 1.5 ", "1e3", "-nan"])
def test_texts_in_a_column_of_numbers_are_read_as_in_a_file(tmp_path, text):
    frame = FRAME.astype({"age": object})
    frame.loc[0, "age"] = text
    assert np.array_equal(convert_inputs(frame, NAMES), read_file(tmp_path, frame), equal_nan=True)


def test_texts_of_booleans_are_numbers():
    frame = FRAME.assign(flag=["true", "False", "TRUE"])
    assert np.array_equal(convert_inputs(frame, NAMES), convert_inputs(FRAME, NAMES), equal_nan=True)


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, pd.NaT, Decimal("2.5"), np.float32(3), 4], ids=repr)
def test_objects_in_a_column_of_numbers_are_read_as_in_a_file(tmp_path, value):
    frame = FRAME.astype({"age": object})
    frame.loc[0, "age"] = value
    assert np.array_equal(convert_inputs(frame, NAMES), read_file(tmp_path, frame), equal_nan=True)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("?", "If it marks a missing value, write NaN"),
        ("Rome", "Encode it as numbers, as in training"),
        ("1,5", r"It has a decimal comma: .* decimal=','"),
        (pd.Timestamp("2020-01-01"), "Convert dates and times to numbers"),
        (1j, "Encode it as numbers"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("names", [NAMES, ("age",)], ids=["words", "numbers"])
def test_what_is_no_number_is_located(value, advice, names):
    frame = FRAME.astype({"age": object})
    frame.loc[1, "age"] = value
    column = "Column 'age' of the data frame must hold numbers"
    message = rf"{column}, and 1 of its 3 values is not a number; .* row 1 .*{advice}"
    with pytest.raises(ValueError, match=message):
        convert_inputs(frame, names)


@pytest.mark.parametrize("values", [pd.date_range("2020", periods=3), pd.to_timedelta([1, 2, 3], unit="D")])
def test_columns_of_times_are_refused(values):
    with pytest.raises(ValueError, match=r"3 of its 3 values are not numbers; .* Convert dates and times"):
        convert_inputs(FRAME.assign(age=values), NAMES)


@pytest.mark.parametrize("kind", [object, "category", "string"])
@pytest.mark.parametrize("value", ["Bonn", " Rome", "rome", "", None, np.nan, pd.NA, "nan", "1.0"], ids=repr)
def test_unseen_categories_are_read_and_noted_as_in_a_file(tmp_path, value, kind):
    frame = FRAME.astype({"city": object})
    frame.loc[0, "city"] = value
    frame = frame.astype({"city": kind})
    with pytest.warns(DataWarning) as of_frame:
        array = convert_inputs(frame, NAMES)
    with pytest.warns(DataWarning) as of_file:
        expected = read_file(tmp_path, frame)
    assert np.array_equal(array, expected, equal_nan=True)
    assert array[0, 2:5].tolist() == [0, 0, 0]
    [message] = {str(warning.message) for warning in of_frame}
    assert message.startswith("Column 'city' of the data frame has ")
    assert message == str(of_file[0].message).replace(str(tmp_path / "new.csv"), "the data frame")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "b", "c", "d", "e"], "has the categories 'a', 'b', 'c' and 2 more, which the training data lack"),
        (["Oslo", None, "x"], "has missing values and the category 'x'"),
        (["Rome "], "'Rome ' differs from the category 'Rome' only in spaces or case: write it alike"),
        ([None], "the category 'NA', which pandas.read_csv reads as missing: give it keep_default_na=False"),
    ],
)
def test_the_note_says_what_may_have_been_meant(values, message):
    frame = pd.DataFrame({"city": values, "age": 1.0, "flag": True})
    with pytest.warns(DataWarning, match=message):
        convert_inputs(frame, NAMES)
    assert format_categories([""]) == "missing values"


def test_a_file_in_chunks_is_noted_once_for_each_column(tmp_path, recwarn):
    pd.DataFrame({"city": [f"c{k}" for k in range(9)], "land": "x"}).to_csv(tmp_path / "new.csv", index=False)
    names = ("city=Oslo", "land=Norway")
    assert len([*read_inputs(tmp_path / "new.csv", (2,), names, chunk_size=2)]) == 5
    assert [str(warning.message).partition(" of ")[0] for warning in recwarn] == ["Column 'city'", "Column 'land'"]


def test_whole_numbers_that_pandas_holds_as_fractions_keep_their_category():
    frame = pd.DataFrame({"code": [1.0, np.nan, 2.0]})
    assert convert_inputs(frame, ("code=", "code=1", "code=2")).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_categories_that_are_not_used_change_nothing():
    cities = pd.Categorical(FRAME["city"], ["Rome", "Oslo", "NA", "Bonn"])
    assert np.array_equal(
        convert_inputs(FRAME.assign(city=cities), NAMES), convert_inputs(FRAME, NAMES), equal_nan=True
    )


def test_frames_without_an_index():
    columns = {"a": [1.0, 2.0], "b": np.array([1, 2]), "c": np.array(["x", "y"], dtype=object)}
    frame = ColumnFrame(columns)
    assert convert_inputs(frame, ("b", "c=y", "a", "c=x")).tolist() == [[1, 0, 1, 1], [2, 1, 2, 0]]
    assert list_other_columns(frame) == ["c"]
    assert frame_to_array(frame[["a", "b"]]).tolist() == [[1, 1], [2, 2]]


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.coo_array])
def test_sparse_inputs_are_refused(make):
    with pytest.raises(TypeError, match=r"inputs are sparse, a (csr_matrix|coo_array), .* toarray\(\)"):
        convert_inputs(make(np.eye(3)))


@pytest.mark.parametrize("inputs", [FRAME["age"], FRAME.iloc[0]], ids=["column", "row"])
def test_one_column_or_row_is_refused(inputs):
    with pytest.raises(
        TypeError, match=r"a Series, one column or row .* frame\[\['column'\]\], or frame.iloc\[\[0\]\]"
    ):
        convert_inputs(inputs, ("age",))


def test_arrays_become_arrays_of_numbers():
    numbers = np.array([[1.0, 2.0], [3.0, 4.0]])
    for inputs in (numbers, numbers.astype(object), numbers.astype(">f4"), numbers.astype(np.longdouble)):
        assert convert_inputs(inputs).tolist() == numbers.tolist()
    masked = np.ma.masked_array(numbers, mask=numbers == 2)
    assert np.array_equal(convert_inputs(masked), [[1, np.nan], [3, 4]], equal_nan=True)
    batches = [torch.ones(2)]
    assert convert_inputs(batches) is batches


def test_columns_that_are_no_numbers_are_listed():
    frame = pd.DataFrame({"a": [1, 2], "b": ["1", "2"], "d": pd.Categorical([1, 2])})
    frame = frame.assign(
        c=pd.Series([1, 2.5], dtype=object), e=pd.date_range("2020", periods=2), f=pd.array([1, None])
    )
    assert list_other_columns(frame) == ["b", "d", "e"]
