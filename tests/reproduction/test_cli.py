"""`python -m reproduction` from the command line, on a CIFAR-10 of a few noisy images and on the real one."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flatbayes.cli import main
from flatbayes.experiments import ExperimentRun
from reproduction.cli import main as reproduction_main

FEW = ["--max_examples", "32", "--epochs", "3", "--num_draws", "2", "--num_jobs", "1"]
FAST = Path(__file__).parents[2] / "configs" / "fast-cifar10.yaml"
VARIANTS_PATTERN = "preresnet164-swag-[pf]*"


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """As CIFAR-10 in parquet files, 8 x 8 pixels."""
    folder, random = tmp_path_factory.mktemp("cifar10"), np.random.default_rng(0)
    for part, count in (("train", 120), ("test", 60)):
        images = []
        for pixels in random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG")
            images.append({"bytes": stream.getvalue(), "path": None})
        pq.write_table(pa.table({"img": images, "label": [k % 10 for k in range(count)]}), folder / f"{part}.parquet")
    return folder


def run_table(*more, table="cifar10", few=FEW):
    return reproduction_main(["--table", table, *few, *map(str, more)])


def test_a_table_is_compared_with_the_published_results(cifar, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    asked = ["--data_root", cifar, "--cell_pattern", VARIANTS_PATTERN, "--out", out]
    assert run_table(*asked, "--num_seeds", 2) == 0
    shown = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert len(results["runs"]) == 4
    rows = {(row["cell"], row["metric"], row["reference"]): row for row in results["published"]}
    flat = rows["preresnet164-swag-flat", "nll", "flat_bnn-logs"]
    mine = [run["metrics"]["nll"] for run in results["runs"] if run["flatness"].startswith("SAM")]
    assert (flat["published"], flat["ours_num_seeds"]) == (0.1095, 2)
    assert flat["ours"] == pytest.approx(sum(mine) / 2)
    assert flat["difference"] == pytest.approx(flat["ours"] - 0.1095)
    assert rows["preresnet164-swag-plain", "ece", None]["published"] is None
    assert "published" not in results["runs"][0]
    text = (out / "table.md").read_text()
    for said in ("lossy JPEG", "PreResNet(depth=20) in place of PreResNet(depth=164)", "3 epochs in place of 300",
                 "2 networks a prediction in place of 30", "At most 32 images"):  # fmt: skip
        assert said in text
        assert said in " ".join(shown.split())
    assert "| preresnet164-swag-flat | nll |" in text
    assert "torch 2" in text
    assert "unverified" in text
    assert (out / "report.html").is_file()

    def no_more(*_):
        raise AssertionError("it was done already")

    monkeypatch.setattr("flatbayes.experiments.run.execute_together", no_more)
    assert run_table(*asked, "--num_seeds", 2) == 0
    assert json.loads((out / "results.json").read_text())["published"] == results["published"]
    assert run_table(*asked, "--split", "val") == 2
    assert "differs in split" in capsys.readouterr().err


def test_a_failed_cell_does_not_stop_the_others(cifar, tmp_path, capsys, monkeypatch):
    evaluate = ExperimentRun.evaluate

    def evaluate_or_fail(run, *args):
        if run.posterior_name.endswith("mc-dropout"):
            raise RuntimeError("no luck")
        return evaluate(run, *args)

    monkeypatch.setattr(ExperimentRun, "evaluate", evaluate_or_fail)
    out = tmp_path / "out"
    assert run_table("--data_root", cifar, "--cell_pattern", "preresnet164-m*-plain", "--out", out) == 2
    assert "preresnet164 mc-dropout Plain seed 0: no luck" in capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    assert [run["posterior"] for run in results["runs"]] == ["preresnet164 map"]
    assert {row["ours_num_seeds"] for row in results["published"] if "dropout" in row["cell"]} == {0}


def test_a_cell_whose_dry_run_fails_is_not_trained(cifar, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"

    def refuses(model, data, posterior, flatness, training_config):
        if type(posterior).__name__ == "SWAG":
            raise RuntimeError("too few snapshots")

    monkeypatch.setattr("reproduction.table_config.dry_run", refuses)
    assert run_table("--data_root", cifar, "--cell_pattern", "preresnet164-[ms]*[apg]-plain", "--out", out) == 2
    assert "preresnet164-swag-plain: too few snapshots" in capsys.readouterr().err
    (run,) = json.loads((out / "results.json").read_text())["runs"]
    assert run["posterior"] == "preresnet164 map"


def test_a_dry_run_lists_costs_and_reads_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flatbayes.cli.artifacts.console.width", 160)
    assert (
        run_table(
            "--scale",
            "full",
            "--dry_run",
            "--cell_pattern",
            "wrn28x10-swag-*",
            "--data_root",
            tmp_path / "nowhere",
            few=[],
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "4 cells" in shown
    assert all(word in shown for word in ("wrn28x10-swag-flat", "36,479,194", "26.0", "210,600"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--table", "imagenet"], "no table 'imagenet'. Known: cifar10, cifar100"),
        (["--cell_pattern", "vgg*"], "No cell of cifar10 matches 'vgg*'"),
        (["--num_seeds", "0"], "num_seeds must be at least 1"),
        (["--max_examples", "3"], "max_examples must be at least 16"),
        (["--data_root", "nowhere"], "nowhere"),
        ([], "Give --out FOLDER"),
    ],
)
def test_invalid_options_are_reported_and_leave_no_folder(more, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ["--out", "out"] if more else []
    assert reproduction_main(["--table", "cifar10", "--scale", "full", *out, *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_fast_configuration_runs(cifar, tmp_path, capsys):
    small = ["--data.train_size", "64", "--data.val_size", "20", "--model.depth", "10", "--model.width", "1",
             "--epochs", "2", "--batch_size", "16", "--precision.compile", "false", "--num_draws", "2",
             "--optimization.label_smoothing", "0.1", "--distribution.accelerator", "cpu"]  # fmt: skip
    config = ["--config", str(FAST), "--data.root", str(cifar)]
    assert main(["fit", *config, *small, "--out", str(tmp_path / "fast")]) == 0
    kept = json.loads((tmp_path / "fast" / "config.json").read_text())
    precision = {"mode": "bf16-mixed", "channels_last": True, "compile": False, "cudnn_benchmark": True}
    precision |= {"cuda_graph": False}
    assert kept["config"]["precision"] == precision
    assert kept["flatness"]["init_args"]["before"]["class_path"] == "flatbayes.flatness.MSAM"
    assert kept["data"]["init_args"]["cutout"] == 8
    (run,) = json.loads((tmp_path / "fast" / "results.json").read_text())["runs"]
    assert run["cost"]["gradients"] == pytest.approx(8 + 2)  # MSAM for 6 steps, SAM for 2
    assert run["metrics"]["nll"] < 5


@pytest.mark.real_data
def test_on_real_images(real_data, tmp_path, capsys):
    assert run_table("--cell_pattern", "preresnet164-map-*", "--out", tmp_path / "out", "--max_examples", 64) == 0
    assert "lossy JPEG" in (tmp_path / "out" / "table.md").read_text()
