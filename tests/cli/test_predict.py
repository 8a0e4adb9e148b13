"""Command `flatbayes predict` on every kind of file: equal to `FittedPosterior.predict`, in order."""

import csv
import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from flatbayes.cli import main
from flatbayes.decisions import decide
from flatbayes.posteriors import MAP
from flatbayes.prediction import FittedPosterior

DRAWS = ["--num_draws", "3"]
FIT = [
    "--posterior",
    "swag",
    "--posterior.rank",
    "2",
    "--epochs",
    "3",
    "--collection.start_fraction",
    "0",
    "--batch_size",
    "20",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on a table of classes, on a table of numbers, on images, and on images that were scaled."""
    here = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    x = random.normal(size=(90, 3)).round(3)
    names = np.array(["cat", "dog", "owl"])[(x[:, 0] > 0).astype(int) + (x[:, 1] > 0)]
    columns = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2]}
    ids = [f"{k:03}" for k in range(90)]
    pyarrow.csv.write_csv(pa.table({**columns, "kind": names, "id": ids}), here / "classes.csv")
    pyarrow.csv.write_csv(pa.table({**columns, "kind": names}), here / "train.csv")
    pyarrow.csv.write_csv(pa.table({**columns, "y": 2 * x[:, 0] + random.normal(size=90)}), here / "numbers.csv")
    for k in range(60):
        path = here / "images" / "train" / f"c{k % 2}" / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 128, (8, 8), dtype=np.uint8) + np.uint8(100 * (k % 2))).save(path)
    text = (here / "train.csv").read_text().replace(".", "|").replace(",", ";").replace("|", ",").replace("a", "ä", 1)
    (here / "european.csv").write_text(text, encoding="cp1252")
    data = {
        "european": ["--data", "european.csv", "--data.encoding", "cp1252", "--data.target", "kind"],
        "classes": ["--data", "train.csv", "--data.target", "kind"],
        "numbers": ["--data", "numbers.csv", "--data.target", "y"],
        "images": ["--data", "images", "--model", "mlp"],
        "scaled": ["--data", "images", "--data.size", "6", "--model", "mlp"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name, source in data.items():
            assert main(["fit", *source, *FIT, *DRAWS, "--out", name]) == 0
    return here


@pytest.fixture(autouse=True)
def _there(runs, monkeypatch, tmp_path):
    for item in runs.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)


def read(path):
    if path.endswith(".parquet"):
        return pq.read_table(path).to_pydict()
    if path.endswith(".npz"):
        with np.load(path) as result:
            return {name: result[name].tolist() for name in result.files}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def write(kind, table):
    path = f"new.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=7)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        x = np.stack([table[name].to_numpy() for name in "abc"], axis=1)
        np.savez(path, x=x, **{name: np.array(table[name].to_pylist()) for name in table.column_names})
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_predictions_for_tables_and_arrays(kind):
    table = pyarrow.csv.read_csv("classes.csv")
    table = table.set_column(table.column_names.index("id"), "id", table["id"].cast("string"))
    path = write(kind, table.select(["id", "c", "a", "b"]))
    assert main(["predict", "classes", "--input", path, "--output", "out", *DRAWS, "--keep_columns", "[id]",
                 "--batch_size", "2"]) == 0  # fmt: skip
    result = read(f"out.{kind}")
    x = torch.tensor(np.stack([table[name].to_numpy() for name in "abc"], axis=1), dtype=torch.float32)
    expected = FittedPosterior.load("classes").predict(x, 3)
    assert list(result)[:5] == ["id", "class", "confidence", "entropy", "mutual_information"]
    assert [str(value) for value in result["id"]] == [str(value) for value in table["id"].to_pylist()]
    close = {"rtol": 1e-6, "atol": 1e-6}  # batches of another size round differently
    for k, name in enumerate(("cat", "dog", "owl")):
        np.testing.assert_allclose(np.array(result[f"probability_{name}"], float), expected.mean[:, k], **close)
    np.testing.assert_allclose(np.array(result["entropy"], float), expected.entropy, **close)
    np.testing.assert_allclose(np.array(result["mutual_information"], float), expected.mutual_information, **close)
    assert result["class"] == [["cat", "dog", "owl"][k] for k in expected.top_class]


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_networks_are_drawn_once_for_thousands_of_rows_and_again_where_memory_ends(kind, monkeypatch):
    x = np.random.default_rng(0).normal(size=(3000, 3))
    path = write(kind, pa.table({name: x[:, k] for k, name in enumerate("abc")}))
    draws = []
    sampled_network = FittedPosterior.sampled_network
    monkeypatch.setattr(
        FittedPosterior, "sampled_network", lambda *args: (draws.append(args[1]), sampled_network(*args))[1]
    )
    assert main(["predict", "classes", "--input", path, "--output", "one.parquet", *DRAWS]) == 0
    assert len(draws) == 3
    monkeypatch.setattr("flatbayes.prediction.inputs.MAX_CHUNK_BYTES", 300_000)  # for about 1,000 rows
    monkeypatch.setattr("flatbayes.prediction.drawn_networks.MAX_KEPT_ELEMENTS", 0)
    assert main(["predict", "classes", "--input", path, "--output", "several.parquet", *DRAWS]) == 0
    assert 3 + 3 * 2 <= len(draws) <= 3 + 3 * 4
    one, several = read("one.parquet"), read("several.parquet")
    assert one.keys() == several.keys()
    np.testing.assert_allclose(one["probability_cat"], several["probability_cat"], rtol=1e-6, atol=1e-6)


def test_regression_input_needs_no_target():
    table = pyarrow.csv.read_csv("numbers.csv")
    pyarrow.csv.write_csv(table.drop_columns(["y"]), "new.csv")
    assert main(["predict", "numbers", "--input", "new.csv", "--output", "out.parquet", *DRAWS]) == 0
    result = {name: np.array(values) for name, values in read("out.parquet").items()}
    x = torch.tensor(np.stack([table[name].to_numpy() for name in "abc"], axis=1), dtype=torch.float32)
    expected = FittedPosterior.load("numbers").predict(x, 3)
    lower, upper = expected.interval(0.95)
    wanted = {"mean": expected.mean, "std": expected.std, "lower": lower, "upper": upper,
              "epistemic_std": expected.epistemic.sqrt()}  # fmt: skip
    for name, values in wanted.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("run", ["images", "scaled"])
@pytest.mark.filterwarnings("ignore:.* are left out")  # the folder of the run is that of the images
def test_image_folder_gives_a_row_for_each_file(run):
    assert main(["predict", run, "--input", "images", "--output", "out", *DRAWS]) == 0
    result = read("out.csv")
    assert result["name"][:2] == ["train/c0/00.png", "train/c0/02.png"]
    assert len(result["name"]) == 60
    assert set(result["class"]) <= {"c0", "c1"}


def test_images_in_parquet():
    content = [Path(f"images/train/c0/{k:02}.png").read_bytes() for k in (0, 2, 4)]
    column = [{"bytes": item, "path": None} for item in content]
    pq.write_table(pa.table({"picture": column, "label": [5, 6, 7]}), "new.parquet")
    assert (
        main(["predict", "images", "--input", "new.parquet", "--output", "out.npz", "--keep_columns", "[label]"]) == 0
    )
    assert read("out.npz")["label"] == [5, 6, 7]
    given = ["--image_column", "missing", "--output", "other.npz"]
    assert main(["predict", "images", "--input", "new.parquet", *given]) == 2


def test_csv_files_of_another_format_than_those_of_the_training(capsys):
    predictions = []
    for name, encoding, more in (
        ("european.csv", "cp1252", []),  # as in the training
        ("new.csv.gz", "utf-8", []),
        ("new.tsv", "utf-16", []),
        ("mac.csv", "mac-roman", ["--encoding", "mac-roman", "--separator", "semicolon", "--decimal", ","]),
    ):
        text = Path("european.csv").read_text(encoding="cp1252")
        content = (text.replace(";", "\t").replace(",", ".") if name == "new.tsv" else text).encode(encoding)
        Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        assert main(["predict", "european", "--input", name, "--output", "out", "--overwrite", *DRAWS, *more]) == 0
        predictions.append(read("out.csv"))
    assert all(other == predictions[0] for other in predictions)
    assert main(["predict", "european", "--input", "mac.csv", "--output", "out", "--overwrite", *DRAWS]) == 2
    assert "lacks the columns ['ä']" in capsys.readouterr().err  # other letters in cp1252


BAD = [
    ("a,b\n1,2\n", [], r"lacks the columns ['c']. It has ['a', 'b']"),
    ("a,b,c\n1,2,\n", [], "Column 'c' of new.csv has a missing value ('' in line 2)"),
    ("a,b,c\n1,2,word\n", [], "Column 'c' of new.csv must hold numbers"),
    ("a,b,c\n1,2,3\n", ["--keep_columns", "[id]"], "lacks the columns ['id']"),
    ("a,b,c,entropy\n1,2,3,4\n", ["--keep_columns", "[entropy]"], "Predictions also have columns ['entropy']"),
    ("a,b,c\n", [], "new.csv has no rows"),
    ("a,b,c\n1,2,3\n", ["--output=-"], "written to a file, not to standard output"),
    ("", [], "new.csv is empty"),
]


@pytest.mark.parametrize(("text", "more", "message"), BAD, ids=[message[:20] for _, _, message in BAD])
def test_invalid_input_is_refused_and_writes_nothing(tmp_path, capsys, text, more, message):
    (tmp_path / "new.csv").write_text(text)
    before = sorted(tmp_path.iterdir())
    assert main(["predict", "classes", "--input", "new.csv", "--output", "out.csv", *DRAWS, *more]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_array_of_wrong_shape_is_refused(capsys):
    np.savez("new.npz", x=np.zeros((4, 5)))
    assert main(["predict", "classes", "--input", "new.npz", "--output", "out.csv"]) == 2
    assert "takes inputs of the shape (3,), and those in new.npz have (5,)" in capsys.readouterr().err


def test_artefact_without_input_description_is_refused(tmp_path, capsys):
    from flatbayes.likelihoods import Categorical

    posterior = MAP()
    fitted = FittedPosterior(posterior, [posterior.init(torch.nn.Linear(3, 2), None, 5)], Categorical(2))
    fitted.save("bare")
    assert main(["predict", "bare", "--input", "classes.csv", "--output", "o.csv", "--model", "torch.nn.Linear"]) == 2
    assert "in_features" in capsys.readouterr().err  # the artefact has no arguments for it
    fitted.info = {"model": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}}}
    fitted.save("bare")
    assert main(["predict", "bare", "--input", "classes.csv", "--output", "o.csv", "--model", "torch.nn.Linear"]) == 2
    assert "bare has no description of its inputs" in capsys.readouterr().err


def test_names_of_wrong_number_are_ignored(tmp_path):
    fitted = FittedPosterior.load("classes")
    fitted.info["class_names"] = ["one", "one", "two"]
    fitted.save(tmp_path / "renamed")
    assert not (tmp_path / "renamed" / "config.json").exists()  # the artefact alone is enough
    assert main(["predict", "renamed", "--input", "classes.csv", "--output", "out.csv", *DRAWS]) == 0
    assert "probability_2" in read("out.csv")


def test_image_options_come_from_the_config_of_the_run(tmp_path):
    assert json.loads((tmp_path / "scaled" / "config.json").read_text())["data"]["init_args"]["size"] == 6


def test_what_is_read_in_another_way_than_expected_is_a_note(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{k},{k / 7},{k % 2}\n" for k in range(60))
    Path("t.csv").write_text("id,a,y\n" + rows)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        source = ["--data", "t.csv", "--data.target", "y"]
        assert main(["fit", *source, "--posterior", "map", "--epochs", "1", "--out", "run"]) == 0
        notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
        assert len(notes) == 2
        assert notes[0].startswith("flatbayes: note: Column 'id' of t.csv counts the rows")
        assert "The validation split has 5 of 48 examples" in notes[1]
        short = ["--posterior", "map", "--min_steps", "20", "--min_epochs", "1", "--out", "stopped"]
        assert main(["fit", *source, *short]) == 0
        texts = "".join(capsys.readouterr())
        assert texts.count("5 validation examples decide when training stops") == 1
        assert "The validation split has" not in texts  # the same in other words
        for verb in ("evaluate", "check"):
            assert main([verb, "run"]) == 0
        assert "note:" not in capsys.readouterr().err
        assert main(["calibrate", "run", "--fraction", "0.05"]) == 2
    assert "5 labelled examples are too few: 0 would be for the map and 5 for thresholds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("shift", "evaluated for classes and several labels"),
        ("certify", "exist for classification only"),
    ],
)
def test_verbs_for_classes_refuse_a_regression_before_they_read_data(runs, capsys, monkeypatch, verb, message):
    monkeypatch.chdir(runs)
    monkeypatch.setattr("flatbayes.data.Table.read", None)
    assert main([verb, "numbers"]) == 2
    assert message in capsys.readouterr().err


def test_decisions_of_least_expected_cost(runs, capsys):
    costs = "[[0,1,1,0],[1,0,1,0.9],[1,1,0,0.9]]"
    arguments = ["--input", "classes.csv", "--output", "decided.csv", "--costs", costs, *DRAWS]
    assert main(["predict", "classes", *arguments]) == 0
    found, names = read("decided.csv"), ["cat", "dog", "owl", "decision_3"]
    probs = torch.tensor([[float(value) for value in found[f"probability_{name}"]] for name in names[:3]]).T
    assert found["decision"] == [names[k] for k in decide(probs, json.loads(costs)).tolist()]
    assert len(set(found["decision"])) > 1
    assert main(["evaluate", "classes", "--costs", costs, *DRAWS]) == 0
    assert "mean cost: " in capsys.readouterr().out
    assert main(["predict", "classes", *arguments[:-3], "[[0,1],[9,0]]", *DRAWS, "--overwrite"]) == 2
    assert "costs must have 3 rows" in capsys.readouterr().err
    arguments = ["--input", "numbers.csv", "--output", "refused.csv", "--costs", costs, *DRAWS]
    assert main(["predict", "numbers", *arguments]) == 2
    assert "--costs are those of one class" in capsys.readouterr().err
