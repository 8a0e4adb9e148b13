import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flatbayes.data import Table


@pytest.fixture
def csv(tmp_path):
    def write(text):
        (tmp_path / "t.csv").write_text(text)
        return str(tmp_path / "t.csv")

    return write


def test_a_csv_file(csv):
    raw = Table(path=csv("a,kind,b\n1,dog,true\n2.5,cat,false\n-3,dog,true\n"), target="kind").read()
    assert raw.feature_names == ("a", "b")
    assert raw.class_names == ("cat", "dog")
    assert raw.unsplit.targets.tolist() == [1, 0, 1]
    assert raw.unsplit.inputs.dtype == torch.float64
    assert raw.unsplit.inputs.tolist() == [[1, 1], [2.5, 0], [-3, 1]]


def test_whole_numbers_are_classes_in_numeric_order(csv):
    raw = Table(path=csv("a,y\n1,10\n2,9\n3,-1\n"), target="y").read()
    assert raw.class_names == ("-1", "9", "10")
    assert raw.unsplit.targets.tolist() == [2, 1, 0]


def test_a_parquet_file_with_categories_and_all_kinds_of_numbers(tmp_path):
    columns = {
        "int": pa.array([1, 2**40, 3]),
        "half": pa.array(np.array([1, 2, 3], dtype=np.float16)),
        "flag": pa.array([True, False, True]),
        "y": pa.array(["b", "a", "b"]).dictionary_encode(),
    }
    path = tmp_path / "year=2020" / "t.parquet"  # the folder must not become a feature
    path.parent.mkdir()
    pq.write_table(pa.table(columns), path)
    raw = Table(path=str(path), target="y").read()
    assert raw.feature_names == ("int", "half", "flag")
    assert raw.unsplit.inputs.tolist() == [[1, 1, 1], [2**40, 2, 0], [3, 3, 1]]
    assert raw.unsplit.targets.tolist() == [1, 0, 1]


def test_a_classification_loads(csv):
    rows = "\n".join(f"{row},{row % 2},0.1" for row in range(60))
    splits = Table(path=csv(f"a,y,constant\n{rows}\n"), target="y").load(0)
    assert splits.input_shape == (2,)
    assert torch.equal(splits.train.inputs[:, 0].long() % 2, splits.train.targets)


def test_a_missing_target_lists_the_columns(csv):
    with pytest.raises(ValueError, match=r"lacks the columns \['z'\]. It has \['a', 'y'\]"):
        Table(path=csv("a,y\n1,0\n"), target="z").read()


def test_word_features_are_refused(csv):
    with pytest.raises(ValueError, match=r"Column 'b' of .*t.csv holds string, and features must be numbers"):
        Table(path=csv("a,b,y\n1,x,0\n2,?,1\n"), target="y").read()


def test_fractional_classes_are_refused(csv):
    with pytest.raises(ValueError, match=r"Column 'y' holds double, and classes must be whole numbers"):
        Table(path=csv("a,y\n1,0.5\n2,1.5\n"), target="y", task="classification").read()


def test_fractions_are_regression_targets(csv):
    raw = Table(path=csv("a,y\n1,0.5\n2,1\n3,-7\n"), target="y").read()
    assert raw.target_names == ("y",)
    assert raw.class_names == ()
    assert raw.unsplit.targets.dtype == torch.float64
    assert raw.unsplit.targets.tolist() == [0.5, 1, -7]


def test_whole_numbers_are_regression_targets_on_request(csv):
    raw = Table(path=csv("a,y\n1,5\n2,6\n"), target="y", task="regression").read()
    assert raw.unsplit.targets.tolist() == [5, 6]
    assert raw.target_names == ("y",)


def test_whole_numbers_as_floats_are_ambiguous(csv):
    with pytest.raises(ValueError, match=r"Column 'y' holds whole numbers as float64.* or say task=regression"):
        Table(path=csv("a,y\n1,0.0\n2,1.0\n3,\n"), target="y").read()


def test_a_regression_loads(csv):
    rows = "\n".join(f"{row},{row / 7}" for row in range(60))
    splits = Table(path=csv(f"a,y\n{rows}\n"), target="y").load(0)
    assert splits.is_regression
    assert (len(splits.train), len(splits.val), len(splits.test)) == (43, 5, 12)
    torch.testing.assert_close(splits.test.targets, splits.test.inputs[:, 0] / 7)


def test_invalid_regression_targets_are_refused(csv):
    with pytest.raises(ValueError, match=r"Target 'y' is 2\.5 in all 3 given examples: there is nothing to predict"):
        Table(path=csv("a,y\n1,2.5\n2,2.5\n3,2.5\n"), target="y").load(0)
    with pytest.raises(ValueError, match=r"Column 'y' has 1 missing labels, the first in row 1"):
        Table(path=csv("a,y\n1,2.5\n2,nan\n3,1.5\n"), target="y").load(0)
    with pytest.raises(ValueError, match=r"1 targets that are beyond the range of float32 .* 1e\+300 in row 2"):
        Table(path=csv("a,y\n1,2.5\n2,3\n3,1e300\n"), target="y").load(0)
    with pytest.raises(ValueError, match=r"Column 'y' holds string, and a regression needs numbers"):
        Table(path=csv("a,y\n1,x\n2,z\n"), target="y", task="regression").load(0)


def test_missing_values_are_located(csv):
    with pytest.raises(ValueError, match=r"hold 2 values that are missing .* nan in row 1 .* feature 'b'"):
        Table(path=csv("a,b,y\n1,1,0\n2,,1\n3,NA,1\n"), target="y").load(0)
    with pytest.raises(ValueError, match=r"Column 'y' has 1 missing labels, the first in row 1"):
        Table(path=csv("a,y\n1,0\n2,\n3,1\n"), target="y").load(0)


def test_a_single_class_is_refused(csv):
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1 \['0'\]"):
        Table(path=csv("a,y\n1,0\n2,0\n"), target="y").load(0)


def test_a_table_without_features_is_refused(csv):
    with pytest.raises(ValueError, match="no column besides the target 'y'"):
        Table(path=csv("y\n0\n1\n"), target="y").read()


def test_columns_of_one_name_are_refused(csv):
    with pytest.raises(ValueError, match=r"several columns of the same name: \['a'\]"):
        Table(path=csv("a,a,y\n1,2,0\n"), target="y").read()


@pytest.mark.parametrize("text", ["", "a,y\n1,2\n3,4,5\n"])
def test_a_damaged_csv_file_is_named(csv, text):
    with pytest.raises(ValueError, match=r"t.csv cannot be read") as error:
        Table(path=csv(text), target="y").read()
    assert type(error.value) is ValueError


def test_files_of_other_formats_are_refused(tmp_path):
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(ValueError, match=r"\.csv or \.parquet, got .*t.xlsx"):
        Table(path=str(tmp_path / "t.xlsx"), target="y").read()
    with pytest.raises(FileNotFoundError, match=r"no file .*missing.csv"):
        Table(path=str(tmp_path / "missing.csv"), target="y").read()


def test_a_damaged_parquet_file_is_named(tmp_path, truncate):
    pq.write_table(pa.table({"a": range(100), "y": [0, 1] * 50}), tmp_path / "t.parquet")
    truncate(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t.parquet cannot be read"):
        Table(path=str(tmp_path / "t.parquet"), target="y").read()
