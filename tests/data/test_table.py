import re
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flatbayes.data import DataWarning, InputReader, Table


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


def test_words_of_a_parquet_file_may_be_views(tmp_path):
    """As other libraries write them."""
    columns = {"a": ["u", "v", "u"], "y": ["no", "yes", "no"]}
    views = {name: pa.array(values, pa.string_view()) for name, values in columns.items()}
    pq.write_table(pa.table(views), tmp_path / "t.parquet")
    with pytest.warns(DataWarning, match="a feature of 0 and 1"):
        raw = Table(path=str(tmp_path / "t.parquet"), target="y").read()
    assert raw.unsplit.inputs.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert raw.class_names == ("no", "yes")
    reader = InputReader(
        path=tmp_path / "t.parquet", input_shape=(2,), feature_names=raw.feature_names, keep_columns=("y",)
    )
    kept, inputs = next(iter(reader.iter_chunks()))
    assert torch.equal(inputs.double(), raw.unsplit.inputs)
    assert kept["y"].tolist() == columns["y"]


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
    rows = "\n".join(f"{row / 2},{row % 2},0.1" for row in range(60))
    splits = Table(path=csv(f"a,y,constant\n{rows}\n"), target="y").load(0)
    assert splits.input_shape == (2,)
    assert torch.equal((2 * splits.train.inputs[:, 0]).long() % 2, splits.train.targets)


def test_a_missing_target_lists_the_columns_and_suggests_a_similar_one(csv):
    with pytest.raises(ValueError, match=r"lacks the columns \['z'\]. It has \['a', 'y'\]"):
        Table(path=csv("a,y\n1,0\n"), target="z").read()
    with pytest.raises(ValueError, match=r"lacks the columns \['price'\].* Did you mean 'Price'\?"):
        Table(path=csv("a,Price\n1,x\n2,z\n"), target="price").read()
    with pytest.raises(ValueError, match=r"lacks the columns \['y, z'\].* Several columns are a list: \[y, z\]"):
        Table(path=csv("a,y,z\n1,0,1\n2,1,0\n"), target="y, z").read()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["x", "3", "?", "4"], r"Column 'b' of .*t.csv must hold numbers, and 2 of its 4 .* first is 'x' in line 2"),
        (["3 kg", "7 €", "9 €", "8 €"], "and 4 of its 4 values are not numbers; the first is '3 kg' in line 2"),
        (["3", "4", "?", "4"], r"is '\?' in line 4\. If it marks a missing value, leave the field empty\."),
        (["u", "v", "w", "w"], r"'b' of .* has 3 different words in 4 rows, such as 'u'.*--data.ignore \[b\]"),
        (["u" * 201, "v", "v", "v"], "Column 'b' of .* must hold numbers"),
    ],
)
def test_words_that_are_no_categories_are_refused(csv, values, message):
    rows = "".join(f"{value},{row % 2}\n" for row, value in enumerate(values))
    with pytest.raises(ValueError, match=message):
        Table(path=csv(f"b,y\n{rows}"), target="y").read()


def test_fractional_classes_are_refused(csv):
    with pytest.raises(ValueError, match=r"Column 'y' holds fractions, and classes must be whole numbers"):
        Table(path=csv("a,y\n1,0.5\n2,1.5\n"), target="y", task="classification").read()


def test_whole_numbers_with_a_decimal_point_are_classes_if_the_user_says_so(csv):
    raw = Table(path=csv("a,y\n1,0.0\n2,1.0\n3,1.0\n"), target="y", task="classification").read()
    assert raw.class_names == ("0", "1")
    assert raw.unsplit.targets.tolist() == [0, 1, 1]


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
    with pytest.raises(
        ValueError,
        match=r"Column 'y': whole numbers as float64.* set the option task of the data to regression",
    ):
        Table(path=csv("a,y\n1,0.0\n2,1.0\n3,\n"), target="y").read()


def test_a_regression_loads(csv):
    rows = "\n".join(f"{row / 2},{row / 7}" for row in range(60))
    splits = Table(path=csv(f"a,y\n{rows}\n"), target="y").load(0)
    assert splits.is_regression
    assert (len(splits.train), len(splits.val), len(splits.test)) == (43, 5, 12)
    torch.testing.assert_close(splits.test.targets, splits.test.inputs[:, 0] * 2 / 7)


def test_several_columns_are_numbers_to_predict(csv):
    raw = Table(path=csv("a,y,z\n1,0.5,7\n2,1.5,8\n3,2.5,9\n"), target=["y", "z"]).read()
    assert raw.unsplit.targets.tolist() == [[0.5, 7], [1.5, 8], [2.5, 9]]
    assert (raw.target_names, raw.feature_names, raw.class_names) == (("y", "z"), ("a",), ())
    whole = csv("a,y,z\n1,5,7\n2,6,8\n")
    assert Table(path=whole, target=("y", "z"), task="regression").read().unsplit.targets.is_floating_point()
    with pytest.raises(ValueError, match=r"The columns \['y', 'z'\] of .* are whole numbers other than 0 and 1"):
        Table(path=whole, target=("y", "z")).read()
    with pytest.raises(ValueError, match="Column 'z' has 1 missing label"):
        Table(path=csv("a,y,z\n1,0.5,7\n2,1.5,\n3,2.5,9\n"), target=("y", "z")).read()


def test_several_columns_of_zeros_and_ones_are_labels(csv):
    raw = Table(path=csv("a,y,z\n1,0,true\n2,1,false\n3,1,true\n"), target=("z", "y")).read()
    assert raw.unsplit.targets.tolist() == [[1, 0], [0, 1], [1, 1]]
    assert raw.target_names == ("z", "y")
    missing = csv("a,y,z\n1,0,true\n2,1,false\n3,,true\n4,1,\n")
    raw = Table(path=missing, target=("z", "y"), task="multi_label").read()
    assert raw.unsplit.targets.tolist() == [[1, 0], [0, 1], [1, -100], [-100, 1]]
    one = Table(path=csv("a,y\n1,0\n2,1\n"), target="y", task="multi_label").read()
    assert one.unsplit.targets.tolist() == [[0], [1]]
    for target in (("y", "z"), ()):
        with pytest.raises(ValueError, match="Classes are those of one target column, got"):
            Table(path="t.csv", target=target, task="classification")


def test_invalid_regression_targets_are_refused(csv):
    with pytest.raises(ValueError, match=r"Target 'y' is 2\.5 in all 3 given examples: there is nothing to predict"):
        Table(path=csv("a,y\n1,2.5\n2,2.5\n3,2.5\n"), target="y").load(0)
    with pytest.raises(ValueError, match=r"Column 'y' has 1 missing label, the first '.*' in line 3"):
        Table(path=csv("a,y\n1,2.5\n2,nan\n3,1.5\n"), target="y").load(0)
    with pytest.raises(
        ValueError, match=r"1 value that is not finite as float32, the first \(1e\+300\) '1e300' in line 4"
    ):
        Table(path=csv("a,y\n1,2.5\n2,3\n3,1e300\n"), target="y").load(0)
    with pytest.raises(ValueError, match=r"Column 'y' of .*t.csv must hold numbers, .* first is 'x' in line 2"):
        Table(path=csv("a,y\n1,x\n2,z\n"), target="y", task="regression").load(0)


@pytest.mark.filterwarnings("ignore::flatbayes.data.DataWarning")
def test_words_and_missing_numbers_become_features(csv):
    rows = [f"{'' if row % 4 == 3 else row},{['Oslo', '', 'NA'][row % 3]},{row % 2}" for row in range(48)]
    source = Table(path=csv("age,city,y\n" + "\n".join(rows) + "\n"), target="y")
    raw, splits = source.read(), source.load(0)
    assert raw.feature_names == ("age", "age=", "city=", "city=NA", "city=Oslo")
    assert raw.unsplit.inputs[3, 1:].tolist() == [1, 0, 0, 1]
    assert raw.unsplit.inputs[:3].tolist() == [[0, 0, 0, 0, 1], [1, 0, 1, 0, 0], [2, 0, 0, 1, 0]]
    known = splits.train.inputs[splits.train.inputs[:, 1] == 0, 0]
    for split in (splits.train, splits.val, splits.test):
        missing = split.inputs[split.inputs[:, 1] == 1, 0]
        assert torch.allclose(missing, known.mean())
    with pytest.warns(DataWarning, match=r"each category: city \(3\)\. Missing numbers .* age \(12\)"):
        source.read()


def test_missing_values_are_located(csv):
    with pytest.raises(ValueError, match=r"Column 'b' of .* has no values.*ignore=\('b',\)"):
        Table(path=csv("a,b,y\n1,,0\n2,,1\n3,NA,1\n"), target="y").load(0)
    with pytest.raises(ValueError, match=r"Column 'y' has 1 missing label, the first '.*' in line 3"):
        Table(path=csv("a,y\n1,0\n2,\n3,1\n"), target="y").load(0)


def test_a_single_class_is_refused(csv):
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1 \['0'\]"):
        Table(path=csv("a,y\n1,0\n2,0\n"), target="y").load(0)


def test_a_table_without_features_is_refused(csv):
    with pytest.raises(ValueError, match=r"no column besides the target \['y'\]"):
        Table(path=csv("y\n0\n1\n"), target="y").read()


def test_columns_of_one_name_are_refused(csv):
    with pytest.raises(ValueError, match=r"several columns of the same name: \['a'\]"):
        Table(path=csv("a,a,y\n1,2,0\n"), target="y").read()


def test_paths_of_no_table_are_refused(tmp_path):
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(ValueError, match=r"\.csv, \.tsv or \.parquet, got .*t.xlsx"):
        Table(path=str(tmp_path / "t.xlsx"), target="y").read()
    with pytest.raises(FileNotFoundError, match=r"no file .*missing.csv"):
        Table(path=str(tmp_path / "missing.csv"), target="y").read()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"folder.csv is a folder, and a file is expected"):
        Table(path=str(tmp_path / "folder.csv"), target="y").read()


def test_a_damaged_parquet_file_is_named(tmp_path, truncate):
    pq.write_table(pa.table({"a": range(100), "y": [0, 1] * 50}), tmp_path / "t.parquet")
    truncate(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t.parquet cannot be read"):
        Table(path=str(tmp_path / "t.parquet"), target="y").read()


class TestColumnsOfAnIndex:
    FRAME = pd.DataFrame({"a": np.linspace(0, 1, 20), "y": ["no", "yes"] * 10})

    @pytest.mark.parametrize("make_index", [lambda k: k * k + 5, lambda k: f"row{k}"], ids=["numbers", "words"])
    @pytest.mark.parametrize("name", [None, "id"])
    def test_of_pandas_in_parquet(self, tmp_path, make_index, name):
        index = pd.Index([make_index(k) for k in range(20)], name=name)
        self.FRAME.set_index(index).to_parquet(tmp_path / "t.parquet")
        column = name or "__index_level_0__"
        with pytest.warns(UserWarning, match=rf"Column '{column}' of .* index of a DataFrame, and is left out"):
            raw = Table(path=str(tmp_path / "t.parquet"), target="y").read()
        assert raw.feature_names == ("a",)

    def test_of_pandas_in_csv(self, tmp_path):
        path = tmp_path / "t.csv"
        self.FRAME.to_csv(path)
        with pytest.warns(UserWarning, match="Column '' of .* is left out: it numbers or names the rows"):
            assert Table(path=str(path), target="y").read().feature_names == ("a",)
        pd.read_csv(path).to_csv(path, index=False)
        with pytest.warns(UserWarning, match="Column 'Unnamed: 0' of .* is left out"):
            assert Table(path=str(path), target="y").read().feature_names == ("a",)

    def test_a_separator_at_the_end_of_lines(self, csv):
        with pytest.warns(UserWarning, match="Column '' of .* is left out: it is empty"):
            assert Table(path=csv("a,y,\n1,x,\n2,z,\n"), target="y").read().feature_names == ("a",)

    @pytest.mark.parametrize("first", [0, 1])
    def test_a_column_that_counts_the_rows_is_used_with_a_warning(self, csv, first):
        text = "id,a,y\n" + "".join(f"{row + first},{row / 7},{row % 2}\n" for row in range(20))
        with pytest.warns(UserWarning, match=r"Column 'id' of .* counts the rows.*ignore=\('id',\)"):
            assert Table(path=csv(text), target="y").read().feature_names == ("id", "a")
        assert Table(path=csv(text), target="y", ignore=["id"]).read().feature_names == ("a",)

    @pytest.mark.parametrize(
        ("name", "warns"), [("customer_id", True), ("userId", True), ("ID", True), ("paid", False)]
    )
    def test_a_column_of_ids_is_used_with_a_warning(self, csv, name, warns):
        text = f"{name},y\n" + "".join(f"{7 * row % 20 + 100},{row % 2}\n" for row in range(20))
        with pytest.warns(DataWarning, match=f"'{name}' .* another number in each row") if warns else nullcontext():
            assert Table(path=csv(text), target="y").read().feature_names == (name,)

    def test_the_index_can_be_the_target(self, tmp_path):
        self.FRAME.set_index("y").to_parquet(tmp_path / "t.parquet")
        raw = Table(path=str(tmp_path / "t.parquet"), target="y").read()
        assert (raw.feature_names, raw.class_names) == (("a",), ("no", "yes"))


class TestMissingLabels:
    @pytest.mark.parametrize("word", ["", " ", '""', "NA", "null", "NaN", "n/a", "<NA>"])
    @pytest.mark.parametrize("classes", [("no", "yes"), (0, 1)])
    def test_of_csv_files_are_refused_with_their_line(self, csv, word, classes):
        rows = "".join(f"{row},{classes[row % 2]}\n" for row in range(3))
        with pytest.raises(ValueError, match=r"Column 'y' has 2 missing labels, the first '.*' in line 5"):
            Table(path=csv(f"a,y\n{rows}1,{word}\n2,{word}\n"), target="y").read()

    @pytest.mark.parametrize("word", [None, "", "nan"])
    def test_of_parquet_files_are_refused_with_their_row(self, tmp_path, word):
        pq.write_table(pa.table({"a": [1, 2, 3], "y": ["x", word, "z"]}), tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=r"Column 'y' has 1 missing label, the first in row 2"):
            Table(path=str(tmp_path / "t.parquet"), target="y").read()

    @pytest.mark.parametrize("word", ["None", "?"])
    def test_a_mark_of_a_missing_label_is_a_class_with_a_warning(self, csv, word):
        with pytest.warns(UserWarning, match=f"'{re.escape(word)}' is a class of column 'y' .* in line 3"):
            assert Table(path=csv(f"a,y\n1,x\n2,{word}\n"), target="y").read().class_names == (word, "x")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"t": pd.date_range("2024", periods=3)}, "Column 't' of .* holds dates and times"),
        ({"t": pd.date_range("2024", periods=3).date}, "holds dates, and features"),
        ({"t": pd.to_timedelta([1, 2, 3], unit="s")}, "holds durations"),
        ({"t": ["1", "2", "x"]}, "holds words, .* the first is '1'"),
        ({"t": [[1], [2], [3]]}, "holds list"),
        ({"t": [1.0, np.inf, 2.0]}, r"Column 't' of .* has inf, which is not finite as float32, \(in row 2\)"),
        ({"t": [np.nan, np.nan, np.nan]}, r"Column 't' of .* has no values.*ignore=\('t',\)"),
    ],
)
def test_columns_of_parquet_that_are_no_features(tmp_path, columns, message):
    pd.DataFrame(columns | {"a": [0.5, 1.5, 2.5], "y": ["u", "v", "u"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=message):
        Table(path=str(tmp_path / "t.parquet"), target="y").read()
    ignored = Table(path=str(tmp_path / "t.parquet"), target="y", ignore=("t",))
    assert ignored.read().feature_names == ("a",)


@pytest.mark.parametrize(("text", "message"), [("2024-01-02", "holds dates"), ("10:30:00", "holds times")])
def test_dates_of_csv_files(csv, text, message):
    with pytest.raises(ValueError, match=message):
        Table(path=csv(f"t,y\n{text},x\n{text},z\n"), target="y").read()


def test_a_table_without_header(csv):
    with (
        pytest.warns(UserWarning, match=r"names of the columns, and they are numbers: 1.5, 2.5, x"),
        pytest.raises(ValueError, match=r"lacks the columns \['y'\]"),
    ):
        Table(path=csv("1.5,2.5,x\n3.5,4.5,z\n"), target="y").read()


def test_an_unknown_target_is_refused_before_rows_are_read(csv, tmp_path, monkeypatch):
    def read(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr("flatbayes.data.table_file.read_csv", read)
    monkeypatch.setattr("flatbayes.data.table_file.read_table", read)
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "t.parquet")
    for path in (csv("a,b\n1,2\n"), str(tmp_path / "t.parquet")):
        for options in ({"target": "y"}, {"target": "a", "ignore": ("z",)}):
            with pytest.raises(ValueError, match=r"lacks the columns \['[yz]'\]"):
                Table(path=path, **options).read()


def test_many_whole_numbers_are_classes_with_a_note_on_the_task(csv):
    path = csv("a,y\n" + "".join(f"{row / 7},{row % 25}\n" for row in range(100)))
    with pytest.warns(DataWarning, match=r"Column 'y' of .* has 25 different whole numbers.*task=regression"):
        assert len(Table(path=path, target="y").load(0).class_names) == 25
    assert len(Table(path=path, target="y", task="classification").load(0).class_names) == 25
    assert Table(path=path, target="y", task="regression").load(0).is_regression


def test_an_open_quote_at_the_end_of_a_large_file(csv, monkeypatch):
    monkeypatch.setattr("flatbayes.data.csv_files.BLOCK_SIZE_BYTES", 2**12)
    rows = "a,y\n" + "".join(f"{row / 7},{'uv'[row % 2]}\n" for row in range(2000))
    with pytest.raises(ValueError, match=r"A quotation mark of .*t.csv is not closed"):
        Table(path=csv(rows + '1,"u\n2,v\n3,v\n'), target="y").read()
    assert Table(path=csv(rows + '1,"u\nw"\n'), target="y").read().class_names == ("u", "u\nw", "v")
