"""Own networks with one output for two classes, of a table and of images."""

import pytest

from flatbayes.cli.main import main
from flatbayes.core.files import read_json

NETWORKS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU()), nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.body(x))[:, 0]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "one_output_nets.py").write_text(NETWORKS)
    return tmp_path


def write_table(folder):
    rows = [f"{row % 7},{row % 5},{'yes' if row % 7 > 3 else 'no'}\n" for row in range(60)]
    (folder / "table.csv").write_text(f"a,b,label\n{''.join(rows)}")
    return ["table.csv", "--data.target", "label"]


def write_images(folder):
    image = pytest.importorskip("PIL.Image")
    for k in range(60):
        target = folder / "images" / ("day" if k % 2 else "night")
        target.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (8, 8), (200 * (k % 2) + k % 7,) * 3).save(target / f"{k}.png")
    return ["images", "--data.size", "8"]


@pytest.mark.parametrize("write", [write_table, write_images])
def test_fit_evaluate_and_predict(folder, write):
    model = ["--model", "one_output_nets.Net"]
    options = ["--epochs", "8", "--num_draws", "2", "--batch_size", "8", "--out", "run"]
    data = write(folder)
    assert main(["fit", "--data", *data, *model, "--model.width", "6", *options]) == 0
    assert main(["evaluate", "run", *model]) == 0
    assert read_json(folder / "run" / "posterior.json")["likelihood"]["init_args"]["single_logit"]
    assert main(["predict", "run", *model, "--input", data[0], "--output", "predictions.csv"]) == 0
    header = (folder / "predictions.csv").read_text().splitlines()[0]
    assert "probability_no" in header or "probability_night" in header
